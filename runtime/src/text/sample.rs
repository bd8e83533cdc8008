//! The choice of the next token from its logits.
//!
//! The order is that of Hugging Face's processors: repetition penalty, temperature, top-k, top-p. All buffers
//! are reserved at creation; choosing a token allocates nothing.
//!
//! Where a device keeps the logits, its largest ones usually decide: what is not among them is at most the
//! smallest of them, and a repetition penalty only lowers it further. From there on both ways are one.

use super::exponential::exponential;
use super::random::Random;
use std::cmp::Ordering;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingOptions {
    /// Divides the logits; 0 takes the largest.
    pub temperature: f32,
    /// Only the k largest count (and those equal to the kth); 0 is off.
    pub top_k: u32,
    /// Only the likeliest that together reach this probability count; 1 is off.
    pub top_p: f32,
    /// Divides (or, where negative, multiplies) the logit of every id seen so far; 1 is off.
    pub repetition_penalty: f32,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Default for SamplingOptions {
    /// Greedy.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 0 }
    }
}

/// Scores of which only the largest is looked at first: enough to be compared side by side, few enough that
/// most chunks have none of the largest scores.
const CHUNK_SCORES: usize = 256;

/// An id that may be chosen.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    score: f32,
    id: u32,
    /// Probability, not normalized.
    weight: f64,
}

/// Chooses tokens, and remembers which were seen.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplingOptions,
    random: Random,
    vocabulary: usize,
    /// Ids at and beyond it are never chosen.
    allowed: usize,
    /// Distinct ids seen, in the order seen.
    seen: Vec<u32>,
    /// One bit per id.
    is_seen: Vec<u64>,
    scores: Vec<f32>,
    /// The largest score of every [`CHUNK_SCORES`], as [`maximum`] finds it.
    maxima: Vec<f32>,
    /// Ids of the scores, ascending; empty where the scores are those of all ids.
    ids: Vec<u32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler for `vocabulary` logits, of which the first `allowed` belong to tokens: the rest is padding of
    /// the embedding and never chosen. Without a tokenizer both are the same.
    pub fn new(options: SamplingOptions, vocabulary: usize, allowed: usize) -> Self {
        let is_greedy = options.temperature <= 0.0;
        Self {
            options,
            random: Random::new(options.seed),
            vocabulary,
            allowed: allowed.min(vocabulary),
            seen: Vec::with_capacity(vocabulary),
            is_seen: vec![0; vocabulary.div_ceil(64)],
            scores: Vec::with_capacity(vocabulary),
            maxima: Vec::with_capacity(vocabulary.div_ceil(CHUNK_SCORES)),
            ids: Vec::with_capacity(vocabulary),
            candidates: Vec::with_capacity(if is_greedy { 0 } else { vocabulary }),
        }
    }

    /// Notes that `id` stands in the prompt; the repetition penalty applies to it from now on.
    pub fn observe(&mut self, id: u32) {
        let bit = 1 << (id % 64);
        if let Some(word) = self.is_seen.get_mut(id as usize / 64)
            && *word & bit == 0
        {
            *word |= bit;
            self.seen.push(id);
        }
    }

    /// The next token, noted as seen; none where no logit of an allowed id is a number above −∞.
    pub fn sample(&mut self, logits: &[f32]) -> Option<u32> {
        self.ids.clear();
        self.scores.clear();
        self.scores.extend_from_slice(&logits[..logits.len().min(self.allowed)]);
        let penalty = self.options.repetition_penalty;
        // Without a penalty a long conversation need not be walked through.
        for &id in self.seen.iter().filter(|_| penalty != 1.0) {
            if let Some(score) = self.scores.get_mut(id as usize) {
                *score = penalized(*score, penalty);
            }
        }
        self.choose()
    }

    /// The token that [`Sampler::sample`] would choose, from the largest logits alone: `values`, largest
    /// first, with their `ids`. None where they do not decide; nothing has changed then.
    pub fn sample_largest(&mut self, values: &[f32], ids: &[u32]) -> Option<u32> {
        let smallest = *values.last()?;
        let at_most = if values.len() < self.vocabulary { smallest } else { f32::NEG_INFINITY };
        self.ids.clear();
        self.scores.clear();
        for (&value, &id) in values.iter().zip(ids) {
            // What is no number has no place among the others.
            if value.is_nan() {
                return None;
            }
            if (id as usize) < self.allowed {
                let place = self.ids.partition_point(|&other| other < id);
                let penalty = if self.has_seen(id) { self.options.repetition_penalty } else { 1.0 };
                self.ids.insert(place, id);
                self.scores.insert(place, penalized(value, penalty));
            }
        }
        if self.decides(at_most) { self.choose() } else { None }
    }

    /// Whether logits that were `at_most` this, before any penalty, cannot be chosen beside the scores.
    fn decides(&self, at_most: f32) -> bool {
        if at_most == f32::NEG_INFINITY {
            return true;
        }
        let SamplingOptions { temperature, top_k, repetition_penalty, .. } = self.options;
        let needed = if temperature <= 0.0 { 1 } else { top_k as usize };
        let is_lowered = repetition_penalty >= 1.0;
        is_lowered && needed > 0 && self.scores.iter().filter(|score| **score > at_most).count() >= needed
    }

    fn has_seen(&self, id: u32) -> bool {
        self.is_seen.get(id as usize / 64).is_some_and(|word| word >> (id % 64) & 1 == 1)
    }

    /// Chooses among the scores.
    fn choose(&mut self) -> Option<u32> {
        let best = self.largest()?;
        let id = if self.options.temperature <= 0.0 {
            id_of(&self.ids, best)
        } else {
            self.draw(self.scores[best])?
        };
        self.observe(id);
        Some(id)
    }

    /// The place of the largest score, the first of equal ones.
    fn largest(&mut self) -> Option<usize> {
        self.maxima.clear();
        self.maxima.extend(self.scores.chunks(CHUNK_SCORES).map(maximum));
        let largest = maximum(&self.maxima);
        if largest == f32::NEG_INFINITY {
            return None;
        }
        let first = CHUNK_SCORES * self.maxima.iter().position(|&score| score == largest)?;
        Some(first + self.scores[first..].iter().position(|&score| score == largest)?)
    }

    /// A score that top-k surely reaches: k chunks have one as large.
    fn least_of_top_k(&mut self) -> f32 {
        match self.options.top_k as usize {
            k if 0 < k && k <= self.maxima.len() => {
                let (_, kth, _) = self.maxima.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
                *kth
            }
            _ => f32::NEG_INFINITY,
        }
    }

    /// A random id by temperature, top-k and top-p; `largest` is the largest score.
    fn draw(&mut self, largest: f32) -> Option<u32> {
        let temperature = f64::from(self.options.temperature);
        self.candidates.clear();
        // The smallest number is above −∞, which is never drawn.
        let least = self.least_of_top_k().max(f32::MIN);
        for (chunk, first) in self.scores.chunks(CHUNK_SCORES).zip((0..).step_by(CHUNK_SCORES)) {
            // `maxima` are no longer in the order of the chunks.
            if maximum(chunk) < least {
                continue;
            }
            for (index, &score) in (first..).zip(chunk) {
                if score >= least {
                    self.candidates.push(Candidate { score, id: id_of(&self.ids, index), weight: 0.0 });
                }
            }
        }
        self.keep_top_k();
        for candidate in &mut self.candidates {
            // Equal infinite scores have no difference.
            candidate.weight = if candidate.score == largest {
                1.0
            } else {
                exponential((f64::from(candidate.score) - f64::from(largest)) / temperature)
            };
        }
        self.keep_top_p();
        let total: f64 = self.candidates.iter().map(|candidate| candidate.weight).sum();
        let mut left = self.random.next_fraction() * total;
        for candidate in &self.candidates {
            left -= candidate.weight;
            if left < 0.0 {
                return Some(candidate.id);
            }
        }
        // Rounding may leave a crumb: it belongs to the last id that has any weight.
        self.candidates.iter().rev().find(|candidate| candidate.weight > 0.0).map(|candidate| candidate.id)
    }

    /// Leaves the k largest and those equal to the kth, in descending order.
    fn keep_top_k(&mut self) {
        let k = self.options.top_k as usize;
        // Where there are just as many, they are sorted too: others may have been left out before.
        if k == 0 || k > self.candidates.len() {
            return;
        }
        let (_, kth, _) = self.candidates.select_nth_unstable_by(k - 1, descending);
        let threshold = kth.score;
        self.candidates.retain(|candidate| candidate.score >= threshold);
        self.candidates.sort_unstable_by(descending);
    }

    /// Leaves the likeliest candidates: each before which the others reach less than top-p.
    ///
    /// Sorts only as far as needed: a few of 150 000 candidates usually do.
    fn keep_top_p(&mut self) {
        let top_p = f64::from(self.options.top_p);
        if top_p >= 1.0 {
            return;
        }
        let total: f64 = self.candidates.iter().map(|candidate| candidate.weight).sum();
        let (mut kept, mut sorted, mut reached) = (0, 0, 0.0);
        while kept < self.candidates.len() && (kept == 0 || reached < top_p * total) {
            if kept == sorted {
                let rest = &mut self.candidates[sorted..];
                let chunk = rest.len().min(sorted.max(64));
                if chunk < rest.len() {
                    rest.select_nth_unstable_by(chunk - 1, descending);
                }
                rest[..chunk].sort_unstable_by(descending);
                sorted += chunk;
            }
            reached += self.candidates[kept].weight;
            kept += 1;
        }
        self.candidates.truncate(kept);
    }
}

/// The largest of `scores` that is a number; −∞ where there is none. Lanes side by side, because 150 000
/// comparisons one by one take 100 µs.
fn maximum(scores: &[f32]) -> f32 {
    let larger = |one: f32, other: f32| if other > one { other } else { one };
    let (vectors, rest) = scores.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    for vector in vectors {
        for (lane, &score) in lanes.iter_mut().zip(vector) {
            *lane = larger(*lane, score);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

/// The id of the score at a place.
fn id_of(ids: &[u32], place: usize) -> u32 {
    ids.get(place).copied().unwrap_or(place as u32)
}

/// The score of an id that was seen.
fn penalized(score: f32, penalty: f32) -> f32 {
    if score < 0.0 { score * penalty } else { score / penalty }
}

/// Larger scores first, then lower ids.
fn descending(a: &Candidate, b: &Candidate) -> Ordering {
    b.score.total_cmp(&a.score).then(a.id.cmp(&b.id))
}

#[cfg(test)]
mod agreement;

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f32, top_k: u32, top_p: f32) -> SamplingOptions {
        SamplingOptions { temperature, top_k, top_p, ..SamplingOptions::default() }
    }

    /// How often each of the ids is drawn of 20 000 times.
    fn shares(options: SamplingOptions, logits: &[f32], allowed: usize) -> Vec<f64> {
        let mut sampler = Sampler::new(options, logits.len(), allowed);
        let mut shares = vec![0.0; logits.len()];
        for _ in 0..20_000 {
            shares[sampler.sample(logits).unwrap() as usize] += 1.0 / 20_000.0;
        }
        shares
    }

    fn assert_near(found: &[f64], needed: &[f64]) {
        assert!(found.iter().zip(needed).all(|(found, needed)| (found - needed).abs() < 0.012), "{found:?}");
        assert!(
            found.iter().zip(needed).all(|(found, needed)| (*found == 0.0) == (*needed == 0.0)),
            "{found:?}"
        );
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_the_largest_allowed_logits() {
        let mut sampler = Sampler::new(SamplingOptions::default(), 6, 5);
        assert_eq!(sampler.sample(&[1.0, 3.0, f32::NAN, 3.0, 2.0, 9.0]), Some(1));
        assert_eq!(sampler.sample(&[f32::NAN, f32::NEG_INFINITY, f32::NAN, f32::NAN, f32::NAN, 1.0]), None);
        assert_eq!(sampler.sample(&[]), None);
    }

    #[test]
    fn the_repetition_penalty_counts_each_seen_id_once_and_respects_signs() {
        let options = SamplingOptions { repetition_penalty: 2.0, ..SamplingOptions::default() };
        let mut sampler = Sampler::new(options, 4, 4);
        for id in [0, 0, 2, 1000] {
            sampler.observe(id);
        }
        // 4 becomes 2, −1 becomes −2.
        assert_eq!(sampler.sample(&[4.0, 1.5, -1.0, -1.5]), Some(0));
        assert_eq!(sampler.sample(&[4.0, 2.5, -1.0, -1.5]), Some(1));
        assert_eq!(sampler.sample(&[-8.0, -8.0, -1.0, -1.5]), Some(3));
    }

    #[test]
    fn temperature_shapes_the_distribution() {
        let logits = [0.0, 2.0_f32.ln(), 4.0_f32.ln(), 9.0];
        assert_near(&shares(sampling(1.0, 0, 1.0), &logits, 3), &[1.0 / 7.0, 2.0 / 7.0, 4.0 / 7.0, 0.0]);
        assert_near(&shares(sampling(0.5, 0, 1.0), &logits, 3), &[1.0 / 21.0, 4.0 / 21.0, 16.0 / 21.0, 0.0]);
    }

    #[test]
    fn top_k_keeps_equals_of_the_kth() {
        let logits = [1.0, 5.0, 4.0, 4.0, 0.0];
        let e = 1.0 / (1.0 + 2.0 * (-1.0_f64).exp());
        assert_near(
            &shares(sampling(1.0, 2, 1.0), &logits, 5),
            &[0.0, e, (1.0 - e) / 2.0, (1.0 - e) / 2.0, 0.0],
        );
        assert_near(&shares(sampling(1.0, 1, 1.0), &logits, 5), &[0.0, 1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn top_p_keeps_what_reaches_it_and_at_least_one() {
        let logits = [4.0_f32.ln(), 3.0_f32.ln(), 2.0_f32.ln(), 0.0];
        assert_near(&shares(sampling(1.0, 0, 0.65), &logits, 4), &[4.0 / 7.0, 3.0 / 7.0, 0.0, 0.0]);
        assert_near(&shares(sampling(1.0, 0, 0.75), &logits, 4), &[4.0 / 9.0, 3.0 / 9.0, 2.0 / 9.0, 0.0]);
        assert_near(&shares(sampling(1.0, 0, 0.0), &logits, 4), &[1.0, 0.0, 0.0, 0.0]);
        assert_near(&shares(sampling(1.0, 3, 0.5), &logits, 4), &[4.0 / 7.0, 3.0 / 7.0, 0.0, 0.0]);
    }

    #[test]
    fn partial_sorting_does_not_change_top_p() {
        let mut random = Random::new(3);
        let logits: Vec<f32> = (0..5000).map(|_| (random.next_fraction() * 6.0) as f32).collect();
        let mut sampler = Sampler::new(sampling(1.0, 0, 0.8), logits.len(), logits.len());
        sampler.sample(&logits).unwrap();
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let mut reached = 0.0;
        let kept = order.iter().take_while(|&&id| {
            let before = reached;
            reached += f64::from(logits[id]).exp() / total;
            before < 0.8
        });
        assert_eq!(
            sampler.candidates.iter().map(|kept| kept.id as usize).collect::<Vec<_>>(),
            kept.copied().collect::<Vec<_>>()
        );
    }

    #[test]
    fn looking_at_the_largest_of_chunks_first_does_not_change_top_k() {
        let mut random = Random::new(11);
        // Quarters, so that many are equal, in chunks of which some have no number at all.
        let logit = |random: &mut Random| (random.next_fraction() * 80.0).round() as f32 / 4.0;
        let mut logits: Vec<f32> = (0..20_000).map(|_| logit(&mut random)).collect();
        logits[300..800].fill(f32::NAN);
        logits[5000..6000].fill(f32::NEG_INFINITY);
        logits[12_345] = f32::INFINITY;
        let mut order: Vec<usize> = (0..logits.len()).filter(|&id| logits[id] > f32::NEG_INFINITY).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        for k in [1, 2, 20, 70, 79, 80, 1000, 18_500, 30_000] {
            let mut sampler = Sampler::new(sampling(1.0, k, 1.0), logits.len(), logits.len());
            sampler.sample(&logits).unwrap();
            let kth = logits[order[order.len().min(k as usize) - 1]];
            let mut found: Vec<usize> = sampler.candidates.iter().map(|kept| kept.id as usize).collect();
            let mut kept: Vec<usize> = order.iter().copied().filter(|&id| logits[id] >= kth).collect();
            found.sort_unstable();
            kept.sort_unstable();
            assert_eq!(found, kept, "top {k}");
        }
    }

    #[test]
    fn a_seed_gives_the_same_tokens_without_growing_a_buffer() {
        let logits: Vec<f32> = (0..1000).map(|id| (id * 37 % 101) as f32 / 10.0).collect();
        let options = SamplingOptions { seed: 5, repetition_penalty: 1.1, ..sampling(0.9, 40, 0.95) };
        let run = || {
            let mut sampler = Sampler::new(options, 1000, 1000);
            let capacities = |sampler: &Sampler| {
                let Sampler { seen, scores, maxima, candidates, .. } = sampler;
                (seen.capacity(), scores.capacity(), maxima.capacity(), candidates.capacity())
            };
            let before = capacities(&sampler);
            let ids: Vec<u32> = (0..200).filter_map(|_| sampler.sample(&logits)).collect();
            assert_eq!(capacities(&sampler), before);
            ids
        };
        assert_eq!(run(), run());
        assert_eq!(run().len(), 200);
    }
}

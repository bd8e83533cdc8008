//! The choice of the next token from its logits.
//!
//! The order is that of Hugging Face's processors: repetition penalty, temperature, top-k, top-p. All buffers
//! are reserved at creation; choosing a token allocates nothing.

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
    /// Ids at and beyond it are never chosen.
    allowed: usize,
    /// Distinct ids seen, in the order seen.
    seen: Vec<u32>,
    /// One bit per id.
    is_seen: Vec<u64>,
    scores: Vec<f32>,
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
            allowed: allowed.min(vocabulary),
            seen: Vec::with_capacity(vocabulary),
            is_seen: vec![0; vocabulary.div_ceil(64)],
            scores: Vec::with_capacity(vocabulary),
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
        self.scores.clear();
        self.scores.extend_from_slice(&logits[..logits.len().min(self.allowed)]);
        self.penalize_repetition();
        let id = if self.options.temperature <= 0.0 { self.largest() } else { self.draw() }?;
        self.observe(id);
        Some(id)
    }

    fn penalize_repetition(&mut self) {
        let penalty = self.options.repetition_penalty;
        if penalty == 1.0 {
            return;
        }
        for &id in &self.seen {
            if let Some(score) = self.scores.get_mut(id as usize) {
                *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
            }
        }
    }

    /// The id of the largest score, the lowest of equal ones.
    fn largest(&self) -> Option<u32> {
        let mut best: Option<(usize, f32)> = None;
        for (id, &score) in self.scores.iter().enumerate() {
            if score > best.map_or(f32::NEG_INFINITY, |(_, best)| best) {
                best = Some((id, score));
            }
        }
        best.map(|(id, _)| id as u32)
    }

    /// A random id by temperature, top-k and top-p.
    fn draw(&mut self) -> Option<u32> {
        let maximum = self.scores[self.largest()? as usize];
        let temperature = f64::from(self.options.temperature);
        self.candidates.clear();
        for (id, &score) in self.scores.iter().enumerate() {
            if score > f32::NEG_INFINITY {
                self.candidates.push(Candidate { score, id: id as u32, weight: 0.0 });
            }
        }
        self.keep_top_k();
        for candidate in &mut self.candidates {
            // Equal infinite scores have no difference.
            candidate.weight = if candidate.score == maximum {
                1.0
            } else {
                exponential((f64::from(candidate.score) - f64::from(maximum)) / temperature)
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
        if k == 0 || k >= self.candidates.len() {
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

/// Larger scores first, then lower ids.
fn descending(a: &Candidate, b: &Candidate) -> Ordering {
    b.score.total_cmp(&a.score).then(a.id.cmp(&b.id))
}

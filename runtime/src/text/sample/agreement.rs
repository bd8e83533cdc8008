//! The largest logits choose what all logits choose, or say that they do not decide.

use proptest::prelude::*;

use super::{Sampler, SamplingOptions};

/// The `count` largest logits as a device leaves them: largest first, the lower id first where equal.
fn largest(logits: &[f32], count: usize) -> (Vec<f32>, Vec<u32>) {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    ids.truncate(count);
    (ids.iter().map(|&id| logits[id as usize]).collect(), ids)
}

/// Few values, so that many are equal, and sometimes what no kernel should give.
fn logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        400 => (-12_i32..12).prop_map(|value| value as f32 / 4.0),
        400 => -8.0_f32..8.0,
        4 => Just(f32::NEG_INFINITY),
        1 => Just(f32::INFINITY),
        1 => Just(f32::NAN),
        1 => Just(-f32::NAN),
        1 => Just(-0.0),
    ]
}

fn options() -> impl Strategy<Value = SamplingOptions> {
    let temperature = prop_oneof![Just(0.0), Just(1.0), 0.05_f32..3.0];
    let top_k = prop_oneof![0_u32..4, 0_u32..80];
    let top_p = prop_oneof![Just(1.0), Just(0.0), 0.0_f32..1.0];
    let penalty = prop_oneof![Just(1.0), 1.0_f32..2.0, 0.5_f32..1.0, Just(f32::MAX)];
    (temperature, top_k, top_p, penalty, any::<u64>()).prop_map(
        |(temperature, top_k, top_p, repetition_penalty, seed)| SamplingOptions {
            temperature,
            top_k,
            top_p,
            repetition_penalty,
            seed,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Several tokens one after another, so that penalties and random numbers have a past.
    #[test]
    fn the_largest_logits_choose_what_all_choose(
        vocabulary in prop_oneof![Just(150_usize), 1_usize..100],
        masked in 0_usize..20,
        count in prop_oneof![Just(64_usize), 1_usize..64],
        options in options(),
        prompt in prop::collection::vec(0_u32..150, 0..40),
        steps in prop::collection::vec(prop::collection::vec(logit(), 150), 1..6),
    ) {
        let allowed = vocabulary - masked.min(vocabulary / 2);
        let mut of_all = Sampler::new(options, vocabulary, allowed);
        let mut of_largest = of_all.clone();
        for id in prompt {
            of_all.observe(id);
            of_largest.observe(id);
        }
        for logits in &steps {
            let logits = &logits[..vocabulary];
            let (values, ids) = largest(logits, count.min(vocabulary));
            let found = of_largest.sample_largest(&values, &ids).or_else(|| of_largest.sample(logits));
            prop_assert_eq!(found, of_all.sample(logits));
        }
    }
}

/// The largest decide where they should: a sampler that always asked for all logits would agree as well.
#[test]
fn the_usual_settings_are_decided() {
    let logits: Vec<f32> = (0..1000).map(|id| (id * 7919 % 1000) as f32 / 50.0).collect();
    let (values, ids) = largest(&logits, 64);
    let settings = |temperature, top_k, top_p, repetition_penalty| SamplingOptions {
        temperature,
        top_k,
        top_p,
        repetition_penalty,
        seed: 3,
    };
    let decides = |options| {
        let mut sampler = Sampler::new(options, 1000, 990);
        ids[..10].iter().for_each(|&id| sampler.observe(id));
        sampler.sample_largest(&values, &ids).is_some()
    };
    assert!(decides(settings(0.0, 0, 1.0, 1.0)));
    assert!(decides(settings(0.0, 0, 1.0, 1.1)));
    assert!(decides(settings(0.7, 20, 0.8, 1.05)));
    assert!(decides(settings(1.0, 40, 1.0, 1.0)));
    // All count, more are asked for than there are, or what is not there may have risen.
    assert!(!decides(settings(1.0, 0, 0.9, 1.0)));
    assert!(!decides(settings(1.0, 64, 1.0, 1.0)));
    assert!(!decides(settings(0.0, 0, 1.0, 0.9)));
    // Penalties have pushed the first ten below the others.
    assert!(!decides(settings(1.0, 60, 1.0, 100.0)));
}

/// What equals the smallest of the largest may have a lower id.
#[test]
fn equals_of_the_smallest_do_not_decide() {
    let mut sampler = Sampler::new(SamplingOptions::default(), 100, 100);
    assert_eq!(sampler.sample_largest(&[3.0, 3.0], &[5, 7]), None);
    assert_eq!(sampler.sample_largest(&[3.0, 2.0], &[5, 7]), Some(5));
    assert_eq!(sampler.sample_largest(&[f32::NAN, 2.0], &[5, 7]), None);
    assert_eq!(sampler.sample_largest(&[3.0, f32::NEG_INFINITY], &[5, 7]), Some(5));
    assert_eq!(sampler.sample_largest(&[], &[]), None);
    // Nothing is left out of as many as there are.
    let mut sampler = Sampler::new(SamplingOptions::default(), 2, 2);
    assert_eq!(sampler.sample_largest(&[3.0, 3.0], &[0, 1]), Some(0));
}

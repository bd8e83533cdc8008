//! Rotation, caches and attention.

use super::*;

/// Rotated halves of one head.
fn rotated(x: &[f32], table: &[f32]) -> Vec<f32> {
    let half = x.len() / 2;
    let low = (0..half).map(|i| x[i] * table[i] - x[i + half] * table[i + half]);
    let high = (0..half).map(|i| x[i + half] * table[i] + x[i] * table[i + half]);
    low.chain(high).collect()
}

/// Attention in plain loops: `[rows, heads · head_dim]` for rows at `positions`; where `rounded`, in each block
/// of 256 positions the weights, as ratios to the largest, are bf16.
pub(super) fn attention(
    q: &[f32],
    keys: &[Vec<f32>],
    values: &[Vec<f32>],
    positions: &[usize],
    shape: (usize, usize, usize),
    scale: f32,
    rounded: bool,
) -> Vec<f32> {
    let (heads, kv_heads, head_dim) = shape;
    let mut out = Vec::new();
    for (row, position) in positions.iter().enumerate() {
        for head in 0..heads {
            let q = &q[(row * heads + head) * head_dim..][..head_dim];
            let kv = head / (heads / kv_heads) * head_dim;
            let scores: Vec<f32> = (0..=*position)
                .map(|p| scale * q.iter().zip(&keys[p][kv..kv + head_dim]).map(|(q, k)| q * k).sum::<f32>())
                .collect();
            let largest = scores.iter().copied().fold(f32::MIN, f32::max);
            let mut weights: Vec<f32> = scores.iter().map(|score| (score - largest).exp()).collect();
            let sum: f32 = weights.iter().sum();
            for block in weights.chunks_mut(256).filter(|_| rounded) {
                let largest = block.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
                block
                    .iter_mut()
                    .for_each(|weight| *weight = largest * Element::Bf16.round(*weight / largest));
            }
            for column in 0..head_dim {
                let total: f32 =
                    weights.iter().enumerate().map(|(p, weight)| weight * values[p][kv + column]).sum();
                out.push(total / sum);
            }
        }
    }
    out
}

/// Whether the target multiplies keys and values of this type in pairs, which lie side by side.
fn multiplies_pairs(target: &AnyTarget, element: Element) -> bool {
    element == Element::Bf16 && target.description().multiplies_bf16_pairs
}

#[test]
fn attention_fused_and_in_steps_over_a_cache_of_several_blocks() {
    let (heads, kv_heads, context, count) = (6_u64, 3_u64, 600_u64, 599_u64);
    for (head_dim, element) in [(80_u64, Element::F32), (10, Element::F32), (64, Element::Bf16)] {
        let cache = |kind| CacheType { kind, slots: 2, kv_heads, context, head_dim, element };
        let (kv_width, q_width) = (kv_heads * head_dim, heads * head_dim);
        let width = q_width + 2 * kv_width;
        let table = numbers(context * head_dim, 11);
        let (qkv, bias) = (numbers(count * width, 12), numbers(width, 13));
        let row = |position: usize| -> Vec<f32> {
            (0..width as usize).map(|n| qkv[position * width as usize + n] + bias[n]).collect()
        };
        let rotate_heads = |x: &[f32], position: usize| -> Vec<f32> {
            let table = &table[position * head_dim as usize..][..head_dim as usize];
            x.chunks(head_dim as usize).flat_map(|head| rotated(head, table)).collect()
        };
        let all: Vec<Vec<f32>> = (0..count as usize).map(row).collect();
        let (q_end, k_end) = (q_width as usize, (q_width + kv_width) as usize);
        let round = |x: Vec<f32>| x.into_iter().map(|x| element.round(x)).collect::<Vec<f32>>();
        let queries: Vec<f32> =
            all.iter().enumerate().flat_map(|(p, x)| rotate_heads(&x[..q_end], p)).collect();
        let keys: Vec<Vec<f32>> =
            all.iter().enumerate().map(|(p, x)| round(rotate_heads(&x[q_end..k_end], p))).collect();
        let values: Vec<Vec<f32>> = all.iter().map(|x| round(x[k_end..].to_vec())).collect();
        let positions: Vec<f32> = (0..count).map(|position| position as f32).collect();
        let slots = vec![1.0; count as usize];
        let rounds = |target: &AnyTarget| {
            if multiplies_pairs(target, element) { vec![false, true] } else { vec![false] }
        };
        let targets: Vec<AnyTarget> = targets();
        for (target, rounded) in
            targets.iter().flat_map(|target| rounds(target).into_iter().map(move |r| (target, r)))
        {
            let query_type = if rounded { Element::Bf16 } else { Element::F32 };
            // What no position wrote is not a number.
            let bytes = |kind| vec![0xff_u8; target.cache_bytes(&cache(kind)) as usize];
            let mut caches = [bytes(CacheKind::Key), bytes(CacheKind::Value)];
            let indices = || vec![rows(Element::I32, &[]), rows(Element::I32, &[])];
            let mut write = request(
                Operation::RotateAndWriteCache { heads, bias: true },
                [vec![rows(Element::F32, &[width])], indices()].concat(),
                vec![weight(Element::F32, &[context, head_dim]), weight(Element::F32, &[width])],
                vec![rows(query_type, &[q_width])],
            );
            write.caches = vec![cache(CacheKind::Key), cache(CacheKind::Value)];
            let given = [qkv.clone(), positions.clone(), slots.clone()];
            let found = run(target, &write, count, &given, &[table.clone(), bias.clone()], &mut caches);
            let tolerance = if rounded { 4e-3 } else { 1e-6 };
            assert_close(&found[0], &queries, tolerance);

            // Four rows look at the cache: within the first block, an even and an odd number of positions,
            // at its end, and at the last that was written.
            let looking = [5_usize, 6, 255, 598];
            let queries: Vec<f32> = queries.iter().map(|query| query_type.round(*query)).collect();
            let q: Vec<f32> = looking.iter().flat_map(|p| queries[p * q_end..][..q_end].to_vec()).collect();
            let at: Vec<f32> = looking.iter().map(|position| *position as f32).collect();
            let scale = 0.3;
            let shape = (heads as usize, kv_heads as usize, head_dim as usize);
            let expected = attention(&q, &keys, &values, &looking, shape, scale, rounded);
            let given = [q, at.clone(), vec![1.0; 4]];
            let mut fused = request(
                Operation::Attention { heads, scale: Real(scale), rounded },
                [vec![rows(query_type, &[q_width])], indices()].concat(),
                vec![],
                vec![rows(Element::F32, &[q_width])],
            );
            fused.caches = write.caches.clone();
            // One weight that falls to the other side of a half makes a difference of 2⁻⁹ of it.
            let tolerance = if rounded { 1e-4 } else { 1e-5 };
            let together = run(target, &fused, 4, &given, &[], &mut caches).swap_remove(0);
            assert_close(&together, &expected, tolerance);
            if let AnyTarget::Cpu(_) = target {
                for (row, position) in looking.iter().enumerate() {
                    let given =
                        [given[0][row * q_end..][..q_end].to_vec(), vec![*position as f32], vec![1.0]];
                    let alone = attention_in_parts(target, &fused, &given, &mut caches);
                    assert_eq!(alone, together[row * q_end..][..q_end], "at {position}");
                }
            }

            let scores_type = || rows(Element::F32, &[heads, context]);
            let mut scores = request(
                Operation::AttentionScores { heads, scale: Real(scale) },
                fused.inputs.clone(),
                vec![],
                vec![scores_type()],
            );
            scores.caches = vec![cache(CacheKind::Key)];
            let found = run(target, &scores, 4, &given, &[], &mut caches[..1]);
            assert_eq!(found[0][6], 77.0, "a hidden position was written");
            let softmax = request(
                Operation::CausalSoftmax,
                vec![scores_type(), rows(Element::I32, &[])],
                vec![],
                vec![scores_type()],
            );
            let found = run(target, &softmax, 4, &[found[0].clone(), at], &[], &mut []);
            let mut sums = request(
                Operation::AttentionValues { heads, rounded },
                [vec![scores_type()], indices()].concat(),
                vec![],
                vec![rows(Element::F32, &[q_width])],
            );
            sums.caches = vec![cache(CacheKind::Value)];
            let given = [found[0].clone(), given[1].clone(), given[2].clone()];
            assert_close(&run(target, &sums, 4, &given, &[], &mut caches[1..])[0], &expected, tolerance);
        }
    }
}

/// One row's attention block by block, merged.
pub(super) fn attention_in_parts(
    target: &AnyTarget,
    fused: &KernelRequest,
    given: &[Vec<f32>; 3],
    caches: &mut [Vec<u8>],
) -> Vec<f32> {
    let Operation::Attention { heads, scale, rounded } = fused.operation else { panic!("an attention") };
    let (blocks, width) = (fused.caches[0].blocks(), fused.outputs[0].row_elements());
    let parts_type = || vec![rows(Element::F32, &[blocks, width]), rows(Element::F32, &[blocks, 2 * heads])];
    let blocks_operation = Operation::AttentionBlocks { heads, scale, rounded };
    let mut parts = request(blocks_operation, fused.inputs.clone(), vec![], parts_type());
    parts.caches = fused.caches.clone();
    parts.max_rows = 1;
    let found = run(target, &parts, 1, given, &[], caches);
    let seen = given[1][0] as usize / 256 + 1;
    let behind = &found[0][seen * width as usize..];
    assert!(behind.iter().all(|value| *value == 77.0), "a block behind the position was written");
    let inputs = [parts_type(), vec![rows(Element::I32, &[])]].concat();
    let merge = request(Operation::MergeBlocks { heads }, inputs, vec![], fused.outputs.clone());
    run(target, &merge, 1, &[found[0].clone(), found[1].clone(), given[1].clone()], &[], &mut [])
        .swap_remove(0)
}

#[test]
fn rotate_and_write_cache_in_steps_equal_the_fused_kernel() {
    let (heads, head_dim, context) = (3_u64, 10_u64, 20_u64);
    let table = numbers(context * head_dim, 14);
    let x = numbers(2 * heads * head_dim, 15);
    let at = vec![19.0, 4.0];
    let expected: Vec<f32> = x
        .chunks(10)
        .enumerate()
        .flat_map(|(head, x)| rotated(x, &table[if head < 3 { 190 } else { 40 }..][..10]))
        .collect();
    for target in targets() {
        let ty = request(
            Operation::Rotate { head_dim },
            vec![rows(Element::F32, &[30]), rows(Element::I32, &[])],
            vec![weight(Element::F32, &[context, head_dim])],
            vec![rows(Element::F32, &[30])],
        );
        let found = run(&target, &ty, 2, &[x.clone(), at.clone()], std::slice::from_ref(&table), &mut []);
        assert_close(&found[0], &expected, 1e-6);
        let kinds = [CacheKind::Key, CacheKind::Value];
        let elements = [Element::F32, Element::Bf16];
        for (kind, element) in kinds.into_iter().flat_map(|kind| elements.map(|element| (kind, element))) {
            let cache = CacheType { kind, slots: 1, kv_heads: heads, context, head_dim, element };
            let mut write = request(
                Operation::WriteCache,
                vec![rows(Element::F32, &[30]), rows(Element::I32, &[]), rows(Element::I32, &[])],
                vec![],
                vec![],
            );
            write.caches = vec![cache.clone()];
            let mut bytes = [vec![0; target.cache_bytes(&cache) as usize]];
            run(&target, &write, 2, &[x.clone(), at.clone(), vec![0.0; 2]], &[], &mut bytes);
            let stored = from_bytes(element, &bytes[0]);
            // Whole vectors, or 16 bytes.
            let lanes = match target {
                AnyTarget::Cpu(_) => target.description().vector_lanes.into(),
                AnyTarget::Cuda(_) => 16 / element.bytes(),
            };
            let beside = if multiplies_pairs(&target, element) { 2 } else { 1 };
            let padded = head_dim.next_multiple_of(lanes) as usize;
            for (row, position) in [(0_usize, 19_usize), (1, 4)] {
                for head in 0..3 {
                    for column in 0..10 {
                        let place = match (kind, &target) {
                            (CacheKind::Key, AnyTarget::Cpu(_)) => {
                                let pair = position / 32 * 10 / beside + column / beside;
                                head * 10 * 256 + (pair * 32 + position % 32) * beside + column % beside
                            }
                            (CacheKind::Value, AnyTarget::Cpu(_)) => {
                                let pair = position / beside * padded + column;
                                head * 256 * padded + pair * beside + position % beside
                            }
                            _ => (head * 256 + position) * padded + column,
                        };
                        assert_eq!(stored[place], element.round(x[row * 30 + head * 10 + column]));
                    }
                }
            }
        }
    }
}

//! The largest of many numbers, as devices are asked for them.

use super::*;

fn top_k(numbers: u64, k: u64) -> KernelRequest {
    request(
        Operation::TopK { k, normalize: false },
        vec![rows(Element::F32, &[numbers])],
        vec![],
        vec![rows(Element::F32, &[k]), rows(Element::I32, &[k])],
    )
}

/// Numbers and their indices by definition.
fn largest(row: &[f32], k: u64) -> (Vec<u32>, Vec<f32>) {
    let mut order: Vec<usize> = (0..row.len()).collect();
    // A stable sort: the lower index first where equal.
    order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
    order.truncate(k as usize);
    (
        order.iter().map(|index| row[*index].to_bits()).collect(),
        order.iter().map(|index| *index as f32).collect(),
    )
}

#[track_caller]
fn assert_largest(device: &AnyTarget, x: &[f32], extent: u64, k: u64) {
    let count = x.len() as u64 / extent;
    let found = run(device, &top_k(extent, k), count, &[x.to_vec()], &[], &mut []);
    let expected: Vec<(Vec<u32>, Vec<f32>)> = x.chunks(extent as usize).map(|row| largest(row, k)).collect();
    let bits: Vec<u32> = found[0].iter().map(|value| value.to_bits()).collect();
    assert_eq!(
        found[1],
        expected.iter().flat_map(|row| row.1.clone()).collect::<Vec<_>>(),
        "{k} of {extent}"
    );
    assert_eq!(bits, expected.iter().flat_map(|row| row.0.clone()).collect::<Vec<_>>(), "{k} of {extent}");
}

/// Odd extents on both sides of a thread, a run, a block and several blocks; `numbers` has 32 values, so that
/// most of them are equal to others.
#[test]
fn the_largest_come_in_order() {
    let device = resolve_target(&["sm_80"]).unwrap();
    for (extent, k, count) in [
        (1, 1, 1),
        (63, 63, 2),
        (64, 64, 1),
        (65, 64, 2),
        (101, 64, 1),
        (300, 5, 2),
        (1000, 64, 2),
        (2049, 33, 1),
        (5000, 64, 3),
        (40_000, 64, 1),
    ] {
        let equal = numbers(count * extent, extent);
        let distinct: Vec<f32> = (0..count * extent).map(|n| (n * 7919 % 100_003) as f32 - 3e4).collect();
        for x in [equal, distinct] {
            assert_largest(&device, &x, extent, k);
        }
    }
}

/// Ascending and descending rows put all of the largest into one warp; infinities and zeros of both signs have
/// their places, and so has what is no number.
#[test]
fn a_device_orders_whatever_it_is_given() {
    let device = resolve_target(&["sm_80"]).unwrap();
    let ascending: Vec<f32> = (0..5000).map(|n| n as f32).collect();
    let descending: Vec<f32> = ascending.iter().map(|x| -x).collect();
    let odd = [f32::NEG_INFINITY, -0.0, 0.0, f32::INFINITY, f32::NAN, -f32::NAN, f32::MIN_POSITIVE, -1e-45];
    let mixed: Vec<f32> = (0..5000).map(|n| odd[n * n % 61 % 8]).collect();
    let mut lonely = vec![f32::NEG_INFINITY; 5000];
    lonely[4999] = -3e38;
    for x in [ascending, descending, mixed, lonely, vec![f32::NAN; 5000]] {
        for (extent, k) in [(5000, 64), (2500, 63), (100, 20)] {
            assert_largest(&device, &x, extent, k);
        }
    }
}

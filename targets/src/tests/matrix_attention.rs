//! Attention on the matrix unit.

use super::matrix_products::{can_run, target};
use super::*;

/// Heads, kv heads, elements of a head.
type Shape = (u64, u64, u64);

/// A fused attention over caches in which slot 1 has `positions`, and slot 0 the first 39 of them.
struct Attention {
    shape: Shape,
    request: KernelRequest,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    caches: [Vec<u8>; 2],
}

const SCALE: f32 = 0.2;

impl Attention {
    fn new(shape: Shape, positions: u64) -> Self {
        let (heads, kv_heads, head_dim) = shape;
        let element = Element::Bf16;
        let cache = |kind| CacheType { kind, slots: 2, kv_heads, context: positions + 9, head_dim, element };
        let indices = || vec![rows(Element::I32, &[]), rows(Element::I32, &[])];
        let width = kv_heads * head_dim;
        let entries = |seed| -> Vec<f32> {
            numbers(positions * width, seed).iter().map(|value| element.round(*value)).collect()
        };
        let (keys, values) = (entries(21), entries(22));
        let write = |kind, entries: &[f32]| {
            let mut write = request(
                Operation::WriteCache,
                [vec![rows(Element::F32, &[width])], indices()].concat(),
                vec![],
                vec![],
            );
            write.caches = vec![cache(kind)];
            // What no position wrote is not a number.
            let mut bytes = [vec![0xff_u8; target().cache_bytes(&cache(kind)) as usize]];
            for (slot, count) in [(1.0, positions), (0.0, 39)] {
                let at = (0..count).map(|position| position as f32).collect();
                let given = [entries[..(count * width) as usize].to_vec(), at, vec![slot; count as usize]];
                run(&target(), &write, count, &given, &[], &mut bytes);
            }
            let [bytes] = bytes;
            bytes
        };
        let caches = [write(CacheKind::Key, &keys), write(CacheKind::Value, &values)];
        let mut request = request(
            Operation::Attention { heads, scale: Real(SCALE), rounded: true },
            [vec![rows(element, &[heads * head_dim])], indices()].concat(),
            vec![],
            vec![rows(Element::F32, &[heads * head_dim])],
        );
        request.caches = vec![cache(CacheKind::Key), cache(CacheKind::Value)];
        let by_position = |entries: Vec<f32>| entries.chunks(width as usize).map(<[f32]>::to_vec).collect();
        Self { shape, request, keys: by_position(keys), values: by_position(values), caches }
    }

    fn queries(&self, count: usize) -> Vec<f32> {
        let (heads, _, head_dim) = self.shape;
        numbers(count as u64 * heads * head_dim, 23).iter().map(|x| Element::Bf16.round(*x)).collect()
    }

    /// Rows at `positions` of `slots` together, against plain loops and, bit by bit, against each row alone.
    fn check(&mut self, positions: &[usize], slots: &[f32]) {
        let (heads, kv_heads, head_dim) = self.shape;
        let queries = self.queries(positions.len());
        let at: Vec<f32> = positions.iter().map(|position| *position as f32).collect();
        let given = [queries.clone(), at.clone(), slots.to_vec()];
        let count = positions.len() as u64;
        self.request.max_rows = count;
        let together = run(&target(), &self.request, count, &given, &[], &mut self.caches).swap_remove(0);
        let shape = (heads as usize, kv_heads as usize, head_dim as usize);
        let (keys, values) = (&self.keys, &self.values);
        let expected = super::attention::attention(&queries, keys, values, positions, shape, SCALE, true);
        // Weights are below 1 together, and one that falls to the other side of a half makes 2⁻⁹ of it; few do.
        assert_close(&together, &expected, 0.002);
        let off: f32 = together.iter().zip(&expected).map(|(found, expected)| (found - expected).abs()).sum();
        assert!(off / (together.len() as f32) < 2e-6, "{:?}: {off} in all", self.shape);
        let width = (heads * head_dim) as usize;
        for row in 0..positions.len() {
            let range = row * width..(row + 1) * width;
            let given = [queries[range.clone()].to_vec(), vec![at[row]], vec![slots[row]]];
            let alone =
                super::attention::attention_in_parts(&target(), &self.request, &given, &mut self.caches);
            assert_eq!(alone, together[range.clone()], "{:?} at {}", self.shape, positions[row]);
            self.request.max_rows = 1;
            let alone = run(&target(), &self.request, 1, &given, &[], &mut self.caches).swap_remove(0);
            assert_eq!(alone, together[range], "{:?} at {}", self.shape, positions[row]);
        }
    }
}

#[test]
fn rows_together_and_alone_have_the_same_bits() {
    if !can_run() {
        return;
    }
    // Query heads of a kv head: 7, 1, more than registers have rows, 3; then heads that are too wide for the unit.
    for shape in [(14, 2, 64), (4, 4, 128), (35, 1, 32), (6, 2, 96), (2, 1, 256)] {
        let mut attention = Attention::new(shape, 301);
        // Steps of 32 that are whole, and that end with the first or the second of a pair; two blocks.
        let positions: Vec<usize> = [0, 1, 2, 30, 31, 32, 255].into_iter().chain(250..271).collect();
        attention.check(&positions, &vec![1.0; positions.len()]);
        attention.check(&[300], &[1.0]);
        attention.check(&[38, 37, 290, 7], &[0.0, 0.0, 1.0, 0.0]);
    }
}

#[test]
fn sixteen_queries_share_a_register() {
    if !can_run() || qwen2c_matrix_unit::prepare() {
        return;
    }
    let mut attention = Attention::new((14, 2, 64), 300);
    let positions: Vec<f32> = (256..288).map(|position| position as f32).collect();
    let given = [attention.queries(32), positions, vec![1.0; 32]];
    attention.request.max_rows = 32;
    qwen2c_matrix_unit::take_counts();
    run(&target(), &attention.request, 32, &given, &[], &mut attention.caches);
    let (queries, kv_heads, rows, columns) = (32 * 7, 2, 16, 16);
    let tiles = kv_heads * queries / rows;
    // A tile's last query sees a block of 256 and 3 to 32 positions, one step, of the next.
    let (steps, blocks) = (9, 2);
    let of_scores = tiles * steps * 2 * (64 / 32);
    let of_values = tiles * steps * (64 / columns);
    let found = qwen2c_matrix_unit::take_counts();
    assert_eq!(found.products, of_scores + of_values);
    let (of_queries, of_weights) = (tiles * blocks * (64 / 32), tiles * steps);
    let of_zeros = tiles * blocks * (64 / columns);
    assert_eq!(found.loads, found.products + of_queries + of_weights + of_zeros);
    assert_eq!(found.stores, tiles * (steps * 2 + blocks * (64 / columns)));
}

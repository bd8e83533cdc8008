//! Whole models: what holds whatever the numbers are.

use qwen2c_request::Element;

use crate::{
    ExpertConfig, Family, Graph, GraphOptions, Interpreter, ModelConfig, Rope, RopeScaling, RopeTable,
    SourceError, TensorSource, WeightSource, WeightStorage, build_graph,
};

/// Tensors of small numbers that follow from the tensor's name and the element's place.
struct Hashed;

impl TensorSource for Hashed {
    fn read_rows(
        &self,
        tensor: &str,
        columns: u64,
        first_row: u64,
        out: &mut [f32],
    ) -> Result<(), SourceError> {
        let name =
            tensor.bytes().fold(7_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        for (place, element) in (first_row * columns..).zip(out) {
            let mixed = (name ^ place).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            *element = ((mixed >> 40) as f32 / (1_u64 << 24) as f32 - 0.5) * 0.5;
        }
        Ok(())
    }
}

/// A dense layer and a sparse one.
fn graph(dtype: Element) -> Graph {
    let config = ModelConfig {
        name: "tiny".to_owned(),
        family: Family::Qwen2Moe,
        hidden: 24,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        intermediate: 31,
        vocabulary: 17,
        qkv_bias: true,
        tied_embedding: false,
        epsilon: 1e-6,
        rope: Rope { theta: 100.0, scaling: RopeScaling::None },
        max_context: 8,
        experts: Some(ExpertConfig {
            experts: 5,
            experts_per_token: 2,
            intermediate: 9,
            shared_intermediate: 11,
            normalize_weights: true,
            sparse_step: 2,
            dense_layers: Vec::new(),
        }),
    };
    let mut graph = build_graph(
        &config,
        &GraphOptions { dtype, storage: WeightStorage::Elements, context: 8, slots: 2, layers: None },
    );
    let table = RopeTable { inverse_frequencies: vec![1.0, 0.2, 0.05], attention_factor: 1.0 };
    graph.weights[0].source = WeightSource::RopeTable(table);
    graph
}

const TOKENS: [u32; 6] = [3, 16, 0, 3, 9, 12];

/// Logits of all rows of one step.
fn step(interpreter: &mut Interpreter<'_>, tokens: &[u32], first: u32, slots: &[u32]) -> Vec<f32> {
    let rows: Vec<u32> = (0..tokens.len() as u32).collect();
    let positions: Vec<u32> = rows.iter().map(|row| first + row).collect();
    interpreter.step(tokens, &positions, slots, &rows).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn steps_of_any_size_give_the_same_bits() {
    for dtype in [Element::F32, Element::Bf16, Element::F16] {
        let graph = graph(dtype);
        let run = |rows: usize| {
            let mut interpreter = Interpreter::new(&graph, &Hashed).expect("a valid graph");
            let chunks = TOKENS.chunks(rows).enumerate();
            let step = |(index, chunk): (usize, &[u32])| {
                step(&mut interpreter, chunk, (index * rows) as u32, &vec![0; chunk.len()])
            };
            chunks.flat_map(step).collect::<Vec<f32>>()
        };
        let at_once = run(TOKENS.len());
        assert_eq!(at_once.len(), TOKENS.len() * 17);
        assert!(at_once.iter().all(|logit| logit.is_finite()) && at_once[0] != at_once[17]);
        for rows in [1, 2, 4] {
            assert_eq!(run(rows), at_once, "{dtype}, {rows} rows");
        }
    }
}

#[test]
fn slots_do_not_see_each_other() {
    let graph = graph(Element::F32);
    let alone = |tokens: &[u32]| {
        let mut interpreter = Interpreter::new(&graph, &Hashed).expect("a valid graph");
        step(&mut interpreter, tokens, 0, &vec![1; tokens.len()])
    };
    let (first, second) = ([3, 16], [5, 6]);
    let mut interpreter = Interpreter::new(&graph, &Hashed).expect("a valid graph");
    let both = interpreter.step(&[3, 5, 16, 6], &[0, 0, 1, 1], &[0, 1, 0, 1], &[0, 2, 1, 3]);
    assert_eq!(both.expect("a step"), [alone(&first), alone(&second)].concat());
}

#[test]
fn numbers_out_of_range_are_said() {
    let graph = graph(Element::F32);
    let message = |token: u32, position: u32, slot: u32, row: u32| {
        let mut interpreter = Interpreter::new(&graph, &Hashed).expect("a valid graph");
        interpreter.step(&[token], &[position], &[slot], &[row]).expect_err("must fail").to_string()
    };
    assert_eq!(message(17, 0, 0, 0), "`token` holds 17, needs less than 17");
    assert_eq!(message(0, 8, 0, 0), "`position` holds 8, needs less than 8");
    assert_eq!(message(0, 0, 2, 0), "`slot` holds 2, needs less than 2");
    assert_eq!(message(0, 0, 0, 1), "`logit_rows` holds 1, needs less than 1");
    assert_eq!(message(u32::MAX, 0, 0, 0), "input `token` holds a number above 2^31");
}

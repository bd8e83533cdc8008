//! What `PROGRAM self-test` compares with: logits that the graph interpreter computes at build.
//!
//! The whole model would take the interpreter minutes, so a short one stands for it: the embedding, the
//! first layer of each kind, and 64 rows of the head. Weights are read as they are needed, which works
//! for a model of any size.

use qwen2c_format::{Diagnostic, SelfTestRecord};
use qwen2c_graph::passes::{PASSES, PassContext, ROUNDING_PASSES, run_passes};
use qwen2c_graph::{
    Graph, GraphOptions, InterpretError, Interpreter, ModelConfig, SourceError, TensorSource, WeightPart,
    WeightSource, WeightStorage, build_graph,
};
use qwen2c_request::{Element, Quantization, QuantizedRows, Size, TargetDescription};

use crate::failure::Failure;
use crate::weights::unreadable;

/// Most ids of the test.
const MOST_TOKENS: u64 = 8;

/// Most logits of a row that are compared.
const MOST_COLUMNS: u64 = 64;

/// Name under which the chosen rows of the head are read.
const CHOSEN_HEAD: &str = "self_test.head";

/// The fixed ids: spread over the vocabulary, and never more than the context holds.
pub(crate) fn tokens(config: &ModelConfig, context: u64) -> Vec<u32> {
    let count = MOST_TOKENS.min(context);
    (0..count)
        .map(|index| ((index * config.vocabulary / MOST_TOKENS + 7 * index + 1) % config.vocabulary) as u32)
        .collect()
}

/// The first layer of each kind.
pub(crate) fn layers(config: &ModelConfig) -> Vec<u64> {
    let mut layers: Vec<u64> = [false, true]
        .into_iter()
        .filter_map(|is_sparse| (0..config.layers).find(|layer| config.is_sparse(*layer) == is_sparse))
        .collect();
    layers.sort_unstable();
    layers
}

/// How the program rounds.
#[derive(Clone, Debug)]
pub(crate) struct Rounding {
    /// Activations and plain weights.
    pub(crate) dtype: Element,
    /// Linear weights.
    pub(crate) storage: WeightStorage,
    /// Activations are rounded to integers in front of quantized weights.
    pub(crate) multiplies_integers: bool,
    /// Attention rounds queries and weights to bf16.
    pub(crate) multiplies_bf16_pairs: bool,
}

/// Computes the record.
///
/// # Errors
///
/// When a tensor cannot be read.
pub(crate) fn record(
    config: &ModelConfig,
    rounding: Rounding,
    context: u64,
    source: &dyn TensorSource,
) -> Result<SelfTestRecord, Failure> {
    let Rounding { dtype, storage, multiplies_integers, multiplies_bf16_pairs } = rounding;
    let tokens = tokens(config, context);
    let rows = tokens.len() as u64;
    let options = GraphOptions { dtype, storage, context: rows, slots: 1, layers: Some(layers(config)) };
    let mut graph = build_graph(config, &options);
    // Fewer launches change no bit.
    let target =
        TargetDescription { multiplies_integers, multiplies_bf16_pairs, ..TargetDescription::default() };
    let context = PassContext { config, target: &target, max_rows: rows };
    resolve(&mut graph, &context)?;
    let count = MOST_COLUMNS.min(config.vocabulary);
    let columns: Vec<u32> = (0..count).map(|index| (index * config.vocabulary / count) as u32).collect();
    let head = choose_head_rows(&mut graph, &columns)?;
    let source = ChosenRows { source, head: &head, rows: &columns };
    let mut interpreter = Interpreter::new(&graph, &source).map_err(refused)?;
    let positions: Vec<u32> = (0..rows as u32).collect();
    let slots = vec![0; tokens.len()];
    let logits = interpreter.step(&tokens, &positions, &slots, &positions).map_err(refused)?;
    let tolerance = if dtype == Element::F32 { 1e-4 } else { 2e-2 };
    Ok(SelfTestRecord { tokens, columns, logits, tolerance })
}

fn refused(error: InterpretError) -> Failure {
    match error {
        InterpretError::Weight { name, cause } => unreadable(&name, cause),
        error => Failure::Bug(Diagnostic::new(error.to_string()).at("the self-test's graph")),
    }
}

/// Runs the passes that say what is computed: the mandatory ones, because the interpreter needs the rotary
/// table, and the rounding of activations and of attention. Nothing is fused, so that the reference does not depend on the
/// passes that it is to judge.
fn resolve(graph: &mut Graph, context: &PassContext<'_>) -> Result<(), Failure> {
    let fusions = PASSES
        .iter()
        .filter(|pass| pass.optional)
        .map(|pass| pass.name)
        .filter(|name| !ROUNDING_PASSES.contains(name));
    run_passes(graph, context, &fusions.collect(), &mut |_, _, _| {})
        .map(|_| ())
        .map_err(|error| Failure::Bug(Diagnostic::new(error.to_string()).at("the self-test's graph")))
}

/// Replaces the head's weight by some of its rows; returns the tensor it came from.
fn choose_head_rows(graph: &mut Graph, columns: &[u32]) -> Result<String, Failure> {
    let bug = || Failure::Bug(Diagnostic::new("the self-test's graph does not end in a projection"));
    let logits = *graph.outputs.first().ok_or_else(bug)?;
    let head = graph.operations.iter().position(|op| op.outputs.contains(&logits)).ok_or_else(bug)?;
    let original = *graph.operations[head].weights.first().ok_or_else(bug)?;
    let mut weight = graph.weight(original).clone();
    let WeightSource::Tensors(parts) = &weight.source else { return Err(bug()) };
    let tensor = parts.first().ok_or_else(bug)?.tensor.clone();
    let rows = columns.len() as u64;
    CHOSEN_HEAD.clone_into(&mut weight.name);
    weight.source =
        WeightSource::Tensors(vec![WeightPart { tensor: CHOSEN_HEAD.to_owned(), rows, padded_rows: rows }]);
    weight.ty.dimensions.first_mut().ok_or_else(bug)?.size = Size::Constant(rows);
    let chosen = graph.add_weight(weight);
    graph.operations[head].weights = vec![chosen];
    graph.values[logits.0 as usize].ty.dimensions.last_mut().ok_or_else(bug)?.size = Size::Constant(rows);
    Ok(tensor)
}

/// A source in which [`CHOSEN_HEAD`] consists of single rows of another tensor.
struct ChosenRows<'a> {
    source: &'a dyn TensorSource,
    head: &'a str,
    rows: &'a [u32],
}

impl TensorSource for ChosenRows<'_> {
    fn read_rows(
        &self,
        tensor: &str,
        columns: u64,
        first_row: u64,
        out: &mut [f32],
    ) -> Result<(), SourceError> {
        if tensor != CHOSEN_HEAD {
            return self.source.read_rows(tensor, columns, first_row, out);
        }
        let rows = self.rows.iter().skip(first_row as usize);
        for (out, row) in out.chunks_exact_mut(columns as usize).zip(rows) {
            self.source.read_rows(self.head, columns, u64::from(*row), out)?;
        }
        Ok(())
    }

    fn quantization(&self, tensor: &str) -> Option<Quantization> {
        self.source.quantization(if tensor == CHOSEN_HEAD { self.head } else { tensor })
    }

    fn read_groups(
        &self,
        tensor: &str,
        columns: u64,
        first_row: u64,
        out: &mut QuantizedRows<'_>,
    ) -> Result<(), SourceError> {
        if tensor != CHOSEN_HEAD {
            return self.source.read_groups(tensor, columns, first_row, out);
        }
        let rows = self.rows.iter().skip(first_row as usize);
        let count = out.integers.len() / columns as usize;
        for (index, row) in rows.take(count).enumerate() {
            let mut place = out.part(count, index..index + 1);
            self.source.read_groups(self.head, columns, u64::from(*row), &mut place)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use qwen2c_checkpoint::RandomWeights;
    use qwen2c_graph::{ExpertConfig, Family, ModelConfig, Rope, RopeScaling};
    use qwen2c_request::{Element, TargetDescription};

    use super::{PassContext, Rounding, layers, record, tokens};

    const EXACT: Rounding = Rounding {
        dtype: Element::F32,
        storage: qwen2c_graph::WeightStorage::Elements,
        multiplies_integers: false,
        multiplies_bf16_pairs: false,
    };

    fn config() -> ModelConfig {
        ModelConfig {
            name: "tiny".to_owned(),
            family: Family::Qwen2Moe,
            hidden: 16,
            layers: 4,
            heads: 2,
            kv_heads: 1,
            head_dim: 8,
            intermediate: 24,
            vocabulary: 131,
            qkv_bias: true,
            tied_embedding: true,
            epsilon: 1e-6,
            rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
            max_context: 64,
            experts: Some(ExpertConfig {
                experts: 3,
                experts_per_token: 2,
                intermediate: 8,
                shared_intermediate: 12,
                normalize_weights: false,
                sparse_step: 2,
                dense_layers: vec![1],
            }),
        }
    }

    #[test]
    fn one_layer_of_each_kind_is_tested() {
        assert_eq!(layers(&config()), [0, 3]);
        assert_eq!(layers(&ModelConfig { experts: None, ..config() }), [0]);
    }

    #[test]
    fn ids_lie_in_the_vocabulary_and_fit_the_context() {
        assert_eq!(tokens(&config(), 64).len(), 8);
        assert_eq!(tokens(&config(), 3).len(), 3);
        for vocabulary in [1, 2, 7, 151_936] {
            let config = ModelConfig { vocabulary, ..config() };
            assert!(tokens(&config, 64).iter().all(|token| u64::from(*token) < vocabulary));
        }
    }

    #[test]
    fn a_tied_head_gives_a_logit_for_every_chosen_row() {
        let record = record(&config(), EXACT, 64, &RandomWeights::new(5)).unwrap();
        assert_eq!(record.logits.len(), record.tokens.len() * record.columns.len());
        assert_eq!(record.columns.len(), 64);
        assert!(record.columns.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(record.logits.iter().all(|logit| logit.is_finite() && *logit != 0.0));
    }

    #[test]
    fn chosen_rows_are_those_of_the_whole_head() {
        // With a vocabulary of 64 every row is chosen; doubling it halves the choice.
        let whole = ModelConfig { vocabulary: 64, tied_embedding: false, ..config() };
        let record = record(&whole, EXACT, 1, &RandomWeights::new(5)).unwrap();
        let options = qwen2c_graph::GraphOptions {
            dtype: Element::F32,
            storage: qwen2c_graph::WeightStorage::Elements,
            context: 1,
            slots: 1,
            layers: Some(layers(&whole)),
        };
        let mut graph = qwen2c_graph::build_graph(&whole, &options);
        let target = TargetDescription::default();
        let context = PassContext { config: &whole, target: &target, max_rows: 1 };
        super::resolve(&mut graph, &context).unwrap();
        let source = RandomWeights::new(5);
        let mut interpreter = qwen2c_graph::Interpreter::new(&graph, &source).unwrap();
        let logits = interpreter.step(&record.tokens, &[0], &[0], &[0]).unwrap();
        assert_eq!(record.logits, logits);
    }
}

//! What a build will do: the arguments, checked and resolved as far as that needs no checkpoint.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use qwen2c_checkpoint::{ModelDescription, ModelRequest};
use qwen2c_format::Diagnostic;
use qwen2c_graph::WeightStorage;
use qwen2c_graph::passes::{
    PERSISTENT_DECODE, QUANTIZE_ACTIVATIONS, ROUND_ATTENTION, SelectionError, select_passes,
};
use qwen2c_request::{Element, Target};
use qwen2c_targets::{AnyTarget, TargetError, known_targets, resolve_target};

use crate::arguments::BuildArguments;
use crate::failure::Failure;
use crate::ptxas;
use crate::quant::{Quant, default_quant, nothing_to_keep, parse_quant};
use crate::self_test::Rounding;
use crate::stage::Stage;
use crate::suggestion::nearest;

/// Largest default context: more would cost memory that few conversations need.
const MOST_DEFAULT_POSITIONS: u64 = 8192;

/// A build that can start.
#[derive(Clone, Debug)]
pub(crate) struct BuildRequest {
    /// `--model`.
    pub(crate) model: String,
    /// `--weights`.
    pub(crate) weights: Option<String>,
    /// `--revision`.
    pub(crate) revision: Option<String>,
    /// The target.
    pub(crate) target: AnyTarget,
    /// Whether `--quant` was left out.
    pub(crate) quant_is_default: bool,
    /// `--quant`. Where it was left out, [`BuildRequest::for_model`] says.
    pub(crate) quant: Quant,
    /// Type of activations and weights.
    pub(crate) dtype: Element,
    /// `--context`.
    pub(crate) context: Option<u64>,
    /// Passes that do not run.
    pub(crate) disabled_passes: BTreeSet<&'static str>,
    /// Stages whose text is written.
    pub(crate) emit: BTreeSet<Stage>,
    /// `--emit-dir`.
    pub(crate) emit_directory: Option<PathBuf>,
    /// `--output`.
    pub(crate) output: Option<PathBuf>,
    /// `--ptxas`.
    pub(crate) ptxas: Option<PathBuf>,
    /// Print the account of time.
    pub(crate) time_passes: bool,
    /// Print nothing but errors.
    pub(crate) quiet: bool,
}

impl BuildRequest {
    /// Checks the arguments.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] for a name that does not exist, [`Failure::Input`] for what this version
    /// cannot do yet.
    pub(crate) fn resolve(arguments: &BuildArguments) -> Result<Self, Failure> {
        let target = parse_target(&arguments.target)?;
        Ok(Self {
            model: arguments.model.clone(),
            weights: arguments.weights.clone(),
            revision: arguments.revision.clone(),
            quant_is_default: arguments.quant.is_none(),
            quant: arguments.quant.as_deref().map_or(Ok(Quant::None), parse_quant)?,
            dtype: parse_dtype(&arguments.dtype)?,
            context: arguments.context,
            disabled_passes: disabled_passes(arguments, &target)?,
            target,
            emit: parse_stages(&arguments.emit)?,
            emit_directory: arguments.emit_dir.clone(),
            output: arguments.output.clone(),
            ptxas: arguments.ptxas.clone(),
            time_passes: arguments.time_passes,
            quiet: arguments.quiet,
        })
    }

    /// The request with what the model decides.
    ///
    /// # Errors
    ///
    /// When the checkpoint is not quantized and that should be kept.
    pub(crate) fn for_model(&self, description: &ModelDescription) -> Result<Self, Diagnostic> {
        let mut request = self.clone();
        if request.quant_is_default {
            request.quant = default_quant(description);
        }
        if request.quant == Quant::Keep && description.quantized_tensors.is_empty() {
            return Err(nothing_to_keep());
        }
        Ok(request)
    }

    /// Whether products with quantized weights round their activations to integers.
    pub(crate) fn multiplies_integers(&self) -> bool {
        let is_enabled = !self.disabled_passes.contains(&QUANTIZE_ACTIVATIONS);
        is_enabled && self.target.description().multiplies_integers
    }

    /// Whether attention over a cache of bf16 rounds queries and weights.
    pub(crate) fn multiplies_bf16_pairs(&self) -> bool {
        let is_enabled = !self.disabled_passes.contains(&ROUND_ATTENTION);
        is_enabled && self.target.description().multiplies_bf16_pairs
    }

    /// NVIDIA's assembler: what `--ptxas` names unless that is `none`, else the one on `PATH`.
    pub(crate) fn assembler(&self) -> Option<PathBuf> {
        match &self.ptxas {
            Some(name) if name.as_os_str() == "none" => None,
            named => ptxas::find(named.as_deref()),
        }
    }

    /// How the program rounds, whose weights are stored in this way.
    pub(crate) fn rounding(&self, storage: WeightStorage) -> Rounding {
        Rounding {
            dtype: self.dtype,
            storage,
            multiplies_integers: self.multiplies_integers(),
            multiplies_bf16_pairs: self.multiplies_bf16_pairs(),
        }
    }

    /// What the readers of checkpoints need to know.
    pub(crate) fn model_request(&self) -> ModelRequest<'_> {
        ModelRequest {
            model: &self.model,
            weights: self.weights.as_deref(),
            revision: self.revision.as_deref(),
        }
    }

    /// Where the program goes: `-o`, or `<model>-<quant>-<target>` in the working directory.
    pub(crate) fn output_path(&self, model_name: &str) -> PathBuf {
        self.output.clone().unwrap_or_else(|| {
            let quant = self.quant.to_string().replace(':', "-");
            PathBuf::from(format!("{}-{quant}-{}", file_name(model_name), self.target.description().name))
        })
    }

    /// Where the stages' text goes.
    pub(crate) fn emit_path(&self, output: &Path) -> PathBuf {
        self.emit_directory.clone().unwrap_or_else(|| {
            let mut name = output.as_os_str().to_owned();
            name.push(".emit");
            PathBuf::from(name)
        })
    }

    /// Positions the program serves.
    ///
    /// # Errors
    ///
    /// When `--context` exceeds what the model was made for.
    pub(crate) fn settle_context(&self, model_maximum: u64) -> Result<u64, Diagnostic> {
        match self.context {
            None => Ok(model_maximum.min(MOST_DEFAULT_POSITIONS)),
            Some(context) if context <= model_maximum => Ok(context),
            Some(context) => Err(Diagnostic::new("the context is longer than the model can serve")
                .at("`--context`")
                .found(format!("{context} positions"))
                .needed(format!("at most {model_maximum}"))
                .help("a longer context needs a `rope_scaling` of type `yarn` in the checkpoint's `config.json`")),
        }
    }
}

/// A model's name with nothing in it that a file name could not hold.
fn file_name(model_name: &str) -> String {
    let name: String = model_name
        .to_lowercase()
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() || "._+".contains(letter) { letter } else { '-' })
        .collect();
    let name = name.trim_matches(['-', '.']);
    if name.is_empty() { "model".to_owned() } else { name.to_owned() }
}

fn parse_target(names: &[String]) -> Result<AnyTarget, Failure> {
    resolve_target(names).map_err(|error| {
        let diagnostic = Diagnostic::new(error.to_string()).at("`--target`");
        match error {
            TargetError::MachineTooOld { .. } => {
                Failure::Input(diagnostic.help("name a target that the program is to run on"))
            }
            TargetError::Mixed { .. } => Failure::Usage(diagnostic.help("build one program for each target")),
            TargetError::Unknown { .. } | TargetError::UnknownFeature { .. } => {
                let names: Vec<&str> = known_targets().iter().map(|(name, _)| *name).collect();
                Failure::Usage(diagnostic.needed(format!("one of {}", names.join(", "))))
            }
        }
    })
}

fn parse_dtype(name: &str) -> Result<Element, Failure> {
    match Element::from_name(&name.to_ascii_lowercase()) {
        Some(element @ (Element::F32 | Element::Bf16 | Element::F16)) => Ok(element),
        _ => Err(Failure::Usage(
            Diagnostic::new("no such element type")
                .at("`--dtype`")
                .found(format!("`{name}`"))
                .needed("`f32`, `bf16` or `f16`"),
        )),
    }
}

fn disabled_passes<'a>(
    arguments: &'a BuildArguments,
    target: &AnyTarget,
) -> Result<BTreeSet<&'static str>, Failure> {
    let refused = |error: SelectionError| {
        Failure::Usage(Diagnostic::new(error.to_string()).help("`qwen2c passes` lists the passes"))
    };
    let names = |names: &'a [String]| names.iter().map(String::as_str);
    let disabled = select_passes(names(&arguments.no_pass), names(&arguments.pass)).map_err(refused)?;
    match target {
        AnyTarget::Cpu(_) if !disabled.contains(PERSISTENT_DECODE) => Err(Failure::Usage(
            Diagnostic::new(format!("pass `{PERSISTENT_DECODE}` is for CUDA devices alone"))
                .at("`--pass`")
                .found(format!("`--target {}`", target.description().name)),
        )),
        _ => Ok(disabled),
    }
}

fn parse_stages(names: &[String]) -> Result<BTreeSet<Stage>, Failure> {
    names.iter().map(|name| parse_stage(name)).collect()
}

fn parse_stage(name: &str) -> Result<Stage, Failure> {
    let lower_case = name.trim().to_ascii_lowercase();
    if let Some(stage) = Stage::from_mnemonic(&lower_case) {
        return Ok(stage);
    }
    let known = Stage::ALL.map(Stage::mnemonic);
    let mut diagnostic = Diagnostic::new(format!("no such stage `{name}`"))
        .at("`--emit`")
        .needed(format!("some of {}", known.join(", ")));
    if let Some(meant) = nearest(&lower_case, known) {
        diagnostic = diagnostic.help(format!("did you mean `{meant}`?"));
    }
    Err(Failure::Usage(diagnostic))
}

#[cfg(test)]
mod tests {
    use qwen2c_checkpoint::describe_model;
    use qwen2c_request::Quantization;

    use super::{BuildRequest, file_name};
    use crate::arguments::BuildArguments;
    use crate::failure::Failure;

    fn arguments() -> BuildArguments {
        BuildArguments {
            model: "0.5B".to_owned(),
            target: vec!["x86-64-v3".to_owned()],
            dtype: "bf16".to_owned(),
            // A name alone would be looked up in the cache of whoever runs the tests.
            weights: Some("random".to_owned()),
            ..BuildArguments::default()
        }
    }

    fn refusal(change: impl FnOnce(&mut BuildArguments)) -> Failure {
        let mut arguments = arguments();
        change(&mut arguments);
        BuildRequest::resolve(&arguments).expect_err("the arguments are wrong")
    }

    #[test]
    fn the_default_output_is_named_after_model_quantization_and_target() {
        let request = BuildRequest::resolve(&arguments()).unwrap();
        let description = describe_model(&request.model_request()).unwrap();
        let output = request.for_model(&description).unwrap().output_path("Qwen2/0.5B Instruct");
        assert_eq!(output.to_str(), Some("qwen2-0.5b-instruct-int8-x86-64-v3"));
        assert_eq!(request.emit_path(&output).to_str(), Some("qwen2-0.5b-instruct-int8-x86-64-v3.emit"));
    }

    #[test]
    fn the_quantization_follows_the_model_unless_it_was_named() {
        let found = |change: &dyn Fn(&mut BuildArguments), is_quantized| {
            let mut arguments = arguments();
            change(&mut arguments);
            let request = BuildRequest::resolve(&arguments).unwrap();
            let mut description = describe_model(&request.model_request()).unwrap();
            if is_quantized {
                description
                    .quantized_tensors
                    .insert("lm_head.weight".to_owned(), Quantization::signed(8, 32));
            }
            request.for_model(&description).map(|request| request.quant.to_string())
        };
        assert_eq!(found(&|_| {}, false).unwrap(), "int8");
        assert_eq!(found(&|arguments| arguments.model = "qwen1.5-1.8b".to_owned(), false).unwrap(), "int8");
        assert_eq!(found(&|arguments| arguments.model = "qwen2.5-3b".to_owned(), false).unwrap(), "int4");
        assert_eq!(found(&|_| {}, true).unwrap(), "keep");
        assert_eq!(found(&|arguments| arguments.quant = Some("none".to_owned()), false).unwrap(), "none");
        assert_eq!(
            found(&|arguments| arguments.quant = Some("int4:64".to_owned()), true).unwrap(),
            "int4:64"
        );
        let keep = |arguments: &mut BuildArguments| arguments.quant = Some("keep".to_owned());
        assert_eq!(found(&keep, true).unwrap(), "keep");
        let refusal = found(&keep, false).unwrap_err().to_string();
        assert!(refusal.contains("`--quant none`"), "{refusal}");
    }

    #[test]
    fn a_hostile_model_name_cannot_leave_the_directory() {
        assert_eq!(file_name("../../etc/passwd"), "etc-passwd");
        assert_eq!(file_name("…"), "model");
    }

    #[test]
    fn the_context_defaults_to_the_smaller_of_model_and_8192() {
        let mut arguments = arguments();
        let request = BuildRequest::resolve(&arguments).unwrap();
        assert_eq!(request.settle_context(2048), Ok(2048));
        assert_eq!(request.settle_context(32768), Ok(8192));
        arguments.context = Some(20000);
        let request = BuildRequest::resolve(&arguments).unwrap();
        assert_eq!(request.settle_context(32768), Ok(20000));
        let refused = request.settle_context(8192).unwrap_err();
        assert_eq!(refused.found.as_deref(), Some("20000 positions"));
    }

    #[test]
    fn targets_are_one_known_name() {
        let failure = refusal(|arguments| arguments.target = vec!["sm80".to_owned()]);
        assert_eq!(failure.exit_code(), 2);
        assert!(failure.to_string().contains("did you mean `sm_80`"), "{failure}");
        let both = vec!["x86-64-v3".to_owned(), "sm_80".to_owned()];
        assert_eq!(refusal(|arguments| arguments.target = both).exit_code(), 2);
    }

    #[test]
    fn passes_can_be_switched_off_and_on_again_unless_mandatory() {
        let mut arguments = arguments();
        arguments.no_pass = vec!["fuse_attention".to_owned(), "merge_gate_and_up".to_owned()];
        arguments.pass = vec!["merge_gate_and_up".to_owned(), "resolve_rope".to_owned()];
        let request = BuildRequest::resolve(&arguments).unwrap();
        assert_eq!(Vec::from_iter(request.disabled_passes), ["fuse_attention", "persistent_decode"]);
        let failure = refusal(|arguments| arguments.no_pass = vec!["resolve_rope".to_owned()]);
        assert_eq!(failure.exit_code(), 2);
        let failure = refusal(|arguments| arguments.no_pass = vec!["fuse_atention".to_owned()]);
        assert!(failure.to_string().contains("fuse_attention"), "{failure}");
    }

    #[test]
    fn a_pass_of_devices_is_refused_on_a_processor() {
        let mut arguments = arguments();
        arguments.pass = vec!["persistent_decode".to_owned()];
        arguments.target = vec!["sm_80".to_owned()];
        assert!(BuildRequest::resolve(&arguments).unwrap().disabled_passes.is_empty());
        arguments.target = vec!["x86-64-v3".to_owned()];
        let failure = BuildRequest::resolve(&arguments).unwrap_err();
        assert_eq!(failure.exit_code(), 2);
        assert!(failure.to_string().contains("for CUDA devices alone"), "{failure}");
    }

    #[test]
    fn stages_and_types_are_checked() {
        let failure = refusal(|arguments| arguments.emit = vec!["graph".to_owned(), "grahp".to_owned()]);
        assert_eq!(failure.exit_code(), 2);
        assert!(failure.to_string().contains("did you mean `graph`"), "{failure}");
        assert_eq!(refusal(|arguments| arguments.dtype = "i32".to_owned()).exit_code(), 2);
    }
}

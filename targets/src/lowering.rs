//! MLIR: its context, its messages, its passes, and the bridge to LLVM's own IR.

use std::cell::RefCell;
use std::rc::Rc;

use inkwell::context::Context as LlvmContext;
use inkwell::module::Module as LlvmModule;
use melior::Context;
use melior::dialect::DialectRegistry;
use melior::ir::Module;
use melior::ir::operation::OperationLike;
use melior::pass::PassManager;
use melior::utility::{
    parse_pass_pipeline, register_all_dialects, register_all_llvm_translations, register_all_passes,
};

/// `convert-to-llvm` takes all dialects in one sweep; what `scf` leaves as `cf` goes with it.
const LOWERING: &str = "builtin.module(convert-scf-to-cf,convert-to-llvm,reconcile-unrealized-casts)";

/// Merges the constants and addresses that the builder repeats, so that the text can be read.
const TIDYING: &str = "builtin.module(canonicalize,cse)";

/// An MLIR context with all dialects, and the messages it gave.
pub(crate) struct Lowering {
    pub(crate) context: Context,
    messages: Rc<RefCell<Vec<String>>>,
}

impl Lowering {
    /// A fresh context.
    pub(crate) fn new() -> Self {
        let registry = DialectRegistry::new();
        register_all_dialects(&registry);
        register_all_passes();
        let context = Context::new();
        context.append_dialect_registry(&registry);
        context.load_all_available_dialects();
        register_all_llvm_translations(&context);
        let messages = Rc::new(RefCell::new(Vec::new()));
        let sink = Rc::clone(&messages);
        context.attach_diagnostic_handler(move |diagnostic| {
            sink.borrow_mut().push(format!("{}: {diagnostic}", diagnostic.location()));
            true
        });
        Self { context, messages }
    }

    /// What MLIR said since the last call.
    pub(crate) fn take_messages(&self) -> Vec<String> {
        self.messages.take()
    }

    /// Verifies `module` and removes what it says twice.
    pub(crate) fn tidy(&self, module: &mut Module<'_>) -> Result<(), Vec<String>> {
        if !module.as_operation().verify() {
            return Err(self.take_messages());
        }
        self.run_passes(module, TIDYING)
    }

    /// Lowers `module` to the LLVM dialect.
    pub(crate) fn lower(&self, module: &mut Module<'_>) -> Result<(), Vec<String>> {
        self.run_passes(module, LOWERING)
    }

    fn run_passes(&self, module: &mut Module<'_>, pipeline: &str) -> Result<(), Vec<String>> {
        let passes = PassManager::new(&self.context);
        if parse_pass_pipeline(passes.as_operation_pass_manager(), pipeline).is_err()
            || passes.run(module).is_err()
        {
            return Err(self.take_messages());
        }
        Ok(())
    }
}

/// The module in LLVM's own IR.
pub(crate) fn translate<'l>(llvm: &'l LlvmContext, module: &Module<'_>) -> Option<LlvmModule<'l>> {
    // SAFETY: the operation is a module in the LLVM dialect with its translations registered; the result is
    // a new module of `llvm`, owned by nobody else, or null.
    unsafe {
        let raw = mlir_sys::mlirTranslateModuleToLLVMIR(module.as_operation().to_raw(), llvm.raw().cast());
        (!raw.is_null()).then(|| LlvmModule::new(raw.cast()))
    }
}

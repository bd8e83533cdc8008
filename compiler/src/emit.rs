//! The text of stages, written where `--emit` asks for it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use crate::failure::Failure;
use crate::stage::Stage;

/// The folder for text, and which stages go there.
#[derive(Clone, Debug)]
pub(crate) struct EmittedText {
    folder: PathBuf,
    stages: BTreeSet<Stage>,
}

impl EmittedText {
    /// Text of `stages` goes to `folder`; it is created when something is written.
    pub(crate) fn new(folder: PathBuf, stages: BTreeSet<Stage>) -> Self {
        Self { folder, stages }
    }

    /// Whether the stage's text is wanted.
    pub(crate) fn wants(&self, stage: Stage) -> bool {
        self.stages.contains(&stage)
    }

    /// Writes a stage that is one text, if it is wanted: `<folder>/<stage>.<extension>`.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub(crate) fn stage(
        &self,
        stage: Stage,
        extension: &str,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        if !self.wants(stage) {
            return Ok(());
        }
        self.write(PathBuf::from(format!("{stage}.{extension}")), &text())
    }

    /// Writes a kernel's text of a stage: `<folder>/<stage>/<kernel>.<extension>`.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub(crate) fn kernel(
        &self,
        stage: Stage,
        kernel: &str,
        extension: &str,
        text: Option<&str>,
    ) -> Result<(), Failure> {
        match text {
            Some(text) if self.wants(stage) => {
                self.write(PathBuf::from(stage.mnemonic()).join(format!("{kernel}.{extension}")), text)
            }
            _ => Ok(()),
        }
    }

    fn write(&self, name: PathBuf, text: &str) -> Result<(), Failure> {
        let path = self.folder.join(name);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)
                .map_err(|error| Failure::file("create the folder of `--emit`", directory, &error))?;
        }
        fs::write(&path, text).map_err(|error| Failure::file("write the text of a stage", &path, &error))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::EmittedText;
    use crate::stage::Stage;

    #[test]
    fn only_wanted_stages_are_printed_and_written() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("program.emit");
        let emitted = EmittedText::new(folder.clone(), BTreeSet::from([Stage::Graph, Stage::Mlir]));
        emitted.stage(Stage::Plan, "txt", || unreachable!("nobody asked for the plan")).unwrap();
        assert!(!folder.exists());
        emitted.stage(Stage::Graph, "txt", || "graph".to_owned()).unwrap();
        emitted.kernel(Stage::Mlir, "embed_8", "mlir", Some("module {}")).unwrap();
        emitted.kernel(Stage::Llvm, "embed_8", "ll", Some("define")).unwrap();
        assert_eq!(std::fs::read_to_string(folder.join("graph.txt")).unwrap(), "graph");
        assert_eq!(std::fs::read_to_string(folder.join("mlir/embed_8.mlir")).unwrap(), "module {}");
        assert!(!folder.join("llvm").exists());
    }
}

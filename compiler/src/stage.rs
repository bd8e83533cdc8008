//! The stages of a build: one list for `--emit`, timing and documentation.

use std::fmt;

/// A stage, in the order of the build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// The configuration with every default explicit.
    Config,
    /// One operation per mathematical operation.
    Graph,
    /// One operation per kernel.
    Fused,
    /// Every kernel with tiles, layouts and cost.
    Scheduled,
    /// Every buffer and weight with its place.
    Plan,
    /// One verified MLIR module per kernel.
    Mlir,
    /// One LLVM module per kernel.
    Llvm,
    /// One listing of a processor's assembly per kernel.
    Asm,
    /// One PTX module per kernel of a CUDA device.
    Ptx,
    /// The manifest of the program.
    Manifest,
}

impl Stage {
    /// All stages in the order of the build.
    pub(crate) const ALL: [Self; 10] = [
        Self::Config,
        Self::Graph,
        Self::Fused,
        Self::Scheduled,
        Self::Plan,
        Self::Mlir,
        Self::Llvm,
        Self::Asm,
        Self::Ptx,
        Self::Manifest,
    ];

    /// The name on the command line and of the emitted file or folder.
    pub(crate) const fn mnemonic(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Graph => "graph",
            Self::Fused => "fused",
            Self::Scheduled => "scheduled",
            Self::Plan => "plan",
            Self::Mlir => "mlir",
            Self::Llvm => "llvm",
            Self::Asm => "asm",
            Self::Ptx => "ptx",
            Self::Manifest => "manifest",
        }
    }

    /// What is true after the stage.
    pub(crate) const fn sentence(self) -> &'static str {
        match self {
            Self::Config => "every default of the configuration is explicit, with where it came from",
            Self::Graph => "one operation per mathematical operation, element types explicit",
            Self::Fused => "one operation per kernel",
            Self::Scheduled => "every kernel has tiles, layouts and a cost",
            Self::Plan => "every buffer has an offset and a live range; no two live buffers overlap",
            Self::Mlir => "every kernel is a verified MLIR module",
            Self::Llvm => "every kernel is LLVM IR",
            Self::Asm => "every kernel is machine code; the object has no undefined symbol",
            Self::Ptx => "every kernel is a PTX module of its own; it calls nothing",
            Self::Manifest => "the program's facts are those that `inspect` prints",
        }
    }

    /// The stage with this name.
    pub(crate) fn from_mnemonic(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.mnemonic() == name)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.mnemonic())
    }
}

#[cfg(test)]
mod tests {
    use super::Stage;

    #[test]
    fn every_stage_is_found_by_its_mnemonic() {
        for stage in Stage::ALL {
            assert_eq!(Stage::from_mnemonic(stage.mnemonic()), Some(stage));
        }
        assert_eq!(Stage::from_mnemonic("sass"), None);
    }

    #[test]
    fn stages_are_listed_in_the_order_of_the_build() {
        assert!(Stage::ALL.windows(2).all(|pair| pair[0] < pair[1]));
    }
}

//! NVIDIA's assembler, where there is one: it turns PTX into the machine code of one architecture, so that a
//! driver need not do that at every start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use qwen2c_format::{DeviceImage, Diagnostic, ImageKind};

use crate::failure::Failure;

/// The assembler's name where it is looked for.
const NAME: &str = "ptxas";

/// The assembler that was named, or the one on `PATH`; none where there is none.
pub(crate) fn find(named: Option<&Path>) -> Option<PathBuf> {
    named.map(Path::to_path_buf).or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join(NAME)).find(|file| file.is_file())
    })
}

/// The machine code of a PTX image.
///
/// # Errors
///
/// When the assembler cannot be started, or refuses the PTX.
pub(crate) fn assemble(assembler: &Path, image: &DeviceImage) -> Result<DeviceImage, Failure> {
    let directory = tempfile::Builder::new()
        .prefix("qwen2c-ptxas-")
        .tempdir()
        .map_err(|error| Failure::file("create a directory to assemble in", &std::env::temp_dir(), &error))?;
    let ptx = directory.path().join("kernels.ptx");
    fs::write(&ptx, &image.bytes)
        .map_err(|error| Failure::file("write what is to be assembled", &ptx, &error))?;
    // Names are relative: the output must not depend on where it was made.
    let assembler_path = fs::canonicalize(assembler).map_err(|error| cannot_start(assembler, &error))?;
    let output = Command::new(assembler_path)
        .arg(format!("-arch=sm_{}", image.architecture))
        .args(["-o", "kernels.cubin", "kernels.ptx"])
        .current_dir(directory.path())
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| cannot_start(assembler, &error))?;
    let cubin = directory.path().join("kernels.cubin");
    if !output.status.success() || !cubin.is_file() {
        return Err(refused(assembler, image.architecture, &output.stdout, &output.stderr));
    }
    let bytes = fs::read(&cubin).map_err(|error| Failure::file("read what was assembled", &cubin, &error))?;
    Ok(DeviceImage { architecture: image.architecture, kind: ImageKind::Cubin, bytes })
}

fn cannot_start(assembler: &Path, error: &io::Error) -> Failure {
    Diagnostic::new(format!("cannot start `{}`", assembler.display()))
        .at("`--ptxas`")
        .cause(error.to_string())
        .help("name NVIDIA's `ptxas`, or leave it out: the program then holds PTX, which a driver compiles")
        .into()
}

fn refused(assembler: &Path, architecture: u32, stdout: &[u8], stderr: &[u8]) -> Failure {
    let mut diagnostic =
        Diagnostic::new(format!("`{}` makes no code for sm_{architecture}", assembler.display()));
    let messages = [stdout, stderr].concat();
    for line in String::from_utf8_lossy(&messages).lines().take(12) {
        diagnostic = diagnostic.cause(line.to_owned());
    }
    diagnostic
        .at("`--ptxas`")
        .help("use the `ptxas` of a newer CUDA toolkit, or `--ptxas none`: the program then holds PTX alone")
        .into()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use qwen2c_format::{DeviceImage, ImageKind};

    use super::{assemble, find};

    fn image() -> DeviceImage {
        DeviceImage { architecture: 80, kind: ImageKind::Ptx, bytes: b".version 7.0".to_vec() }
    }

    #[test]
    fn what_is_no_assembler_is_named() {
        let missing = assemble(Path::new("/nowhere/ptxas"), &image()).unwrap_err();
        assert_eq!(missing.exit_code(), 1);
        assert!(missing.to_string().contains("/nowhere/ptxas"), "{missing}");
        // `true` starts and succeeds, and makes nothing.
        let other = assemble(Path::new("/bin/true"), &image()).unwrap_err();
        assert!(other.to_string().contains("makes no code for sm_80"), "{other}");
    }

    #[test]
    fn a_named_assembler_comes_before_the_path() {
        assert_eq!(find(Some(Path::new("/nowhere/ptxas"))).as_deref(), Some(Path::new("/nowhere/ptxas")));
    }
}

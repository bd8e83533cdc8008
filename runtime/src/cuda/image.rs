//! Which of the program's images a device gets, and whether the driver understands it.
//!
//! Machine code (a cubin) runs on its own major version from its minor version on; PTX is compiled by the
//! driver for the device at hand, which takes a while the first time.

use std::rc::Rc;

use qwen2c_format::{DeviceImage, Diagnostic, ImageKind};

use super::driver::functions::Status;
use super::driver::{Context, Module, Version};

/// Setting it to 1 takes PTX even where there is a cubin.
pub(crate) const USE_PTX_VARIABLE: &str = "QWEN2C_CUDA_USE_PTX";

/// PTX versions in ascending order with the CUDA that brought them, as the driver writes versions. Older
/// ones every driver understands that has the functions this program needs.
const PTX_VERSIONS: [((u32, u32), Status); 10] = [
    ((8, 0), 12000),
    ((8, 1), 12010),
    ((8, 2), 12020),
    ((8, 3), 12030),
    ((8, 4), 12040),
    ((8, 5), 12050),
    ((8, 6), 12070),
    ((8, 7), 12080),
    ((8, 8), 12090),
    ((9, 0), 13000),
];

/// The images that a device of this architecture can run, the preferred one first.
pub(crate) fn choose_images(
    images: &[DeviceImage],
    architecture: u32,
    prefers_ptx: bool,
) -> Vec<&DeviceImage> {
    let newest = |kind: ImageKind| {
        let runs = |image: &&DeviceImage| match kind {
            ImageKind::Ptx => image.architecture <= architecture,
            ImageKind::Cubin => {
                image.architecture <= architecture && image.architecture / 10 == architecture / 10
            }
        };
        images.iter().filter(|image| image.kind == kind).filter(runs).max_by_key(|image| image.architecture)
    };
    let mut kinds = [ImageKind::Cubin, ImageKind::Ptx];
    if prefers_ptx {
        kinds.reverse();
    }
    kinds.into_iter().filter_map(newest).collect()
}

/// Loads the first of the images that the driver takes, and names it.
///
/// # Errors
///
/// The last image's failure, with those before as causes.
pub(crate) fn load(context: &Rc<Context>, images: &[&DeviceImage]) -> Result<(Module, String), Diagnostic> {
    let mut failures: Vec<Diagnostic> = Vec::new();
    for image in images {
        let name = image_name(image);
        match load_one(context, image, &name) {
            Ok(module) => return Ok((module, name)),
            Err(failure) => failures.push(failure),
        }
    }
    let last = failures.pop().unwrap_or_else(|| Diagnostic::new("the program holds no code for this device"));
    Err(failures.into_iter().fold(last, |last, earlier| {
        let causes = earlier.causes.join("; ");
        last.cause(format!("before that, {}: {causes}", earlier.title))
    }))
}

/// `PTX for sm_80`.
pub(crate) fn image_name(image: &DeviceImage) -> String {
    format!("{} for sm_{}", image.kind.name(), image.architecture)
}

fn load_one(context: &Rc<Context>, image: &DeviceImage, name: &str) -> Result<Module, Diagnostic> {
    match image.kind {
        ImageKind::Cubin => Module::load(context, &image.bytes, name),
        ImageKind::Ptx => {
            check_ptx_version(&image.bytes, context.driver().version())?;
            let text = [&image.bytes[..], &[0]].concat();
            Module::load(context, &text, name)
        }
    }
}

/// Compares the PTX version of a module with the driver's.
///
/// # Errors
///
/// Names both where the driver is older.
fn check_ptx_version(ptx: &[u8], driver: Version) -> Result<(), Diagnostic> {
    let Some(wanted) = ptx_version(ptx) else { return Ok(()) };
    // A version that is not in the table is newer than this program: the driver will say what it thinks.
    let entry = PTX_VERSIONS.iter().find(|(version, _)| *version >= wanted);
    let needed = entry.map(|(_, needed)| Version(*needed));
    match needed {
        Some(needed) if driver < needed => {
            let (major, minor) = wanted;
            Err(Diagnostic::new("the CUDA driver is too old for the program's PTX")
                .found(format!("a driver for {driver}"))
                .needed(format!("a driver for {needed} or newer, for PTX {major}.{minor}"))
                .help("update NVIDIA's driver"))
        }
        _ => Ok(()),
    }
}

/// `.version 8.0`, which is the first directive of every module.
fn ptx_version(ptx: &[u8]) -> Option<(u32, u32)> {
    let directive = b".version";
    let start = ptx.windows(directive.len()).position(|window| window == directive)? + directive.len();
    let rest = &ptx[start..ptx.len().min(start + 32)];
    let text = String::from_utf8_lossy(rest);
    let (major, minor) = text.split_whitespace().next()?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(architecture: u32, kind: ImageKind) -> DeviceImage {
        DeviceImage { architecture, kind, bytes: vec![1] }
    }

    fn names(images: &[DeviceImage], architecture: u32, prefers_ptx: bool) -> Vec<String> {
        choose_images(images, architecture, prefers_ptx).into_iter().map(image_name).collect()
    }

    #[test]
    fn the_nearest_image_that_runs_is_preferred() {
        use ImageKind::{Cubin, Ptx};
        let images =
            [(80, Ptx), (80, Cubin), (86, Cubin), (90, Ptx), (90, Cubin)].map(|(sm, kind)| image(sm, kind));
        assert_eq!(names(&images, 80, false), ["cubin for sm_80", "PTX for sm_80"]);
        assert_eq!(names(&images, 86, false), ["cubin for sm_86", "PTX for sm_80"]);
        assert_eq!(names(&images, 89, false), ["cubin for sm_86", "PTX for sm_80"]);
        assert_eq!(names(&images, 89, true), ["PTX for sm_80", "cubin for sm_86"]);
        assert_eq!(names(&images, 90, false), ["cubin for sm_90", "PTX for sm_90"]);
        assert_eq!(names(&images, 120, false), ["PTX for sm_90"]);
        assert_eq!(names(&images, 100, false), ["PTX for sm_90"]);
        assert!(names(&images, 75, true).is_empty());
        // Machine code does not run on an older device of its major version.
        assert!(names(&images[2..3], 80, false).is_empty());
    }

    #[test]
    fn drivers_older_than_the_ptx_are_named_with_what_it_needs() {
        let ptx = b"//\n// by a compiler\n//\n\n.version 8.7\n.target sm_90\n";
        assert_eq!(ptx_version(ptx), Some((8, 7)));
        assert_eq!(check_ptx_version(ptx, Version(12080)), Ok(()));
        let message = check_ptx_version(ptx, Version(12040)).expect_err("it is older").to_string();
        assert!(message.contains("a driver for CUDA 12.4"), "{message}");
        assert!(message.contains("CUDA 12.8 or newer, for PTX 8.7"), "{message}");
        // What the table does not know is left to the driver.
        assert_eq!(check_ptx_version(b".version 12.1\n", Version(12000)), Ok(()));
        assert_eq!(check_ptx_version(b"no module", Version(12000)), Ok(()));
        assert_eq!(check_ptx_version(b".version 6.4", Version(12000)), Ok(()));
        assert!(PTX_VERSIONS.is_sorted());
    }
}

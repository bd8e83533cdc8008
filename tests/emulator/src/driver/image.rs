//! What a driver looks at before it compiles a module: whether this is PTX, which version, for which device.

use super::errors::{Refusal, Status};
use crate::Module;

/// Beginnings of images that hold machine code: ELF, and NVIDIA's container of several images.
const BINARY_BEGINNINGS: [&[u8]; 2] = [b"\x7fELF", &[0x50, 0xed, 0x55, 0xba]];

/// The newest PTX version that a driver compiles.
fn newest_version(driver_version: u32) -> (u32, u32) {
    let (major, minor) = (driver_version / 1000, driver_version % 1000 / 10);
    match (major, minor) {
        (..=11, _) => (7, minor),
        (12, ..=4) => (8, minor),
        (12, 5 | 6) => (8, 5),
        (12, _) => (8, minor - 1),
        _ => (9, minor),
    }
}

/// The oldest PTX version that knows an architecture.
fn oldest_version(architecture: u32) -> (u32, u32) {
    match architecture {
        ..=70 => (6, 0),
        71..=75 => (6, 3),
        76..=80 => (7, 0),
        81..=86 => (7, 1),
        87 => (7, 4),
        88..=90 => (7, 8),
        91..=101 => (8, 6),
        _ => (8, 7),
    }
}

/// What the first directives of a module say.
#[derive(Debug, PartialEq, Eq)]
struct Heading<'a> {
    version: (u32, u32),
    architecture: u32,
    /// `a` for code that runs on that architecture alone, `f` for one that runs on its family, or nothing.
    suffix: &'a str,
}

/// Reads `.version` and `.target`, which stand before anything else.
fn heading(text: &str) -> Option<Heading<'_>> {
    let after = |directive: &str| {
        text.lines().find_map(|line| line.trim_start().strip_prefix(directive)?.split_whitespace().next())
    };
    let (major, minor) = after(".version")?.split_once('.')?;
    let target = after(".target")?.trim_end_matches(',').strip_prefix("sm_")?;
    let suffix = target.trim_start_matches(|character: char| character.is_ascii_digit());
    Some(Heading {
        version: (major.parse().ok()?, minor.parse().ok()?),
        architecture: target.strip_suffix(suffix)?.parse().ok()?,
        suffix,
    })
}

/// Compiles an image as a driver of `driver_version` would for a device of `architecture`. The reason of a
/// refusal is what the driver's log says.
pub(super) fn compile(image: &[u8], architecture: u32, driver_version: u32) -> Result<Module, Refusal> {
    if BINARY_BEGINNINGS.iter().any(|beginning| image.starts_with(beginning)) {
        let why = "the image is machine code; this driver runs PTX only";
        return Err(Refusal::new(Status::NO_BINARY_FOR_GPU, why));
    }
    let invalid = |why: String| Refusal::new(Status::INVALID_PTX, why);
    let text =
        std::str::from_utf8(image).map_err(|error| invalid(format!("the PTX is not UTF-8: {error}")))?;
    let heading = heading(text)
        .ok_or_else(|| invalid("the PTX does not begin with .version and .target sm_NN".to_owned()))?;
    let Heading { version, architecture: target, suffix } = heading;
    let newest = newest_version(driver_version);
    if version > newest {
        let why = format!(
            "the PTX has .version {}.{}; a driver for CUDA {}.{} knows at most {}.{}",
            version.0,
            version.1,
            driver_version / 1000,
            driver_version % 1000 / 10,
            newest.0,
            newest.1
        );
        return Err(Refusal::new(Status::UNSUPPORTED_PTX_VERSION, why));
    }
    let oldest = oldest_version(target);
    if version < oldest {
        return Err(invalid(format!(
            "PTX ISA .version {}.{} does not know .target sm_{target}{suffix}; {}.{} does",
            version.0, version.1, oldest.0, oldest.1
        )));
    }
    let fits = match suffix {
        "" => target <= architecture,
        "a" => target == architecture,
        "f" => target / 10 == architecture / 10 && target <= architecture,
        _ => false,
    };
    if !fits {
        let why = format!("the PTX is for .target sm_{target}{suffix}; the device is sm_{architecture}");
        return Err(invalid(why));
    }
    Module::parse(text).map_err(|error| invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heading_is_read() {
        let text = "// made by hand\n\n.version 8.0\n.target sm_90a, debug\n.address_size 64\n";
        assert_eq!(heading(text), Some(Heading { version: (8, 0), architecture: 90, suffix: "a" }));
        assert_eq!(heading(".version 8.0\n.address_size 64\n"), None);
        assert_eq!(heading(".version 8\n.target sm_80\n"), None);
    }

    #[track_caller]
    fn check(heading: &str, architecture: u32, driver_version: u32, expected: Status) {
        let image = format!("{heading}\n.address_size 64\n");
        let status = match compile(image.as_bytes(), architecture, driver_version) {
            Ok(_) => Status::SUCCESS,
            Err(refusal) => refusal.status,
        };
        assert_eq!(status, expected, "{heading} on sm_{architecture} with {driver_version}");
    }

    #[test]
    fn versions_and_targets_are_compared() {
        check(".version 7.0\n.target sm_80", 80, 12080, Status::SUCCESS);
        check(".version 7.0\n.target sm_80", 90, 12080, Status::SUCCESS);
        check(".version 8.7\n.target sm_80", 80, 12080, Status::SUCCESS);
        check(".version 8.8\n.target sm_80", 80, 12080, Status::UNSUPPORTED_PTX_VERSION);
        check(".version 8.0\n.target sm_80", 80, 11080, Status::UNSUPPORTED_PTX_VERSION);
        check(".version 7.8\n.target sm_80", 80, 11080, Status::SUCCESS);
        check(".version 8.6\n.target sm_80", 80, 12060, Status::UNSUPPORTED_PTX_VERSION);
        check(".version 7.0\n.target sm_86", 86, 12080, Status::INVALID_PTX);
        check(".version 8.0\n.target sm_86", 80, 12080, Status::INVALID_PTX);
        check(".version 8.0\n.target sm_90a", 90, 12080, Status::SUCCESS);
        check(".version 8.7\n.target sm_90a", 100, 12080, Status::INVALID_PTX);
        check(".version 8.7\n.target sm_120", 120, 12080, Status::SUCCESS);
        check("nothing", 80, 12080, Status::INVALID_PTX);
    }

    #[test]
    fn machine_code_is_no_ptx() {
        for image in [b"\x7fELF\x02\x01".as_slice(), &[0x50, 0xed, 0x55, 0xba, 1]] {
            assert_eq!(compile(image, 80, 12080).unwrap_err().status, Status::NO_BINARY_FOR_GPU);
        }
    }
}

//! What the environment says about the device that is emulated.
//!
//! | variable | default | |
//! |---|---|---|
//! | `QWEN2C_EMULATOR_SEED` | 0 | order of streams, graph nodes, blocks and warps |
//! | `QWEN2C_EMULATOR_ARCHITECTURE` | 80 | 70, 75, 80, 86, 89, 90, 100 or 120: a usual card of it |
//! | `QWEN2C_EMULATOR_MEMORY_BYTES` | 16 GiB | what the device claims to have |
//! | `QWEN2C_EMULATOR_DRIVER_VERSION` | 12080 | CUDA 12.8; decides which PTX versions are taken |
//! | `QWEN2C_EMULATOR_DEVICES` | 1 | how many there are, all alike |
//! | `QWEN2C_EMULATOR_REPORT` | | the file that gets the report, as JSON |
//! | `QWEN2C_EMULATOR_LOSE_DEVICE_AFTER` | | kernels after which the device is lost |
//! | `QWEN2C_EMULATOR_LOSE_DEVICE_AFTER_BYTES` | | bytes copied to it after which the device is lost |

use std::path::PathBuf;

use super::models::{Model, model};

/// Settings of the emulated machine.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Chooses the order of streams, graph nodes, blocks and warps.
    pub(super) seed: u64,
    pub(super) model: &'static Model,
    pub(super) memory_bytes: u64,
    /// As `cuDriverGetVersion` says it: 12080 for CUDA 12.8.
    pub(super) driver_version: u32,
    pub(super) devices: u32,
    pub(super) report: Option<PathBuf>,
    /// Kernels that run before the device is lost.
    pub(super) lose_device_after: Option<u64>,
    /// Bytes that are copied to it before the device is lost.
    pub(super) lose_device_after_bytes: Option<u64>,
}

impl Settings {
    /// Settings as `variable` gives them, usually the environment.
    ///
    /// # Errors
    ///
    /// The variable with a value that cannot be.
    pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let number = |name: &str, default: u64| match variable(name) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| format!("{name}={text} is no whole number")),
        };
        let small = |name: &str, default: u64, most: u64| {
            let value = number(name, default)?;
            let in_range = u32::try_from(value).ok().filter(|_| value <= most);
            in_range.ok_or_else(|| format!("{name}={value} is too large; the most is {most}"))
        };
        let architecture = small("QWEN2C_EMULATOR_ARCHITECTURE", 80, 999)?;
        let optional = |name: &str| variable(name).map(|_| number(name, 0)).transpose();
        Ok(Self {
            seed: number("QWEN2C_EMULATOR_SEED", 0)?,
            model: model(architecture).ok_or_else(|| {
                format!("QWEN2C_EMULATOR_ARCHITECTURE={architecture} is not among the devices known here")
            })?,
            memory_bytes: number("QWEN2C_EMULATOR_MEMORY_BYTES", 16 << 30)?,
            driver_version: small("QWEN2C_EMULATOR_DRIVER_VERSION", 12080, 99_999)?,
            devices: small("QWEN2C_EMULATOR_DEVICES", 1, 64)?,
            report: variable("QWEN2C_EMULATOR_REPORT").map(PathBuf::from),
            lose_device_after: optional("QWEN2C_EMULATOR_LOSE_DEVICE_AFTER")?,
            lose_device_after_bytes: optional("QWEN2C_EMULATOR_LOSE_DEVICE_AFTER_BYTES")?,
        })
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::read(|_| None).expect("the defaults are in range")
    }
}

#[cfg(test)]
mod tests {
    use super::Settings;

    fn read(set: &[(&str, &str)]) -> Result<Settings, String> {
        let find = |name: &str| set.iter().find(|(known, _)| *known == name);
        Settings::read(|name| find(name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn defaults_are_those_of_an_a100_with_less_memory() {
        let settings = read(&[]).unwrap();
        assert_eq!(settings.model.architecture, 80);
        assert_eq!((settings.memory_bytes, settings.driver_version, settings.devices), (16 << 30, 12080, 1));
        assert_eq!((settings.seed, settings.lose_device_after), (0, None));
        assert_eq!(settings.lose_device_after_bytes, None);
    }

    #[test]
    fn what_cannot_be_is_named() {
        let refused = |name, value| read(&[(name, value)]).unwrap_err();
        assert!(refused("QWEN2C_EMULATOR_SEED", "x").contains("QWEN2C_EMULATOR_SEED=x"));
        assert!(refused("QWEN2C_EMULATOR_ARCHITECTURE", "81").contains("=81"));
        assert!(refused("QWEN2C_EMULATOR_DEVICES", "65").contains("the most is 64"));
        assert!(refused("QWEN2C_EMULATOR_LOSE_DEVICE_AFTER", "soon").contains("soon"));
        assert!(refused("QWEN2C_EMULATOR_LOSE_DEVICE_AFTER_BYTES", "-1").contains("=-1"));
    }
}

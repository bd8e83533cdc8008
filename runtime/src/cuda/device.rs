//! Which device the program runs on, and whether it can: checked before anything is copied or compiled.

use std::rc::Rc;

use qwen2c_format::{DeviceCode, DeviceImage, Diagnostic, ImageKind, Manifest, StepLists};

use super::driver::functions as cuda;
use super::driver::{Context, Driver};
use super::image::choose_images;
use crate::program::bytes_text;

/// Contexts are suggested in multiples of this.
const CONTEXT_STEP: u64 = 256;
/// Bits of a weight in `--quant int4`, with its share of the group's scale.
const INT4_BITS: u64 = 5;

/// Facts about a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceFacts {
    pub(crate) number: u32,
    /// `NVIDIA A100-SXM4-80GB`.
    pub(crate) name: String,
    /// Ten times the compute capability: 80 for `sm_80`.
    pub(crate) architecture: u32,
    pub(crate) memory_bytes: u64,
    /// Most shared memory that a block can ask for.
    pub(crate) shared_bytes_of_a_block: u32,
    pub(crate) multiprocessors: u32,
    /// A grid may be launched whose blocks wait for one another.
    pub(crate) runs_blocks_together: bool,
    pub(crate) clock_khz: u32,
    pub(crate) memory_clock_khz: u32,
    pub(crate) memory_bus_bits: u32,
}

impl DeviceFacts {
    /// Asks the driver about device `number`.
    ///
    /// # Errors
    ///
    /// Where there is no such device, with those that there are.
    pub(crate) fn read(driver: &Driver, number: u32) -> Result<Self, Diagnostic> {
        let count = driver.device_count()?;
        if number >= count {
            return Err(no_such_device(driver, number, count));
        }
        let device = driver.device(number)?;
        let attribute = |attribute| driver.attribute(device, attribute);
        // What a peak is computed from is worth nothing to a program that cannot start without it.
        let optional = |attribute| driver.attribute(device, attribute).unwrap_or(0);
        Ok(Self {
            number,
            name: driver.device_name(device)?,
            architecture: 10 * attribute(cuda::ATTRIBUTE_CAPABILITY_MAJOR)?
                + attribute(cuda::ATTRIBUTE_CAPABILITY_MINOR)?,
            memory_bytes: driver.device_memory_bytes(device)?,
            shared_bytes_of_a_block: attribute(cuda::ATTRIBUTE_SHARED_BYTES_OF_A_BLOCK)?,
            multiprocessors: optional(cuda::ATTRIBUTE_MULTIPROCESSORS),
            runs_blocks_together: optional(cuda::ATTRIBUTE_COOPERATIVE_LAUNCH) != 0,
            clock_khz: optional(cuda::ATTRIBUTE_CLOCK_KHZ),
            memory_clock_khz: optional(cuda::ATTRIBUTE_MEMORY_CLOCK_KHZ),
            memory_bus_bits: optional(cuda::ATTRIBUTE_MEMORY_BUS_BITS),
        })
    }

    /// `NVIDIA A100-SXM4-80GB (sm_80)`.
    pub(crate) fn text(&self) -> String {
        format!("{} (sm_{})", self.name, self.architecture)
    }
}

fn no_such_device(driver: &Driver, number: u32, count: u32) -> Diagnostic {
    let name = |number: u32| {
        let name = driver.device(number).and_then(|device| driver.device_name(device));
        format!("{number}: {}", name.unwrap_or_else(|_| "without a name".to_owned()))
    };
    let devices: Vec<String> = (0..count.min(16)).map(name).collect();
    let needed =
        if count == 1 { "`--device 0`".to_owned() } else { format!("`--device 0` to `{}`", count - 1) };
    Diagnostic::new(format!("there is no GPU {number}"))
        .found(devices.join(", "))
        .needed(needed)
        .help("`CUDA_VISIBLE_DEVICES` chooses and orders the GPUs that a program sees")
}

/// The images that the device can run, the preferred one first.
///
/// # Errors
///
/// Names device and images where it can run none.
pub(crate) fn check_architecture<'a>(
    facts: &DeviceFacts,
    code: &'a DeviceCode,
    prefers_ptx: bool,
) -> Result<Vec<&'a DeviceImage>, Diagnostic> {
    let images = choose_images(&code.images, facts.architecture, prefers_ptx);
    if !images.is_empty() {
        return Ok(images);
    }
    let of_ptx = |image: &&DeviceImage| image.kind == ImageKind::Ptx;
    let oldest = code.images.iter().filter(of_ptx).map(|image| image.architecture).min().unwrap_or_default();
    Err(Diagnostic::new("the GPU is too old for this program")
        .found(format!("device {}: {}", facts.number, facts.text()))
        .needed(format!("sm_{oldest} or newer"))
        .help("name a newer GPU with `--device`, if there is one")
        .help("to run on the processor, build the program with `--target native`"))
}

/// Compares the shared memory that launches want with the device's.
///
/// # Errors
///
/// Names the first launch that wants more.
pub(crate) fn check_shared_memory(facts: &DeviceFacts, lists: &StepLists) -> Result<(), Diagnostic> {
    let launches = lists.kernels.iter().flat_map(|kernel| &kernel.launches);
    let launches = launches.map(|launch| (&launch.symbol, launch.shared_bytes));
    let persistent = lists.persistent.iter().map(|kernel| (&kernel.symbol, kernel.shared_bytes));
    let too_large = |launch: &(&String, u32)| launch.1 > facts.shared_bytes_of_a_block;
    match launches.chain(persistent).find(too_large) {
        None => Ok(()),
        Some((symbol, shared_bytes)) => {
            let (text, found) = (facts.text(), facts.shared_bytes_of_a_block);
            Err(Diagnostic::new("the GPU has too little shared memory for this program")
                .at(format!("kernel `{symbol}`"))
                .found(format!("{text} gives a block {found} bytes"))
                .needed(format!("{shared_bytes} bytes"))
                .help(format!("build the program with `--target sm_{}`", facts.architecture)))
        }
    }
}

/// Compares free memory with what weights, arena and the table of steps take.
///
/// # Errors
///
/// Names both, and what would fit.
pub(crate) fn check_memory(
    facts: &DeviceFacts,
    context: &Rc<Context>,
    manifest: &Manifest,
    table_bytes: u64,
) -> Result<(), Diagnostic> {
    let free = context.free_bytes()?;
    if free >= manifest.weight_bytes + manifest.arena_bytes + table_bytes {
        Ok(())
    } else {
        Err(does_not_fit(facts, free, manifest, table_bytes))
    }
}

fn does_not_fit(facts: &DeviceFacts, free: u64, manifest: &Manifest, table_bytes: u64) -> Diagnostic {
    let Manifest { weight_bytes, arena_bytes, kv_cache_bytes, context, .. } = manifest;
    let mut diagnostic = Diagnostic::new("the program needs more memory than the GPU has free")
        .found(format!("{} free of {} on {}", bytes_text(free), bytes_text(facts.memory_bytes), facts.name))
        .needed(format!(
            "{}: {} of weights, and {} of activations and cache, of which {} are the cache for {context} positions",
            bytes_text(weight_bytes + arena_bytes + table_bytes),
            bytes_text(*weight_bytes),
            bytes_text(arena_bytes + table_bytes),
            bytes_text(*kv_cache_bytes),
        ));
    if let Some(positions) = largest_context(free.saturating_sub(table_bytes), manifest) {
        diagnostic = diagnostic.help(format!("build the program with `--context {positions}`, which fits"));
    }
    let int4_bytes = manifest.model.parameters.saturating_mul(INT4_BITS) / 8;
    if int4_bytes < weight_bytes / 2 {
        let bytes = bytes_text(int4_bytes);
        let fits = if int4_bytes + arena_bytes + table_bytes <= free { ", which fits" } else { "" };
        diagnostic =
            diagnostic.help(format!("with `--quant int4` the weights would take about {bytes}{fits}"));
    }
    diagnostic.help(
        "end other programs that use the GPU (`nvidia-smi` lists them), or name another with `--device`",
    )
}

/// The largest context with which the program would fit; none where that is none worth building.
fn largest_context(free: u64, manifest: &Manifest) -> Option<u64> {
    let rest = manifest.weight_bytes + manifest.arena_bytes - manifest.kv_cache_bytes;
    let for_cache = free.checked_sub(rest)?;
    let positions = u128::from(for_cache) * u128::from(manifest.context);
    let positions = positions / u128::from(manifest.kv_cache_bytes.max(1));
    let positions = u64::try_from(positions).ok()? / CONTEXT_STEP * CONTEXT_STEP;
    (positions > 0 && positions < manifest.context).then_some(positions)
}

#[cfg(test)]
mod tests {
    use qwen2c_format::Launch;

    use super::*;

    fn facts() -> DeviceFacts {
        DeviceFacts {
            number: 1,
            name: "NVIDIA A10".to_owned(),
            architecture: 86,
            memory_bytes: 24 << 30,
            shared_bytes_of_a_block: 101_376,
            multiprocessors: 72,
            runs_blocks_together: true,
            clock_khz: 1_695_000,
            memory_clock_khz: 6_251_000,
            memory_bus_bits: 384,
        }
    }

    fn manifest() -> Manifest {
        let mut manifest = crate::testing::program_file().manifest;
        manifest.model.parameters = 7 << 30;
        manifest.weight_bytes = 14 << 30;
        manifest.kv_cache_bytes = 8 << 30;
        manifest.arena_bytes = 9 << 30;
        manifest.context = 32768;
        manifest
    }

    #[test]
    fn what_would_fit_is_said() {
        let message = does_not_fit(&facts(), 20 << 30, &manifest(), 0).to_string();
        for part in [
            "(20.00 GiB) free of 25769803776 bytes (24.00 GiB) on NVIDIA A10",
            "(23.00 GiB): 15032385536 bytes (14.00 GiB) of weights",
            "(8.00 GiB) are the cache for 32768 positions",
            "`--context 20480`, which fits",
            "`--quant int4` the weights would take about 4697620480 bytes (4.38 GiB), which fits",
            "`nvidia-smi`",
        ] {
            assert!(message.contains(part), "{part}: {message}");
        }
        // No context helps where the weights alone are too large, and int4 does not where they are int4.
        let message = does_not_fit(&facts(), 8 << 30, &manifest(), 0).to_string();
        assert!(!message.contains("--context") && message.contains("(4.38 GiB)\n"), "{message}");
        let int4 = Manifest { weight_bytes: 4 << 30, ..manifest() };
        assert!(!does_not_fit(&facts(), 1 << 30, &int4, 0).to_string().contains("int4"));
    }

    #[test]
    fn old_devices_are_named_with_what_is_needed() {
        let image = |architecture, kind| DeviceImage { architecture, kind, bytes: vec![1] };
        let code = DeviceCode { images: vec![image(90, ImageKind::Ptx), image(100, ImageKind::Ptx)] };
        let message = check_architecture(&facts(), &code, false).expect_err("it is older").to_string();
        assert!(message.contains("device 1: NVIDIA A10 (sm_86)"), "{message}");
        assert!(message.contains("needed: sm_90 or newer") && message.contains("help:"), "{message}");
        let newer = DeviceFacts { architecture: 103, ..facts() };
        let images = check_architecture(&newer, &code, false).expect("it runs PTX");
        assert_eq!(images, [&code.images[1]]);
    }

    #[test]
    fn shared_memory_is_compared() {
        let mut lists = crate::testing::lists();
        let launch = |shared_bytes| Launch {
            symbol: "tiles".to_owned(),
            blocks: 1,
            rows_per_block: 1,
            threads: 32,
            shared_bytes,
        };
        lists.kernels[2].launches = vec![launch(101_376)];
        assert_eq!(check_shared_memory(&facts(), &lists), Ok(()));
        lists.kernels[2].launches.push(launch(163_840));
        let message = check_shared_memory(&facts(), &lists).expect_err("too much").to_string();
        assert!(message.contains("kernel `tiles`") && message.contains("163840 bytes"), "{message}");
        assert!(message.contains("101376") && message.contains("`--target sm_86`"), "{message}");
    }
}

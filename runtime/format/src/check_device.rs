//! Whether launches and device code fit the manifest's family, and are what a device can be asked for.

use crate::{DeviceCode, DeviceImage, ImageKind, Launch, Manifest, PersistentKernel, StepLists};

/// Threads of a block, on every device.
const MOST_THREADS: u32 = 1024;
/// Threads that are launched together.
const WARP_THREADS: u32 = 32;
/// Shared memory of a block on the device that has most of it.
const MOST_SHARED_BYTES: u32 = 232_448;
/// Blocks of a grid's first dimension.
const MOST_BLOCKS: u32 = i32::MAX as u32;
/// Blocks of its second.
const MOST_BLOCKS_DOWN: u32 = 65_535;
/// Far more than any kernel needs.
const MOST_LAUNCHES: usize = 16;
/// Far more than any kernel has operands.
const MOST_ROW_WORDS: u32 = 64;
/// Architectures as numbers: `sm_50` to far beyond today's.
const ARCHITECTURES: std::ops::RangeInclusive<u32> = 50..=999;

/// A program of the family `cuda` has a launch for every kernel; one of the family `cpu` has none.
pub(crate) fn check_launches(manifest: &Manifest, lists: &StepLists) -> Result<(), String> {
    let on_device = manifest.family == "cuda";
    let most_rows = lists.lists.iter().map(|list| list.max_rows).max().unwrap_or(0);
    for kernel in &lists.kernels {
        let name = &kernel.name;
        if kernel.launches.is_empty() == on_device || kernel.launches.len() > MOST_LAUNCHES {
            let (count, family) = (kernel.launches.len(), &manifest.family);
            return Err(format!(
                "kernel `{name}` has {count} launches in a program of the family `{family}`"
            ));
        }
        for launch in &kernel.launches {
            check_launch(launch, most_rows).map_err(|reason| format!("kernel `{name}`: {reason}"))?;
        }
    }
    lists.persistent.as_ref().map_or(Ok(()), |persistent| check_persistent(persistent, on_device, lists))
}

/// A persistent kernel serves one row, on a device, and every step fits a row of its table.
fn check_persistent(persistent: &PersistentKernel, on_device: bool, lists: &StepLists) -> Result<(), String> {
    let PersistentKernel { symbol, threads, shared_bytes, row_words } = persistent;
    check_block(symbol, *threads, *shared_bytes)?;
    let decode = lists.lists.first().filter(|list| on_device && list.max_rows == 1);
    let Some(decode) = decode else { return Err(format!("`{symbol}` has no list of one row on a device")) };
    let steps = decode.body.iter().chain(&decode.head);
    let most_operands = steps.map(|step| step.operands.len()).max().unwrap_or(0);
    if (*row_words as usize) <= most_operands || *row_words > MOST_ROW_WORDS {
        return Err(format!("`{symbol}` has {row_words} words for {most_operands} operands"));
    }
    Ok(())
}

fn check_launch(launch: &Launch, most_rows: u32) -> Result<(), String> {
    let Launch { symbol, blocks, rows_per_block, threads, shared_bytes } = launch;
    check_block(symbol, *threads, *shared_bytes)?;
    if !(1..=MOST_BLOCKS).contains(blocks) || *rows_per_block == 0 {
        return Err(format!("`{symbol}` wants {blocks} blocks of {rows_per_block} rows"));
    }
    if most_rows.div_ceil(*rows_per_block) > MOST_BLOCKS_DOWN {
        return Err(format!("`{symbol}` cannot serve {most_rows} rows in blocks of {rows_per_block}"));
    }
    Ok(())
}

fn check_block(symbol: &str, threads: u32, shared_bytes: u32) -> Result<(), String> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$';
    if symbol.is_empty() || !symbol.bytes().all(is_name) {
        return Err(format!("`{symbol}` is not the name of an entry point"));
    }
    if !(1..=MOST_THREADS).contains(&threads) || !threads.is_multiple_of(WARP_THREADS) {
        return Err(format!("`{symbol}` wants {threads} threads a block"));
    }
    if shared_bytes > MOST_SHARED_BYTES {
        return Err(format!("`{symbol}` wants {shared_bytes} bytes of shared memory"));
    }
    Ok(())
}

/// PTX is always there where there is a device; nothing is there for the processor.
pub(crate) fn check_images(manifest: &Manifest, code: &DeviceCode) -> Result<(), String> {
    let has_ptx = code.images.iter().any(|image| image.kind == ImageKind::Ptx);
    let on_device = manifest.family == "cuda";
    if on_device != has_ptx || on_device == code.images.is_empty() {
        let (count, family) = (code.images.len(), &manifest.family);
        let ptx = if has_ptx { "with" } else { "without" };
        return Err(format!("{count} images {ptx} PTX in a program of the family `{family}`"));
    }
    for (index, image) in code.images.iter().enumerate() {
        let DeviceImage { architecture, kind, bytes } = image;
        let is_same = |other: &&DeviceImage| other.architecture == *architecture && other.kind == *kind;
        // PTX is handed over as text that ends with a zero.
        let is_whole = !bytes.is_empty() && (*kind != ImageKind::Ptx || !bytes.contains(&0));
        let is_known = ARCHITECTURES.contains(architecture);
        if !is_whole || !is_known || code.images[..index].iter().any(|other| is_same(&other)) {
            let (kind, count) = (kind.name(), bytes.len());
            return Err(format!("image {index}, {kind} of {count} bytes for sm_{architecture}"));
        }
    }
    Ok(())
}

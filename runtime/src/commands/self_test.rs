//! `self-test`: is this program, on this machine, what was built?

use qwen2c_format::{Diagnostic, SelfTestRecord};

use super::{OpenProgram, hardware};
use crate::arguments::Arguments;
use crate::console::{Console, Failure};
use crate::program::bytes_text;

/// Checks the hash of every weight, then recomputes the logits that the compiler's interpreter recorded.
pub(super) fn self_test(
    arguments: &Arguments,
    open: OpenProgram<'_>,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let program = open()?;
    program.check_processor()?;
    let (mut weights, mut weight_bytes) = (0, 0);
    program.verify_weights(|entry| {
        weights += 1;
        weight_bytes += entry.bytes;
    })?;
    console.print(&format!("{weights} weights are as built: {}\n", bytes_text(weight_bytes)))?;
    let Some(record) = &program.manifest().self_test else {
        return console.print("no logits were recorded at build\n");
    };
    let mut session = program.start_self_test(&hardware(&program, arguments, console)?)?;
    let mut found = Vec::with_capacity(record.logits.len());
    session.prefill_each(&record.tokens, |_, logits| -> Result<(), Failure> {
        found.extend(record.columns.iter().map(|&column| logits[column as usize]));
        Ok(())
    })?;
    let error = relative_error(&record.logits, &found);
    let shown = format!("relative L2 error {error:.2e}, accepted {:.2e}", record.tolerance);
    if error <= f64::from(record.tolerance) {
        return console.print(&format!("{} logits agree: {shown}\n", found.len()));
    }
    let remedy = if program.is_for_device() {
        "try `QWEN2C_CUDA_USE_PTX=1`, which lets the driver compile the kernels; if it fails again, report it as a bug of `qwen2c`"
    } else {
        "build it again on this machine with `--target native`; if it fails again, report it as a bug of `qwen2c`"
    };
    Err(disagreement(record, &found, &shown).help(remedy).into())
}

/// L2 norm of the difference over the L2 norm of `expected`.
fn relative_error(expected: &[f32], found: &[f32]) -> f64 {
    let square = |value: f64| value * value;
    let difference = expected.iter().zip(found).map(|(&a, &b)| square(f64::from(a) - f64::from(b)));
    let norm = expected.iter().map(|&value| square(f64::from(value)));
    let (difference, norm): (f64, f64) = (difference.sum(), norm.sum());
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}

fn disagreement(record: &SelfTestRecord, found: &[f32], shown: &str) -> Diagnostic {
    let columns = record.columns.len();
    let rows = record.logits.chunks_exact(columns).zip(found.chunks_exact(columns));
    let worst = rows
        .map(|(expected, found)| relative_error(expected, found))
        .enumerate()
        .max_by(|one, other| one.1.total_cmp(&other.1));
    let diagnostic =
        Diagnostic::new("the program does not compute what was recorded when it was built").found(shown);
    match worst {
        Some((row, error)) => diagnostic.at(format!("token {row}, relative L2 error {error:.2e}")),
        None => diagnostic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_relative() {
        assert_eq!(relative_error(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert!((relative_error(&[3.0, 4.0], &[3.0, 4.5]) - 0.1).abs() < 1e-9);
        assert!(relative_error(&[1.0], &[f32::NAN]).is_nan());
    }
}

//! `qwen2c compare`: the same work by several programs, in one run on one machine.
//!
//! Machines drift: the programs take turns, a repetition each, so that a slow minute hurts all alike.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use qwen2c_format::Diagnostic;
use serde::{Deserialize, Serialize};

use crate::arguments::CompareArguments;
use crate::failure::Failure;
use crate::table::{Side, Table};
use crate::units;

/// Turns that every program gets.
const TURNS: usize = 3;

/// What a program prints for `bench --json`, as far as it is compared.
#[derive(Debug, Deserialize)]
struct BenchOutput {
    model: String,
    target: String,
    quant: String,
    results: Vec<BenchResult>,
}

#[derive(Debug, Deserialize)]
struct BenchResult {
    test: String,
    runs: Vec<f64>,
}

/// All turns of one program.
#[derive(Debug, Serialize)]
struct Measured {
    program: PathBuf,
    model: String,
    target: String,
    quant: String,
    results: Vec<MeasuredTest>,
}

/// All runs of one test.
#[derive(Debug, Serialize)]
struct MeasuredTest {
    test: String,
    tokens_per_s: f64,
    /// Relative to the first program's; none where that has no such test.
    ratio: Option<f64>,
    runs: Vec<f64>,
}

/// Measures the programs and prints the table.
///
/// # Errors
///
/// When a program cannot be run or does not answer as the contract says.
pub(crate) fn run(arguments: &CompareArguments, out: &mut dyn Write) -> Result<(), Failure> {
    for (flag, given) in
        [("--html", arguments.html.is_some()), ("--llama-bench", arguments.llama_bench.is_some())]
    {
        if given {
            return Err(Diagnostic::new(format!("`{flag}` is not available in this version"))
                .help("leave it out; `--json` has all figures")
                .into());
        }
    }
    let mut turns: Vec<Vec<BenchOutput>> = arguments.programs.iter().map(|_| Vec::new()).collect();
    for _ in 0..TURNS {
        for (program, outputs) in arguments.programs.iter().zip(&mut turns) {
            outputs.push(bench(program)?);
        }
    }
    let mut measured: Vec<Measured> = arguments
        .programs
        .iter()
        .zip(turns)
        .filter_map(|(program, outputs)| merge(program, outputs))
        .collect();
    relate_to_first(&mut measured);
    if arguments.json {
        let text = serde_json::to_string_pretty(&measured).expect("figures have no maps with odd keys");
        writeln!(out, "{text}")?;
    } else {
        for line in table(&measured).lines(0) {
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

/// One turn of a program.
fn bench(program: &Path) -> Result<BenchOutput, Failure> {
    // A bare name would be searched for in PATH.
    let executable = program
        .canonicalize()
        .map_err(|error| Failure::file("find the program to compare", program, &error))?;
    let output = Command::new(executable)
        .args(["bench", "--json", "--quiet", "-r", "1"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::file("run the program", program, &error))?;
    if !output.status.success() {
        let mut diagnostic = Diagnostic::new(format!("the program's `bench` failed ({})", output.status))
            .at(program.display().to_string());
        for line in String::from_utf8_lossy(&output.stderr).lines().take(8) {
            diagnostic = diagnostic.cause(line);
        }
        return Err(diagnostic.into());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| {
        Diagnostic::new("the program's `bench --json` is not what an emitted program prints")
            .at(program.display().to_string())
            .cause(error.to_string())
            .help("name programs that `qwen2c build` has written")
            .into()
    })
}

/// All turns of a program as one; none where there was no turn.
fn merge(program: &Path, outputs: Vec<BenchOutput>) -> Option<Measured> {
    let mut outputs = outputs.into_iter();
    let first = outputs.next()?;
    let mut tests = first.results;
    for output in outputs {
        for result in output.results {
            if let Some(test) = tests.iter_mut().find(|test| test.test == result.test) {
                test.runs.extend(result.runs);
            }
        }
    }
    let results = tests
        .into_iter()
        .map(|test| MeasuredTest {
            tokens_per_s: mean(&test.runs),
            test: test.test,
            ratio: None,
            runs: test.runs,
        })
        .collect();
    Some(Measured {
        program: program.to_path_buf(),
        model: first.model,
        target: first.target,
        quant: first.quant,
        results,
    })
}

fn mean(runs: &[f64]) -> f64 {
    runs.iter().sum::<f64>() / runs.len().max(1) as f64
}

fn relate_to_first(measured: &mut [Measured]) {
    let Some(first) = measured.first() else { return };
    let reference: Vec<(String, f64)> =
        first.results.iter().map(|result| (result.test.clone(), result.tokens_per_s)).collect();
    for result in measured.iter_mut().flat_map(|program| &mut program.results) {
        result.ratio = reference
            .iter()
            .find(|(test, rate)| *test == result.test && *rate > 0.0)
            .map(|(_, rate)| result.tokens_per_s / rate);
    }
}

fn table(measured: &[Measured]) -> Table {
    let mut table = Table::new(&[Side::Left, Side::Left, Side::Left, Side::Right, Side::Right]);
    table.row(["program", "target", "test", "tokens/s", "ratio"]);
    for program in measured {
        for result in &program.results {
            table.row([
                program.program.display().to_string(),
                format!("{}, {}", program.target, program.quant),
                result.test.clone(),
                units::tokens_per_s(result.tokens_per_s),
                result.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            ]);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{BenchOutput, BenchResult, merge, relate_to_first, table};

    fn output(runs: &[f64]) -> BenchOutput {
        BenchOutput {
            model: "qwen2-0.5b".to_owned(),
            target: "x86-64-v4".to_owned(),
            quant: "none".to_owned(),
            results: vec![BenchResult { test: "tg128".to_owned(), runs: runs.to_vec() }],
        }
    }

    #[test]
    fn turns_are_averaged_and_related_to_the_first_program() {
        let fused = merge(Path::new("fused"), vec![output(&[30.0]), output(&[34.0])]);
        let unfused = merge(Path::new("unfused"), vec![output(&[16.0]), output(&[16.0])]);
        let mut measured: Vec<_> = fused.into_iter().chain(unfused).collect();
        relate_to_first(&mut measured);
        assert_eq!(measured[1].results[0].ratio, Some(0.5));
        insta::assert_snapshot!(table(&measured).lines(0).join("\n"), @r"
        program  target           test   tokens/s  ratio
        fused    x86-64-v4, none  tg128      32.0   1.00
        unfused  x86-64-v4, none  tg128      16.0   0.50
        ");
    }
}

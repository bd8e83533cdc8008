//! All turns of all entrants put together: what the table, the JSON and the page show.

use serde::Serialize;

use super::entrant::{Description, KernelTotals, Peak, PhaseMeasurement, Turn};
use super::statistics::Spread;
use super::workload::{Phase, Workload};

/// The result of a comparison.
#[derive(Debug, Serialize)]
pub(super) struct Comparison {
    /// Where it was measured.
    pub(super) machine: Machine,
    /// What was measured.
    pub(super) workload: Workload,
    /// The machine's peak over all turns; none where no program took part in any phase.
    pub(super) peak: Option<PeakSpread>,
    /// The entrants, the one that the others are related to first.
    pub(super) entrants: Vec<Measured>,
    /// Every kernel of every entrant, the longest of each phase first.
    pub(super) kernels: Vec<KernelRow>,
}

/// The machine.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    /// The processor's name.
    pub(super) processor: String,
}

/// What the machine reached in all samples of its peak.
#[derive(Debug, Serialize)]
pub(super) struct PeakSpread {
    /// Sequential reads from memory.
    pub(super) read_bytes_per_s: Spread,
    /// Operations in `f32`.
    pub(super) operations_per_s: Spread,
    /// Operations in `bf16`.
    pub(super) bf16_operations_per_s: Option<Spread>,
    /// Operations on 8-bit integers.
    pub(super) int8_operations_per_s: Option<Spread>,
}

/// One entrant.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    /// What it is.
    #[serde(flatten)]
    pub(super) description: Description,
    /// Threads it ran with.
    pub(super) threads: u64,
    /// One for each phase, in order.
    pub(super) results: Vec<TestResult>,
}

/// One test of one entrant.
#[derive(Debug, Serialize)]
pub(super) struct TestResult {
    /// Which kind of work.
    pub(super) phase: Phase,
    /// `pp512`, `tg64@d512`.
    pub(super) test: String,
    /// Over all turns.
    pub(super) tokens_per_s: Spread,
    /// Speed over the first entrant's in the same turn.
    pub(super) ratio: Spread,
    /// Bytes that had to be moved, over what the machine reads. Where the program measured that around each
    /// token, of the time of the token's steps; else of the measured speed and the peak. Peers tell none.
    pub(super) share_of_read: Option<f64>,
    /// Operations that had to be done for it, over what the machine does in its matrix type.
    pub(super) share_of_matrix: Option<f64>,
    /// The figure of each turn.
    pub(super) runs: Vec<f64>,
}

/// One kernel in every entrant.
#[derive(Debug, Serialize)]
pub(super) struct KernelRow {
    /// The work it was called for.
    pub(super) phase: Phase,
    /// Its symbol.
    pub(super) name: String,
    /// One for each entrant; none where it has no such kernel.
    pub(super) entrants: Vec<Option<KernelFigures>>,
}

/// One kernel of one entrant, for a whole prompt or for one generated token.
#[derive(Clone, Debug, Serialize)]
pub(super) struct KernelFigures {
    /// Calls.
    pub(super) calls: f64,
    /// Microseconds.
    pub(super) us: Spread,
    /// Bytes that had to be moved.
    pub(super) bytes: f64,
    /// Operations that had to be done.
    pub(super) operations: f64,
    /// The time the peak would have taken, measured around it, over the time it took.
    pub(super) share_of_peak: f64,
}

impl Machine {
    /// The machine this runs on.
    pub(super) fn this() -> Self {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(field, _)| field.trim() == "model name")
            .map(|(_, name)| name.trim().to_owned());
        Self { processor: name.unwrap_or_else(|| "a processor without a name".to_owned()) }
    }
}

impl Comparison {
    /// Puts `turns[turn][entrant]` together.
    pub(super) fn new(
        machine: Machine,
        workload: Workload,
        described: Vec<Description>,
        turns: &[Vec<Turn>],
    ) -> Self {
        let entrants = described.into_iter().enumerate();
        let entrants: Vec<Measured> =
            entrants.map(|(entrant, description)| measured(&workload, description, turns, entrant)).collect();
        let kernels = workload
            .phases()
            .flat_map(|phase| kernel_rows(&workload, phase, turns, entrants.len()))
            .collect();
        Self { machine, workload, peak: PeakSpread::of(turns), entrants, kernels }
    }

    /// The results of one phase, entrant by entrant.
    pub(super) fn results(&self, phase: Phase) -> impl Iterator<Item = (&Measured, &TestResult)> {
        self.entrants.iter().filter_map(move |entrant| {
            let result = entrant.results.iter().find(|result| result.phase == phase)?;
            Some((entrant, result))
        })
    }

    /// The kernels of one phase, the longest first.
    pub(super) fn kernels(&self, phase: Phase) -> impl Iterator<Item = &KernelRow> {
        self.kernels.iter().filter(move |row| row.phase == phase)
    }
}

impl PeakSpread {
    fn of(turns: &[Vec<Turn>]) -> Option<Self> {
        let measurements = turns.iter().flatten().flat_map(|turn| &turn.phases);
        let peaks: Vec<&Peak> =
            measurements.filter_map(|phase| phase.profile.as_ref().map(|profile| &profile.peak)).collect();
        let spread = |rate: fn(&Peak) -> Option<f64>| Spread::of(peaks.iter().filter_map(|peak| rate(peak)));
        Some(Self {
            read_bytes_per_s: spread(|peak| Some(peak.read_bytes_per_s))?,
            operations_per_s: spread(|peak| Some(peak.operations_per_s))?,
            bf16_operations_per_s: spread(|peak| peak.bf16_operations_per_s),
            int8_operations_per_s: spread(|peak| peak.int8_operations_per_s),
        })
    }

    /// The rate that kernels are held against, and the type it is in.
    pub(super) fn matrix_operations_per_s(&self) -> (Spread, &'static str) {
        self.bf16_operations_per_s.map_or((self.operations_per_s, "f32"), |rate| (rate, "bf16"))
    }
}

/// One entrant's measurements of a phase, turn by turn.
fn phase_of(turns: &[Vec<Turn>], entrant: usize, phase: Phase) -> impl Iterator<Item = &PhaseMeasurement> {
    turns
        .iter()
        .filter_map(move |turn| turn.get(entrant)?.phases.iter().find(|measured| measured.phase == phase))
}

fn measured(workload: &Workload, description: Description, turns: &[Vec<Turn>], entrant: usize) -> Measured {
    let threads = turns.first().and_then(|turn| turn.get(entrant)).map_or(0, |turn| turn.threads);
    let results = workload.phases().filter_map(|phase| test_result(workload, phase, turns, entrant));
    Measured { description, threads, results: results.collect() }
}

fn test_result(workload: &Workload, phase: Phase, turns: &[Vec<Turn>], entrant: usize) -> Option<TestResult> {
    let runs: Vec<f64> =
        phase_of(turns, entrant, phase).map(|measurement| measurement.tokens_per_s).collect();
    let first = phase_of(turns, 0, phase).map(|measurement| measurement.tokens_per_s);
    let ratios = runs.iter().zip(first).map(|(own, first)| own / first.max(f64::MIN_POSITIVE));
    let tokens = workload.tokens(phase) as f64;
    let share = |measurement: &PhaseMeasurement, work: fn(&KernelTotals) -> u64, limit: fn(&Peak) -> f64| {
        let profile = measurement.profile.as_ref()?;
        let work_per_token = profile.kernels.iter().map(work).sum::<u64>() as f64 / tokens;
        Some(work_per_token * measurement.tokens_per_s / limit(&profile.peak))
    };
    let share_of_read = |measurement: &PhaseMeasurement| {
        let beside_reads = measurement.profile.as_ref().and_then(|profile| profile.generation.as_ref());
        let of_peak = || share(measurement, |kernel| kernel.bytes, |peak| peak.read_bytes_per_s);
        beside_reads.map(|generation| generation.share_of_read).or_else(of_peak)
    };
    let share_of_matrix = |measurement: &PhaseMeasurement| {
        share(measurement, |kernel| kernel.operations, Peak::matrix_operations_per_s)
    };
    let median_of = |share: &dyn Fn(&PhaseMeasurement) -> Option<f64>| {
        let shares = phase_of(turns, entrant, phase).filter_map(share);
        Spread::of(shares).map(|spread| spread.median)
    };
    Some(TestResult {
        phase,
        test: workload.test_name(phase),
        tokens_per_s: Spread::of(runs.iter().copied())?,
        ratio: Spread::of(ratios)?,
        share_of_read: median_of(&share_of_read),
        share_of_matrix: median_of(&share_of_matrix),
        runs,
    })
}

fn kernel_rows(workload: &Workload, phase: Phase, turns: &[Vec<Turn>], entrants: usize) -> Vec<KernelRow> {
    let mut names: Vec<&str> = Vec::new();
    for kernel in (0..entrants).flat_map(|entrant| kernels_of(turns, entrant, phase)) {
        if !names.contains(&kernel.name.as_str()) {
            names.push(&kernel.name);
        }
    }
    let row = |name: &str| KernelRow {
        phase,
        name: name.to_owned(),
        entrants: (0..entrants)
            .map(|entrant| kernel_figures(workload, phase, turns, entrant, name))
            .collect(),
    };
    let mut rows: Vec<KernelRow> = names.into_iter().map(row).collect();
    rows.sort_by(|one, other| other.longest_us().total_cmp(&one.longest_us()));
    rows
}

fn kernels_of(turns: &[Vec<Turn>], entrant: usize, phase: Phase) -> impl Iterator<Item = &KernelTotals> {
    phase_of(turns, entrant, phase)
        .filter_map(|measurement| measurement.profile.as_ref())
        .flat_map(|profile| &profile.kernels)
}

fn kernel_figures(
    workload: &Workload,
    phase: Phase,
    turns: &[Vec<Turn>],
    entrant: usize,
    name: &str,
) -> Option<KernelFigures> {
    // A prompt is one piece of work, a generation as many as it has tokens.
    let pieces = match phase {
        Phase::Prompt => 1.0,
        Phase::Generation => workload.generate as f64,
    };
    let all: Vec<&KernelTotals> =
        kernels_of(turns, entrant, phase).filter(|kernel| kernel.name == name).collect();
    let first = all.first()?;
    let us = Spread::of(all.iter().map(|kernel| kernel.us / pieces))?;
    // What the peak around each measurement would have taken.
    let peak_us = Spread::of(all.iter().map(|kernel| kernel.share_of_peak * kernel.us / pieces))?;
    Some(KernelFigures {
        calls: first.calls as f64 / pieces,
        us,
        bytes: first.bytes as f64 / pieces,
        operations: first.operations as f64 / pieces,
        share_of_peak: peak_us.median / us.median.max(f64::MIN_POSITIVE),
    })
}

impl KernelRow {
    /// The longest time that an entrant spends in it.
    pub(super) fn longest_us(&self) -> f64 {
        self.entrants.iter().flatten().map(|figures| figures.us.median).fold(0.0, f64::max)
    }

    /// How much faster an entrant's kernel is than the first entrant's.
    pub(super) fn ratio(&self, entrant: usize) -> Option<f64> {
        let time = |entrant: usize| Some(self.entrants.get(entrant)?.as_ref()?.us.median);
        Some(time(0)? / time(entrant)?.max(f64::MIN_POSITIVE))
    }
}

impl KernelFigures {
    /// Operations for each byte that is moved.
    pub(super) fn operations_per_byte(&self) -> f64 {
        self.operations / self.bytes.max(1.0)
    }

    /// Operations per second.
    pub(super) fn operations_per_s(&self) -> f64 {
        self.operations / (self.us.median * 1e-6).max(f64::MIN_POSITIVE)
    }

    /// Bytes per second.
    pub(super) fn bytes_per_s(&self) -> f64 {
        self.bytes / (self.us.median * 1e-6).max(f64::MIN_POSITIVE)
    }
}

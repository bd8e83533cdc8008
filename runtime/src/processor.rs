//! Where threads run, and the mode their processors compute in.

use std::io;
use std::sync::LazyLock;

use qwen2c_format::Diagnostic;

use crate::machine;

/// Most threads that `--threads` accepts.
pub(crate) const MOST_THREADS: usize = 1024;

/// Logical processors that this process may run on, ascending. Read once, before any thread is pinned: the
/// mask of a pinned thread says where that thread runs, not what the process was given.
static ALLOWED_PROCESSORS: LazyLock<Vec<usize>> = LazyLock::new(allowed_processors);

/// How many workers there are and where they run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Workers, the main thread included.
    pub(crate) threads: usize,
    /// Logical processor of each worker; empty where the system places them.
    pub(crate) cores: Vec<usize>,
    /// There are more workers than cores.
    pub(crate) shares_cores: bool,
    /// Workers where nothing else was asked for: one a core.
    pub(crate) usable: usize,
}

impl Placement {
    /// Workers that the system may run wherever it likes.
    #[cfg(test)]
    pub(crate) fn unpinned(threads: usize) -> Self {
        Self { threads, cores: Vec::new(), shares_cores: true, usable: 1 }
    }

    /// Chooses cores: as many as were asked for, or one worker for each physical core that the
    /// affinity mask allows, as far as the control group's quota goes.
    pub fn choose(asked: Option<usize>) -> Self {
        Self::from_machine(asked, &ALLOWED_PROCESSORS, machine::processor_quota())
    }

    fn from_machine(asked: Option<usize>, allowed: &[usize], quota: Option<usize>) -> Self {
        let cores = machine::physical_cores(allowed);
        let usable = cores.len().min(quota.unwrap_or(usize::MAX)).max(1);
        let threads = asked.unwrap_or(usable).max(1);
        let shares_cores = threads > usable;
        // Second threads of a core come after every core has one; beyond that the system decides.
        let siblings = allowed.iter().copied().filter(|cpu| !cores.contains(cpu));
        let places: Vec<usize> = cores.iter().copied().chain(siblings).take(threads).collect();
        let cores = if places.len() < threads { Vec::new() } else { places };
        Self { threads, cores, shares_cores, usable }
    }

    /// The logical processor that a worker is pinned to.
    pub(crate) fn core_of(&self, worker: usize) -> Option<usize> {
        self.cores.get(worker).copied()
    }
}

/// Logical processors that this thread may run on, ascending.
fn allowed_processors() -> Vec<usize> {
    // SAFETY: the set is plain bits, for which zeros are valid, and the call writes no more than the
    // size it is given.
    let (result, set) = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        (libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set), set)
    };
    if result != 0 {
        // More processors than the set has bits: count them, let the system place the threads.
        return (0..std::thread::available_parallelism().map_or(1, |count| count.get())).collect();
    }
    // SAFETY: every index is below the number of bits of the set.
    (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

/// Pins the calling thread and switches its vector unit to flush denormal numbers to zero.
///
/// Denormal numbers take a slow path in some processors and none in others; with them flushed, a
/// kernel's speed does not depend on the values.
pub(crate) fn prepare_thread(core: Option<usize>) {
    if let Some(core) = core {
        // A refusal costs speed alone, and only where the mask changed since it was read.
        let _ = pin(core);
    }
    flush_denormals();
}

/// Microseconds for which processors have worked for this process since it was started; 0 where the
/// system does not tell.
pub(crate) fn consumed_us() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes no more than the struct it is given.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    if result == 0 { time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3 } else { 0.0 }
}

fn pin(core: usize) -> io::Result<()> {
    if core >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: the core is below the number of bits of the set, for which zeros are valid; the call
    // only reads it.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(target_arch = "x86_64")]
fn flush_denormals() {
    /// Flush to zero (bit 15) and denormals are zeros (bit 6).
    const FLUSH: u32 = 1 << 15 | 1 << 6;
    let mut control = 0_u32;
    // SAFETY: reads and writes this thread's MXCSR through valid memory; the rounding and exception
    // bits stay as they are.
    unsafe {
        std::arch::asm!("stmxcsr [{}]", in(reg) &mut control, options(nostack, preserves_flags));
        control |= FLUSH;
        std::arch::asm!("ldmxcsr [{}]", in(reg) &control, options(nostack, preserves_flags, readonly));
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn flush_denormals() {}

/// Makes sure of the permission to use the matrix unit's registers, where the program's target uses them.
/// Threads made later inherit it. `ask` is [`ask_for_tiles`], or a test's.
///
/// # Errors
///
/// Where the kernel refuses: it is older than 5.16, or was told to.
pub(crate) fn request_matrix_unit(
    required_features: &[String],
    ask: impl FnOnce() -> io::Result<()>,
) -> Result<(), Diagnostic> {
    if !required_features.iter().any(|feature| feature == "amx_tile") {
        return Ok(());
    }
    ask().map_err(|error| {
        Diagnostic::new("the system does not grant the processor's matrix unit (AMX)")
            .cause(error.to_string())
            .needed("Linux 5.16 or newer, with AMX enabled")
            // What every processor with a matrix unit has besides.
            .help("build the program with `--target x86-64-v4+avx512vnni+avx512bf16` instead")
    })
}

/// Asks the kernel for the matrix unit's registers.
///
/// # Errors
///
/// The kernel's.
pub(crate) fn ask_for_tiles() -> io::Result<()> {
    /// `ARCH_REQ_XCOMP_PERM`.
    const REQUEST: libc::c_ulong = 0x1023;
    /// State component of AMX tile data.
    const TILE_DATA: libc::c_ulong = 18;
    // SAFETY: the call changes a permission of this process and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_follow_cores_and_quota() {
        // Processors beyond any machine's have no topology: each counts as a core.
        let allowed = [100_000, 100_001, 100_002];
        let placement = Placement::from_machine(None, &allowed, None);
        assert_eq!((placement.threads, placement.shares_cores), (3, false));
        assert_eq!(placement.cores, allowed);
        assert_eq!(Placement::from_machine(None, &allowed, Some(2)).cores, allowed[..2]);
        let crowded = Placement::from_machine(Some(5), &allowed, None);
        assert_eq!((crowded.threads, crowded.shares_cores, crowded.core_of(0)), (5, true, None));
        assert_eq!((crowded.usable, placement.usable), (3, 3));
        assert_eq!(Placement::from_machine(None, &[], None).threads, 1);
    }

    #[test]
    fn a_matrix_unit_that_is_not_granted_is_named_with_the_next_best_target() {
        let refuse = || Err(io::Error::from_raw_os_error(libc::ENOTSUP));
        let amx = ["avx2".to_owned(), "amx_tile".to_owned()];
        let message = request_matrix_unit(&amx, refuse).expect_err("it was refused").to_string();
        for part in ["(AMX)", "not supported", "5.16", "`--target x86-64-v4+avx512vnni+avx512bf16`"] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert_eq!(request_matrix_unit(&amx, || Ok(())), Ok(()));
        assert_eq!(request_matrix_unit(&amx[..1], || panic!("nothing to ask for")), Ok(()));
        // Where there is no such unit the system itself refuses.
        let processor = machine::processor().expect("`/proc` is there");
        let refused = request_matrix_unit(&amx, ask_for_tiles).is_err();
        assert!(refused || processor.features.contains("amx_tile"));
    }

    #[test]
    fn denormals_are_flushed_where_asked() {
        let halve = |value: f32| std::hint::black_box(value) * std::hint::black_box(0.5);
        let flushed = std::thread::spawn(move || {
            prepare_thread(None);
            halve(f32::MIN_POSITIVE)
        });
        assert_eq!(flushed.join().expect("the thread only multiplies"), 0.0);
        assert!(halve(f32::MIN_POSITIVE) > 0.0);
    }
}

//! Whether the system gives large pages, and what a program says where it does not.
//!
//! Kernels stream through gigabytes. With pages of 4 KiB the processor looks up an address for every 4 KiB
//! that it reads, and is short of addresses before it is short of bandwidth. The answers are the same, so a
//! refusal is a note and no error.

use std::fs;
use std::io;

use crate::memory::{self, Mapping};
use crate::program::bytes_text;

/// Where the system says for whom it has large pages: `always [madvise] never`, with brackets around what
/// is in force.
const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
/// The same for pages of 2 MiB alone, on systems that have pages of several sizes: `inherit` is [`SETTING`].
const SETTING_OF_2_MIB: &str = "/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/enabled";

/// Programs that use less memory hardly wait for addresses: the tables of a processor reach some megabytes,
/// and the tables behind those lie in its caches.
const NOTED_FROM_BYTES: u64 = 64 << 20;

/// Why memory lies on small pages. The advice a program gives is taken in silence in all cases but the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The system does not know the advice: it was built without large pages, or is an imitation of Linux.
    Unknown,
    /// They are switched off for this process, by whoever started it.
    ForThisProcess,
    /// They are switched off for memory without a file behind it; files have theirs by another rule.
    ForAllMemory,
}

impl Refusal {
    /// What the system refuses to a program with these weights: nothing, where they are to be had.
    pub(crate) fn found(weights: &Mapping) -> Option<Self> {
        let settings = [SETTING_OF_2_MIB, SETTING].map(|path| fs::read_to_string(path).unwrap_or_default());
        let setting = setting_in_force(&settings);
        Self::of(weights.advice(), memory::large_pages_are_off_for_this_process(), setting)
    }

    fn of(advice: &io::Result<()>, off_for_this_process: bool, setting: &str) -> Option<Self> {
        if advice.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidInput) {
            Some(Self::Unknown)
        } else if off_for_this_process {
            Some(Self::ForThisProcess)
        } else {
            setting.contains("[never]").then_some(Self::ForAllMemory)
        }
    }

    /// What is said of it to somebody whose program has so many bytes of weights and of arena; nothing where
    /// it hardly matters.
    pub(crate) fn note(self, weights_bytes: u64, arena_bytes: u64) -> Option<String> {
        let (what, bytes) = match self {
            Self::Unknown | Self::ForThisProcess => ("weights and cache lie", weights_bytes + arena_bytes),
            Self::ForAllMemory => ("cache and activations lie", arena_bytes),
        };
        let (cause, remedy) = match self {
            Self::Unknown => (
                "this system knows none".to_owned(),
                "a Linux kernel with transparent huge pages has them".to_owned(),
            ),
            Self::ForThisProcess => (
                "they are switched off for this process".to_owned(),
                "start it without `PR_SET_THP_DISABLE`".to_owned(),
            ),
            Self::ForAllMemory => {
                (format!("`{SETTING}` says `never`"), format!("as root, `echo madvise > {SETTING}`"))
            }
        };
        (bytes >= NOTED_FROM_BYTES).then(|| {
            let bytes = bytes_text(bytes);
            format!(
                "note: the system gives no large pages ({cause}): {what} on small ones, {bytes}, and are read \
                 more slowly; to change that: {remedy}"
            )
        })
    }
}

/// What holds for pages of 2 MiB, of the settings for these and for all.
fn setting_in_force([of_2_mib, of_all]: &[String; 2]) -> &str {
    if of_2_mib.is_empty() || of_2_mib.contains("[inherit]") { of_all } else { of_2_mib }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON: &str = "always [madvise] never\n";
    const OFF: &str = "always madvise [never]\n";

    #[test]
    fn refusals_are_told_apart() {
        let refused = || Err(io::Error::from_raw_os_error(libc::EINVAL));
        assert_eq!(Refusal::of(&Ok(()), false, ON), None);
        assert_eq!(Refusal::of(&Ok(()), false, "[always] madvise never\n"), None);
        assert_eq!(Refusal::of(&Ok(()), false, ""), None, "a system without the file took the advice");
        assert_eq!(Refusal::of(&Ok(()), false, OFF), Some(Refusal::ForAllMemory));
        assert_eq!(Refusal::of(&Ok(()), true, ON), Some(Refusal::ForThisProcess));
        assert_eq!(Refusal::of(&refused(), false, ""), Some(Refusal::Unknown));
        // Too little memory for the system's own tables is no rule of the system's.
        assert_eq!(Refusal::of(&Err(io::Error::from_raw_os_error(libc::ENOMEM)), false, ON), None);
    }

    #[test]
    fn pages_of_2_mib_may_have_a_setting_of_their_own() {
        let in_force = |of_2_mib: &str| setting_in_force(&[of_2_mib.to_owned(), OFF.to_owned()]).to_owned();
        assert_eq!(in_force(""), OFF);
        assert_eq!(in_force("always [inherit] madvise never\n"), OFF);
        assert!(in_force("always inherit [madvise] never\n").contains("[madvise]"));
    }

    #[test]
    fn a_process_without_large_pages_sees_it() {
        let weights = Mapping::zeroed(4096).expect("a page can be mapped");
        memory::switch_large_pages_of_this_process(false);
        let found = Refusal::found(&weights);
        memory::switch_large_pages_of_this_process(true);
        assert!(matches!(found, Some(Refusal::ForThisProcess | Refusal::Unknown)), "{found:?}");
        assert_ne!(Refusal::found(&weights), Some(Refusal::ForThisProcess));
    }

    #[test]
    fn notes_say_why_what_it_costs_and_what_helps() {
        let large = NOTED_FROM_BYTES;
        let note = Refusal::ForAllMemory.note(0, large).expect("the arena is large");
        for part in ["`never`", "cache and activations lie on small ones", "64.00 MiB", "echo madvise >"] {
            assert!(note.contains(part), "{part}: {note}");
        }
        let note = Refusal::Unknown.note(large, 0).expect("the weights are large");
        assert!(note.contains("weights and cache") && note.contains("Linux kernel"), "{note}");
        let note = Refusal::ForThisProcess.note(large / 2, large / 2).expect("both together are large");
        assert!(note.contains("PR_SET_THP_DISABLE"), "{note}");
    }

    #[test]
    fn little_memory_is_no_reason_for_a_note() {
        assert_eq!(Refusal::ForAllMemory.note(NOTED_FROM_BYTES, NOTED_FROM_BYTES - 1), None);
        assert_eq!(Refusal::Unknown.note(NOTED_FROM_BYTES / 2, NOTED_FROM_BYTES / 2 - 1), None);
    }
}

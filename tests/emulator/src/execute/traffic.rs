//! Counts what accesses cost: bytes, sectors, bank conflicts.

use super::access::Deed;
use super::registers::{LANES, Lanes, lanes_of};
use crate::Counts;

/// Bytes of a sector of global memory.
const SECTOR_BYTES: u64 = 32;
/// Banks of shared memory, each 4 bytes wide.
const BANKS: usize = 32;

/// Counts one instruction's access to global memory.
pub(crate) fn note_global(counts: &mut Counts, deed: Deed, addresses: &Lanes<u64>, mask: u32, length: usize) {
    let lanes = u64::from(mask.count_ones());
    let bytes = lanes * length as u64;
    let sectors = sectors(addresses, mask, length);
    match deed {
        Deed::Read | Deed::ReadConstant => {
            counts.global_read_bytes += bytes;
            counts.global_loads += lanes;
            counts.global_load_transactions += sectors;
            if length >= 16 {
                counts.global_loads_of_16_bytes += lanes;
            }
        }
        Deed::Write => {
            counts.global_written_bytes += bytes;
            counts.global_store_transactions += sectors;
        }
        Deed::Modify => counts.atomic_operations += lanes,
    }
}

/// Sectors that the lanes touch, each once.
fn sectors(addresses: &Lanes<u64>, mask: u32, length: usize) -> u64 {
    let length = length as u64;
    let mut found = [0u64; LANES];
    let mut count = 0;
    for lane in lanes_of(mask) {
        // Accesses are aligned, so none but the widest fills more than one sector, and none straddles two.
        let sector = addresses[lane] / SECTOR_BYTES;
        if count == 0 || found[count - 1] != sector {
            found[count] = sector;
            count += 1;
        }
    }
    let found = &mut found[..count];
    let mut distinct = 0;
    if found.is_sorted() {
        distinct = 1 + found.windows(2).filter(|pair| pair[0] != pair[1]).count();
    } else {
        found.sort_unstable();
        distinct += 1 + found.windows(2).filter(|pair| pair[0] != pair[1]).count();
    }
    distinct as u64 * length.div_ceil(SECTOR_BYTES)
}

/// Counts one instruction's access to shared memory.
pub(crate) fn note_shared(counts: &mut Counts, addresses: &Lanes<u64>, mask: u32, length: usize) {
    counts.shared_accesses += 1;
    // Wide accesses are served for a half or a quarter of the warp at a time.
    let lanes_at_once = if length <= 4 { LANES } else { LANES * 4 / length.min(16) };
    for first in (0..LANES).step_by(lanes_at_once) {
        let group = if lanes_at_once == LANES { mask } else { mask & (((1 << lanes_at_once) - 1) << first) };
        counts.shared_bank_conflicts += conflicts(addresses, group, length);
    }
}

/// Passes beyond the first that the banks need for the lanes of `mask`.
pub(crate) fn conflicts(addresses: &Lanes<u64>, mask: u32, length: usize) -> u64 {
    let words_of_lane = length.div_ceil(4) as u64;
    if is_consecutive(addresses, mask, length) {
        return 0;
    }
    let mut first_words = [0u64; BANKS];
    let mut taken = 0u32;
    let all = |lane: usize| addresses[lane] / 4..addresses[lane] / 4 + words_of_lane;
    let has_conflict = lanes_of(mask).flat_map(all).any(|word| {
        let bank = word as usize % BANKS;
        let is_other = taken >> bank & 1 == 1 && first_words[bank] != word;
        taken |= 1 << bank;
        first_words[bank] = word;
        is_other
    });
    if !has_conflict {
        return 0;
    }
    let mut words: Vec<u64> = lanes_of(mask).flat_map(all).collect();
    words.sort_unstable();
    words.dedup();
    let mut counts = [0u64; BANKS];
    words.iter().for_each(|word| counts[*word as usize % BANKS] += 1);
    counts.iter().max().map_or(0, |most| most - 1)
}

/// Whether every lane's access lies behind that of the lane before it.
fn is_consecutive(addresses: &Lanes<u64>, mask: u32, length: usize) -> bool {
    let mut lanes = lanes_of(mask);
    let Some(first) = lanes.next() else { return true };
    let base = addresses[first].wrapping_sub((first * length) as u64);
    lanes.all(|lane| addresses[lane] == base.wrapping_add((lane * length) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(address: impl Fn(usize) -> u64) -> Lanes<u64> {
        std::array::from_fn(address)
    }

    #[test]
    fn sectors_are_counted_once() {
        assert_eq!(sectors(&with(|lane| lane as u64 * 4), u32::MAX, 4), 4);
        assert_eq!(sectors(&with(|lane| lane as u64 * 16), u32::MAX, 16), 16);
        assert_eq!(sectors(&with(|_| 64), u32::MAX, 4), 1);
        assert_eq!(sectors(&with(|lane| lane as u64 * 128), u32::MAX, 4), 32);
        assert_eq!(sectors(&with(|lane| (31 - lane as u64) * 4), u32::MAX, 4), 4);
        assert_eq!(sectors(&with(|lane| lane as u64 * 32), u32::MAX, 32), 32);
    }

    #[test]
    fn banks_conflict_where_words_differ() {
        let mut counts = Counts::default();
        let mut conflicts = |length: usize, address: &dyn Fn(usize) -> u64| {
            let before = counts.shared_bank_conflicts;
            note_shared(&mut counts, &with(address), u32::MAX, length);
            counts.shared_bank_conflicts - before
        };
        assert_eq!(conflicts(4, &|lane| lane as u64 * 4), 0);
        assert_eq!(conflicts(4, &|_| 4), 0);
        assert_eq!(conflicts(4, &|lane| lane as u64 * 8), 1);
        assert_eq!(conflicts(4, &|lane| lane as u64 * 128), 31);
        assert_eq!(conflicts(2, &|lane| lane as u64 * 2), 0);
        assert_eq!(conflicts(8, &|lane| lane as u64 * 8), 0);
        assert_eq!(conflicts(16, &|lane| lane as u64 * 16), 0);
        // Rows of 128 bytes, eight lanes at a time: all in the same four banks.
        assert_eq!(conflicts(16, &|lane| lane as u64 * 128), 4 * 7);
        assert_eq!(conflicts(16, &|lane| lane as u64 * 144), 0);
    }
}

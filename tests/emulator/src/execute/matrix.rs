//! Executes matrix products of a warp and the loads and stores of their fragments.
//!
//! A lane has a group (its number divided by 4) and a place in the group (the remainder). With `e` elements in a
//! register, register `i` of A holds row `group + 8 (i mod 2)` and columns `4 e (i / 2) + e place + j`; register
//! `i` of B holds column `group` and rows `4 e i + e place + j`; the sums lie in rows `group` and `group + 8` and
//! columns `2 place` and `2 place + 1`.

use super::access::Deed;
use super::numbers::{Brain, HALF, Half, Short, round_to_format};
use super::registers::{LANES, Lanes, lanes_of};
use super::traffic;
use super::trouble::{Outcome, trouble};
use super::turn::{Next, Turn};
use crate::ptx::decode::convert::Rounding;
use crate::ptx::decode::matrix::{Factor, Matrix, Sum};
use crate::ptx::decode::memory::Order;
use crate::ptx::registers::Slot;
use crate::ptx::resolver::{Address, Space};

const ROWS: usize = 16;
const COLUMNS: usize = 8;

/// Rows of A times columns of B.
type Sums = [[f64; COLUMNS]; ROWS];

impl Turn<'_, '_> {
    pub(crate) fn matrix(&mut self, instruction: &Matrix) -> Outcome<Next> {
        let active = self.warp.registers.active;
        if active != u32::MAX {
            let what = format!("a matrix instruction by {} of 32 lanes", active.count_ones());
            return trouble(active.trailing_zeros() as usize, what);
        }
        match instruction {
            Matrix::Multiply { depth, .. } => {
                match depth {
                    4 => self.multiply::<4>(instruction),
                    8 => self.multiply::<8>(instruction),
                    16 => self.multiply::<16>(instruction),
                    _ => self.multiply::<32>(instruction),
                }
                Ok(Next::Step)
            }
            Matrix::Load { space, transposed, to, address } => {
                let rows = self.rows(*space, address, to.len(), Deed::Read)?;
                let mut matrices = [[[0u16; 8]; 8]; 4];
                for (lane, start) in rows[..8 * to.len()].iter().enumerate() {
                    let bytes = &self.bytes(Space::Shared, *start)[..16];
                    for column in 0..8 {
                        let element = u16::from_le_bytes([bytes[2 * column], bytes[2 * column + 1]]);
                        matrices[lane / 8][lane % 8][column] = element;
                    }
                }
                for (matrix, slot) in matrices.iter().zip(to) {
                    self.warp.registers.write(*slot, fragment(matrix, *transposed));
                }
                Ok(Next::Accessed)
            }
            Matrix::Store { space, transposed, from, address } => {
                let rows = self.rows(*space, address, from.len(), Deed::Write)?;
                for (number, slot) in from.iter().enumerate() {
                    let words = self.warp.registers.read::<u32>(*slot);
                    let matrix = unfragment(&words, *transposed);
                    for (row, elements) in matrix.iter().enumerate() {
                        let start = rows[8 * number + row];
                        for (column, element) in elements.iter().enumerate() {
                            let into = &mut self.bytes_mut(Space::Shared, start + 2 * column)[..2];
                            into.copy_from_slice(&element.to_le_bytes());
                        }
                        self.note_written(Space::Shared, start, 16);
                    }
                }
                Ok(Next::Accessed)
            }
            Matrix::Transpose { to, from } => {
                let words = self.warp.registers.read::<u32>(*from);
                self.warp.registers.write(*to, fragment(&unfragment(&words, false), true));
                Ok(Next::Step)
            }
        }
    }

    /// Where the rows of `matrices` matrices begin in shared memory; lane `i` gives the address of row `i`.
    fn rows(
        &mut self,
        space: Space,
        address: &Address,
        matrices: usize,
        deed: Deed,
    ) -> Outcome<Lanes<usize>> {
        let addresses = self.addresses(address);
        let (addresses, masks) = self.resolve(space, addresses);
        let mut rows = [0; LANES];
        let wanted = if matrices == 4 { u32::MAX } else { (1 << (8 * matrices)) - 1 };
        let elsewhere = wanted & !masks[1].1;
        if elsewhere != 0 {
            return trouble(elsewhere.trailing_zeros() as usize, "a row outside shared memory".to_owned());
        }
        self.machine.counts.shared_accesses += 1;
        for matrix in 0..matrices {
            let mask = 0xff << (8 * matrix);
            self.machine.counts.shared_bank_conflicts += traffic::conflicts(&addresses, mask, 16);
            for lane in lanes_of(mask) {
                rows[lane] = self.check(Space::Shared, deed, Order::Weak, lane, addresses[lane], 16)?;
            }
        }
        self.machine.progress();
        Ok(rows)
    }

    fn multiply<const DEPTH: usize>(&mut self, instruction: &Matrix) {
        let Matrix::Multiply { first, second, sum, saturates, to, a, b, c, .. } = instruction else {
            return;
        };
        self.machine.counts.matrix_operations += 1;
        self.machine.counts.matrix_scalar_operations += (2 * ROWS * COLUMNS * DEPTH) as u64;
        let of_a = self.gather_a::<DEPTH>(*first, a);
        let of_b = self.gather_b::<DEPTH>(*second, b);
        // Sums of whole numbers stay below 2^53 and are exact; the others are rounded once at the end.
        let mut sums: Sums = [[0.0; COLUMNS]; ROWS];
        for (sums, row) in sums.iter_mut().zip(&of_a) {
            for (of_a, of_b) in row.iter().zip(&of_b) {
                for column in 0..COLUMNS {
                    sums[column] += of_a * of_b[column];
                }
            }
        }
        self.finish(&sums, *sum, *saturates, to, c);
    }

    fn gather_a<const DEPTH: usize>(&mut self, factor: Factor, slots: &[Slot]) -> [[f64; DEPTH]; ROWS] {
        let per_register = factor.per_register();
        let mut matrix = [[0.0; DEPTH]; ROWS];
        for (number, slot) in slots.iter().enumerate() {
            let words = self.warp.registers.read::<u32>(*slot);
            for (lane, elements) in elements_of(factor, &words).iter().enumerate() {
                let (group, place) = (lane / 4, lane % 4);
                let column = 4 * per_register * (number / 2) + per_register * place;
                let row = &mut matrix[group + 8 * (number % 2)][column..column + per_register];
                row.copy_from_slice(&elements[..per_register]);
            }
        }
        matrix
    }

    fn gather_b<const DEPTH: usize>(&mut self, factor: Factor, slots: &[Slot]) -> [[f64; COLUMNS]; DEPTH] {
        let per_register = factor.per_register();
        let mut matrix = [[0.0; COLUMNS]; DEPTH];
        for (number, slot) in slots.iter().enumerate() {
            let words = self.warp.registers.read::<u32>(*slot);
            for (lane, elements) in elements_of(factor, &words).iter().enumerate() {
                let (group, place) = (lane / 4, lane % 4);
                let row = 4 * per_register * number + per_register * place;
                for (element, value) in elements[..per_register].iter().enumerate() {
                    matrix[row + element][group] = *value;
                }
            }
        }
        matrix
    }

    /// Adds C and writes D.
    fn finish(&mut self, sums: &Sums, sum: Sum, saturates: bool, to: &[Slot], c: &[Slot]) {
        for (number, (to, c)) in to.iter().zip(c).enumerate() {
            let words = self.warp.registers.read::<u32>(*c);
            let of_lane = |lane: usize| {
                let (group, place) = (lane / 4, lane % 4);
                let word = words[lane];
                match sum {
                    Sum::F32 => {
                        let found = sums[group + 8 * (number / 2)][2 * place + number % 2];
                        ((found + f64::from(f32::from_bits(word))) as f32).to_bits()
                    }
                    Sum::S32 => {
                        let found = sums[group + 8 * (number / 2)][2 * place + number % 2];
                        let whole = found as i64 + i64::from(word as i32);
                        let limits = (i64::from(i32::MIN), i64::from(i32::MAX));
                        (if saturates { whole.clamp(limits.0, limits.1) } else { whole }) as u32
                    }
                    Sum::F16 => {
                        let half = |at: usize| {
                            let found = sums[group + 8 * number][2 * place + at];
                            let old = Half((word >> (16 * at)) as u16).widen();
                            round_to_format(found + f64::from(old), HALF, Rounding::Nearest)
                        };
                        half(0) | half(1) << 16
                    }
                }
            };
            let result = std::array::from_fn(of_lane);
            self.warp.registers.write::<u32>(*to, result);
        }
    }
}

/// The elements of a register of A or B in every lane; short registers end in zeros.
fn elements_of(factor: Factor, words: &Lanes<u32>) -> [[f64; 4]; LANES] {
    let halves = |word: u32| [word as u16, (word >> 16) as u16];
    match factor {
        Factor::F16 => words.map(|word| {
            let [low, high] = halves(word).map(|half| f64::from(Half(half).widen()));
            [low, high, 0.0, 0.0]
        }),
        Factor::BF16 => words.map(|word| {
            let [low, high] = halves(word).map(|half| f64::from(Brain(half).widen()));
            [low, high, 0.0, 0.0]
        }),
        // Hardware ignores the lower 13 bits.
        Factor::TF32 => words.map(|word| [f64::from(f32::from_bits(word & 0xffff_e000)), 0.0, 0.0, 0.0]),
        Factor::S8 => words.map(|word| word.to_le_bytes().map(|byte| f64::from(byte as i8))),
        Factor::U8 => words.map(|word| word.to_le_bytes().map(f64::from)),
    }
}

/// The registers of all lanes that hold a matrix.
fn fragment(matrix: &[[u16; 8]; 8], transposed: bool) -> Lanes<u32> {
    std::array::from_fn(|lane| {
        let (row, column) = (lane / 4, 2 * (lane % 4));
        let (low, high) = if transposed {
            (matrix[column][row], matrix[column + 1][row])
        } else {
            (matrix[row][column], matrix[row][column + 1])
        };
        u32::from(low) | u32::from(high) << 16
    })
}

/// The matrix that registers of all lanes hold.
fn unfragment(words: &Lanes<u32>, transposed: bool) -> [[u16; 8]; 8] {
    let mut matrix = [[0; 8]; 8];
    for (lane, word) in words.iter().enumerate() {
        let (row, column) = (lane / 4, 2 * (lane % 4));
        for (at, element) in [*word as u16, (*word >> 16) as u16].into_iter().enumerate() {
            if transposed {
                matrix[column + at][row] = element;
            } else {
                matrix[row][column + at] = element;
            }
        }
    }
    matrix
}

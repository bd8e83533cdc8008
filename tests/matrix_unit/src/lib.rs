//! The matrix unit (AMX) on machines that lack it: its instructions, which such a machine refuses, are
//! decoded and computed by the handler of the signal that the refusal raises.
//!
//! So tests run the very machine code of a program for `x86-64-amx`, the configuration that LLVM wrote included:
//! kernels in a test's own process, and whole programs with the library in `preload`. What the handler computes, and what it refuses, follows Intel's manual (volume 2, "Intel
//! AMX instructions"). A machine that has the unit, and whose system grants it, computes by itself.

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::sync::LazyLock;

/// Registers of the unit, and rows and bytes of a row that each has at most.
const REGISTERS: usize = 8;
const ROWS: usize = 16;
const ROW_BYTES: usize = 64;

/// The unit as one thread sees it, and what it was asked for.
#[derive(Clone)]
struct Unit {
    /// Rows and bytes of a row of each register; nothing before a configuration is loaded.
    shapes: Option<[(usize, usize); REGISTERS]>,
    registers: [[[u8; ROW_BYTES]; ROWS]; REGISTERS],
    counts: Counts,
}

/// Instructions that the handler computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Registers loaded from memory.
    pub loads: u64,
    /// Registers stored.
    pub stores: u64,
    /// Products of two registers.
    pub products: u64,
}

thread_local! {
    static UNIT: RefCell<Unit> = const {
        RefCell::new(Unit {
            shapes: None,
            registers: [[[0; ROW_BYTES]; ROWS]; REGISTERS],
            counts: Counts { loads: 0, stores: 0, products: 0 },
        })
    };
}

/// Makes the unit usable in this process; whether the machine's own is.
pub fn prepare() -> bool {
    static IS_NATIVE: LazyLock<bool> = LazyLock::new(|| {
        /// `ARCH_REQ_XCOMP_PERM` for the state component of tile data.
        const REQUEST: (libc::c_ulong, libc::c_ulong) = (0x1023, 18);
        // SAFETY: the call changes a permission of this process and touches no memory.
        let granted = unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST.0, REQUEST.1) } == 0;
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let has_unit = ["amx_tile", "amx_bf16", "amx_int8"].iter().all(|feature| cpuinfo.contains(feature));
        if granted && has_unit {
            return true;
        }
        compute_refused_instructions();
        false
    });
    *IS_NATIVE
}

/// From now on refused instructions of the unit are computed in this process.
pub fn compute_refused_instructions() {
    // SAFETY: the action is plain data for which zeros are valid; the handler has the signature that
    // `SA_SIGINFO` asks for, and computes refused instructions alone.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = refused as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()), 0);
    }
}

/// What this thread asked of the emulated unit since the last call.
pub fn take_counts() -> Counts {
    UNIT.with_borrow_mut(|unit| std::mem::take(&mut unit.counts))
}

/// Computes a refused instruction of the unit and goes on behind it; any other ends the process, as the
/// signal does by itself.
extern "C" fn refused(signal: c_int, _information: *mut libc::siginfo_t, context: *mut c_void) {
    // Nothing is amiss in what the signal interrupts: a kernel's code, which holds no lock and allocates
    // nothing, so that the handler may do anything.
    // SAFETY: the system passes the interrupted thread's registers. Instructions of the unit are at most 9
    // bytes long and functions are followed by more of their file, so that 12 bytes can be read.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let place = registers[libc::REG_RIP as usize] as *const u8;
        let code: [u8; 12] = std::ptr::read_unaligned(place.cast());
        let computed = UNIT.with_borrow_mut(|unit| unit.compute(&code, &|number| general(registers, number)));
        match computed {
            Some(length) => registers[libc::REG_RIP as usize] += length as i64,
            None => {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}

/// The general register with this number in an instruction.
fn general(registers: &[libc::greg_t], number: u8) -> usize {
    use libc::{
        REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15, REG_RAX, REG_RBP, REG_RBX,
        REG_RCX, REG_RDI, REG_RDX, REG_RSI, REG_RSP,
    };
    const PLACES: [c_int; 16] = [
        REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10,
        REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
    ];
    registers[PLACES[usize::from(number)] as usize] as usize
}

/// An instruction with a VEX prefix of three bytes, as all of the unit have.
struct Instruction<'a> {
    code: &'a [u8; 12],
    general: &'a dyn Fn(u8) -> usize,
}

impl Instruction<'_> {
    /// The prefix (0 for none, 1 for 66, 2 for f3, 3 for f2) and the operation.
    fn kind(&self) -> Option<(u8, u8)> {
        let [0xc4, first, second, operation, ..] = *self.code else { return None };
        let (map, is_wide, length) = (first & 0x1f, second >> 7, second >> 2 & 1);
        ((map, is_wide, length) == (2, 0, 0)).then_some((second & 3, operation))
    }

    /// The byte that names operands.
    fn operands(&self) -> u8 {
        self.code[4]
    }

    fn names_memory(&self) -> bool {
        self.operands() >> 6 != 3
    }

    fn first(&self) -> usize {
        usize::from(self.operands() >> 3 & 7)
    }

    fn second(&self) -> usize {
        usize::from(self.operands() & 7)
    }

    fn third(&self) -> usize {
        usize::from(!self.code[2] >> 3 & 15)
    }

    /// The address, the stride and the length of the instruction. The second is 0 without an index.
    fn memory(&self) -> Option<(usize, usize, usize)> {
        let extend = |bit: u8| !self.code[1] >> bit & 1;
        let (mode, low) = (self.operands() >> 6, self.operands() & 7);
        if (mode, low) == (0, 5) {
            // Relative to the instruction, which kernels have no use for.
            return None;
        }
        let mut length = 5;
        let (mut base, mut stride) = (Some(low | extend(5) << 3), 0);
        if low == 4 {
            let byte = self.code[5];
            length += 1;
            base = Some(byte & 7 | extend(5) << 3);
            let index = byte >> 3 & 7 | extend(6) << 3;
            if index != 4 {
                stride = (self.general)(index) << (byte >> 6);
            }
            if mode == 0 && byte & 7 == 5 {
                base = None;
            }
        }
        let displacement_bytes = match mode {
            0 if base.is_none() => 4,
            0 => 0,
            1 => 1,
            _ => 4,
        };
        let bytes = &self.code[length..length + displacement_bytes];
        let displacement = match *bytes {
            [byte] => byte as i8 as isize,
            [a, b, c, d] => i32::from_le_bytes([a, b, c, d]) as isize,
            _ => 0,
        };
        let base = base.map_or(0, |number| (self.general)(number));
        Some((base.wrapping_add_signed(displacement), stride, length + displacement_bytes))
    }
}

impl Unit {
    /// Computes an instruction of the unit and gives its length.
    unsafe fn compute(&mut self, code: &[u8; 12], general: &dyn Fn(u8) -> usize) -> Option<usize> {
        let instruction = Instruction { code, general };
        match instruction.kind()? {
            (0, 0x49) if instruction.names_memory() => {
                let (address, _, length) = instruction.memory()?;
                // SAFETY: the instruction reads these 64 bytes.
                self.configure(&unsafe { std::ptr::read_unaligned(address as *const [u8; 64]) })?;
                return Some(length);
            }
            (0, 0x49) => {
                self.shapes = None;
                self.registers = [[[0; ROW_BYTES]; ROWS]; REGISTERS];
            }
            (3, 0x49) => {
                self.shapes?;
                self.registers[instruction.first()] = [[0; ROW_BYTES]; ROWS];
            }
            (1..=3, 0x4b) => {
                let register = instruction.first();
                let (rows, row_bytes) = self.shapes?[register];
                let (address, stride, length) = instruction.memory()?;
                let is_store = instruction.kind()? == (2, 0x4b);
                if !is_store {
                    self.registers[register] = [[0; ROW_BYTES]; ROWS];
                }
                for (index, row) in self.registers[register][..rows].iter_mut().enumerate() {
                    let place = address.wrapping_add(index.wrapping_mul(stride)) as *mut u8;
                    // SAFETY: the instruction touches these bytes.
                    unsafe {
                        if is_store {
                            std::ptr::copy_nonoverlapping(row.as_ptr(), place, row_bytes);
                        } else {
                            std::ptr::copy_nonoverlapping(place, row.as_mut_ptr(), row_bytes);
                        }
                    }
                }
                *(if is_store { &mut self.counts.stores } else { &mut self.counts.loads }) += 1;
                return Some(length);
            }
            (2, 0x5c) => self.multiply(&instruction, add_bf16)?,
            (3, 0x5e) => self.multiply(&instruction, |sum, a, b| add_bytes(sum, a, b, true))?,
            (2, 0x5e) => self.multiply(&instruction, |sum, a, b| add_bytes(sum, a, b, false))?,
            _ => return None,
        }
        Some(5)
    }

    fn configure(&mut self, bytes: &[u8; 64]) -> Option<()> {
        let mut shapes = [(0, 0); REGISTERS];
        for (number, shape) in shapes.iter_mut().enumerate() {
            let row_bytes = u16::from_le_bytes([bytes[16 + 2 * number], bytes[17 + 2 * number]]);
            *shape = (usize::from(bytes[48 + number]), usize::from(row_bytes));
        }
        let is_legal = bytes[0] == 1
            && bytes[2..16].iter().chain(&bytes[32..48]).all(|byte| *byte == 0)
            && shapes.iter().all(|(rows, row_bytes)| *rows <= ROWS && *row_bytes <= ROW_BYTES);
        self.shapes = is_legal.then_some(shapes);
        self.registers = [[[0; ROW_BYTES]; ROWS]; REGISTERS];
        self.shapes.map(|_| ())
    }

    /// `sums[row][column]` and the products of the dwords of a row and of a column.
    fn multiply(
        &mut self,
        instruction: &Instruction<'_>,
        add: impl Fn([u8; 4], &[[u8; 4]], &[[u8; 4]]) -> [u8; 4],
    ) -> Option<()> {
        let (sums, left, right) = (instruction.first(), instruction.second(), instruction.third());
        let shapes = self.shapes?;
        let (rows, row_bytes) = shapes[sums];
        let dwords = shapes[left].1 / 4;
        let is_legal = sums != left
            && sums != right
            && left != right
            && shapes[left].0 == rows
            && shapes[right] == (dwords, row_bytes)
            && shapes.iter().all(|(_, row_bytes)| row_bytes % 4 == 0);
        if !is_legal {
            return None;
        }
        let left = self.registers[left].map(|row| dwords_of(&row));
        let right = self.registers[right].map(|row| dwords_of(&row));
        for column in 0..row_bytes / 4 {
            let of_column = right.map(|row| row[column]);
            for (row, of_row) in left[..rows].iter().enumerate() {
                let place = &mut self.registers[sums][row][4 * column..][..4];
                let sum = [place[0], place[1], place[2], place[3]];
                place.copy_from_slice(&add(sum, &of_row[..dwords], &of_column[..dwords]));
            }
        }
        self.counts.products += 1;
        Some(())
    }
}

fn dwords_of(row: &[u8; ROW_BYTES]) -> [[u8; 4]; ROW_BYTES / 4] {
    std::array::from_fn(|column| [0, 1, 2, 3].map(|byte| row[4 * column + byte]))
}

/// Even and odd inputs in chains of their own, which start at zero; their sum is added to `sum`.
fn add_bf16(sum: [u8; 4], left: &[[u8; 4]], right: &[[u8; 4]]) -> [u8; 4] {
    let flushed = |value: f32| if value.is_subnormal() { 0.0_f32.copysign(value) } else { value };
    let value = |low: u8, high: u8| flushed(f32::from_bits(u32::from_le_bytes([0, 0, low, high])));
    let mut chains = [0.0_f32; 2];
    for (a, b) in left.iter().zip(right) {
        for (index, chain) in chains.iter_mut().enumerate() {
            let (a, b) = (value(a[2 * index], a[2 * index + 1]), value(b[2 * index], b[2 * index + 1]));
            *chain = flushed(a.mul_add(b, *chain));
        }
    }
    flushed(flushed(f32::from_le_bytes(sum)) + flushed(chains[0] + chains[1])).to_le_bytes()
}

/// Signed bytes times signed or unsigned ones, in wrapping 32 bits.
fn add_bytes(sum: [u8; 4], left: &[[u8; 4]], right: &[[u8; 4]], is_signed: bool) -> [u8; 4] {
    let widen = |byte: u8| if is_signed { i32::from(byte as i8) } else { i32::from(byte) };
    let products = left.iter().flatten().zip(right.iter().flatten());
    let sum = products
        .fold(i32::from_le_bytes(sum), |sum, (a, b)| sum.wrapping_add(i32::from(*a as i8) * widen(*b)));
    sum.to_le_bytes()
}

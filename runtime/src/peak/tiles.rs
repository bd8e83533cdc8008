//! The matrix unit of x86 processors (AMX), where there is one and the system grants it.

use super::multiply::Multiplication;

/// Rounds of one tile of the measurement.
const ROUNDS: u64 = if cfg!(test) { 100 } else { 10_000 };
/// Products of a round: each accumulator takes one, and four hide the latency.
const PRODUCTS: u64 = 4;

/// Products of `bf16`, summed in `f32`.
pub(super) fn in_bf16() -> Option<Multiplication> {
    // 16 rows of 16 sums, each of 32 products.
    is_granted("amx_bf16").then_some(Multiplication {
        body: multiply_bf16,
        operations: (2 * 16 * 16 * 32 * PRODUCTS * ROUNDS) as f64,
    })
}

/// Products of 8-bit integers, summed in 32 bits.
pub(super) fn in_int8() -> Option<Multiplication> {
    // 16 rows of 16 sums, each of 64 products.
    is_granted("amx_int8").then_some(Multiplication {
        body: multiply_int8,
        operations: (2 * 16 * 16 * 64 * PRODUCTS * ROUNDS) as f64,
    })
}

/// Whether the processor has the feature and the system lets this process use its registers.
fn is_granted(feature: &str) -> bool {
    let has_unit = crate::machine::processor().is_ok_and(|processor| {
        ["amx_tile", feature].iter().all(|&needed| processor.features.contains(needed))
    });
    has_unit && crate::processor::ask_for_tiles().is_ok()
}

/// What `ldtilecfg` reads.
#[repr(align(64))]
struct Configuration([u8; 64]);

/// Every tile register has 16 rows of 64 bytes.
static CONFIGURATION: Configuration = {
    const TILES: usize = 8;
    let mut bytes = [0; 64];
    // The palette; then, for each register, bytes of a row from byte 16 and rows from byte 48.
    bytes[0] = 1;
    let mut tile = 0;
    while tile < TILES {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = 16;
        tile += 1;
    }
    Configuration(bytes)
};

/// A kernel that multiplies two by two tile registers into four, again and again.
macro_rules! multiply_tiles {
    ($name:ident, $instruction:literal) => {
        unsafe extern "C" fn $name(_operands: *const *mut u8, _rows: i64, _tile: i64) {
            // SAFETY: the unit was granted before this kernel was chosen; the code reads the
            // configuration, touches no other memory, and leaves the unit as it was, released.
            unsafe {
                std::arch::asm!(
                    "ldtilecfg [{configuration}]",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "tilezero tmm4",
                    "tilezero tmm5",
                    "tilezero tmm6",
                    "tilezero tmm7",
                    "2:",
                    concat!($instruction, " tmm0, tmm4, tmm6"),
                    concat!($instruction, " tmm1, tmm4, tmm7"),
                    concat!($instruction, " tmm2, tmm5, tmm6"),
                    concat!($instruction, " tmm3, tmm5, tmm7"),
                    "dec {rounds}",
                    "jnz 2b",
                    "tilerelease",
                    configuration = in(reg) CONFIGURATION.0.as_ptr(),
                    rounds = inout(reg) ROUNDS => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack, readonly),
                );
            }
        }
    };
}

multiply_tiles!(multiply_bf16, "tdpbf16ps");
multiply_tiles!(multiply_int8, "tdpbssd");

//! Asking memory for the weights of a product with few rows before they are read.
//!
//! What brings weights at the speed of memory differs between processors. Those of Intel, of which all with a
//! matrix unit are, read 61 to 75 % of it by themselves, and 94 to 99 % with 4 streams that are each asked for
//! line by line, 2 to 5 KB before they are read (measured on 2 cores of Sapphire Rapids, 800 MB to 2.6 GB of
//! weights). An EPYC of the fourth generation finds streams by itself, and loses 20 to 30 % by being told
//! (51.6 GB/s of 8-bit weights in 4 streams against 40.6 with 2176 bytes ahead and 36.3 with 4352).
//!
//! Products on the vector units are those of few rows there: from 16 on, rows go through the matrix unit.

use qwen2c_request::WeightType;

use super::Kernel;
use crate::builder::{Buffer, Val};

/// Bytes between what is read of a stream and what is asked for: 8 steps of 32 inputs of 32 rows with 4 bits, 2
/// with 8 bits, a page of plain elements.
fn ahead_bytes(weight: &WeightType) -> u64 {
    match weight.quantization.map(|quantization| quantization.bits) {
        Some(4) => 4608,
        Some(_) => 2176,
        None => 4096,
    }
}

/// Asks for the line that lies ahead of dword number `place` of a panel, where that helps.
pub(super) fn fetch_ahead<'k>(kernel: &Kernel<'k, '_>, panel: Buffer<'k>, place: Val<'k>) {
    if kernel.instructions.fetches_ahead {
        let k = kernel.k;
        let ahead = k.int(ahead_bytes(kernel.weight_type(0)));
        // Behind the panel follows the one that the stream brings next.
        panel.at_bytes(place * k.int(4) + ahead).prefetch_near();
    }
}

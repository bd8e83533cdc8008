//! Matrix products of a warp, and the loads that feed them.

use super::Form;
use super::memory::space;
use crate::ptx::Type;
use crate::ptx::registers::Slot;
use crate::ptx::resolver::{Address, Refusal, Space};

/// Type of the elements of A or B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Factor {
    F16,
    BF16,
    TF32,
    S8,
    U8,
}

impl Factor {
    const NAMES: [&str; 5] = ["f16", "bf16", "tf32", "s8", "u8"];

    fn parse(name: &str) -> Factor {
        match name {
            "f16" => Factor::F16,
            "bf16" => Factor::BF16,
            "tf32" => Factor::TF32,
            "s8" => Factor::S8,
            _ => Factor::U8,
        }
    }

    /// Elements in a register.
    pub(crate) fn per_register(self) -> usize {
        match self {
            Factor::TF32 => 1,
            Factor::F16 | Factor::BF16 => 2,
            Factor::S8 | Factor::U8 => 4,
        }
    }
}

/// Type of the sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sum {
    F32,
    F16,
    S32,
}

/// One instruction of the group.
#[derive(Clone, Debug)]
pub(crate) enum Matrix {
    /// A product of 16 rows, 8 columns and `depth`.
    Multiply {
        depth: usize,
        first: Factor,
        second: Factor,
        sum: Sum,
        /// Whole sums stop at the ends of their range.
        saturates: bool,
        to: Vec<Slot>,
        a: Vec<Slot>,
        b: Vec<Slot>,
        c: Vec<Slot>,
    },
    /// One, two or four matrices of 8 × 8 elements of 16 bits.
    Load {
        space: Space,
        transposed: bool,
        to: Vec<Slot>,
        address: Address,
    },
    Store {
        space: Space,
        transposed: bool,
        from: Vec<Slot>,
        address: Address,
    },
    /// A matrix in registers, transposed.
    Transpose {
        to: Slot,
        from: Slot,
    },
}

pub(crate) fn decode(opcode: &str, form: &mut Form<'_, '_, '_, '_>) -> Result<Matrix, Refusal> {
    if !form.modifiers.take("sync") || !form.modifiers.take("aligned") {
        return Err(format!("`{opcode}` without `sync.aligned`"));
    }
    if opcode == "mma" { multiply(form) } else { exchange(opcode, form) }
}

fn registers(
    form: &mut Form<'_, '_, '_, '_>,
    at: usize,
    count: usize,
    writes: bool,
) -> Result<Vec<Slot>, Refusal> {
    let elements = form.elements(at).to_vec();
    if elements.len() != count {
        return Err(format!("{} registers where {count} are due", elements.len()));
    }
    let resolve = |element| {
        if writes {
            form.resolver.destination(element, Type::B32)
        } else {
            form.resolver.source(element, Type::B32)
        }
    };
    elements.iter().map(resolve).collect()
}

fn multiply(form: &mut Form<'_, '_, '_, '_>) -> Result<Matrix, Refusal> {
    let shape = form.modifiers.take_one(&["m16n8k4", "m16n8k8", "m16n8k16", "m16n8k32"]);
    let depth: usize = match shape {
        Some("m16n8k4") => 4,
        Some("m16n8k8") => 8,
        Some("m16n8k16") => 16,
        Some(_) => 32,
        None => return Err("a shape that is not known".to_owned()),
    };
    if !form.modifiers.take("row") || !form.modifiers.take("col") {
        return Err("`mma` wants `row.col`".to_owned());
    }
    let saturates = form.modifiers.take("satfinite");
    let sums = ["f32", "f16", "s32"];
    let result = form.modifiers.take_one(&sums).ok_or("no type of sums that is known")?;
    let first =
        form.modifiers.take_one(&Factor::NAMES).map(Factor::parse).ok_or("no type of A that is known")?;
    let second =
        form.modifiers.take_one(&Factor::NAMES).map(Factor::parse).ok_or("no type of B that is known")?;
    if form.modifiers.take_one(&sums) != Some(result) {
        return Err("C and D of different types".to_owned());
    }
    let sum = match result {
        "f32" => Sum::F32,
        "f16" => Sum::F16,
        _ => Sum::S32,
    };
    let is_whole = |factor| matches!(factor, Factor::S8 | Factor::U8);
    let fits = match (first, sum) {
        (Factor::F16, Sum::F16 | Sum::F32) | (Factor::BF16, Sum::F32) => {
            first == second && matches!(depth, 8 | 16)
        }
        (Factor::TF32, Sum::F32) => first == second && matches!(depth, 4 | 8),
        (Factor::S8 | Factor::U8, Sum::S32) => is_whole(second) && matches!(depth, 16 | 32),
        _ => false,
    };
    if !fits || (saturates && sum != Sum::S32) {
        return Err(format!("a product of depth {depth} of {first:?} and {second:?} to {sum:?}"));
    }
    form.expect(4)?;
    let per_depth = depth / (4 * first.per_register());
    let sums = if sum == Sum::F16 { 2 } else { 4 };
    let to = registers(form, 0, sums, true)?;
    let a = registers(form, 1, 2 * per_depth, false)?;
    let b = registers(form, 2, per_depth, false)?;
    let c = registers(form, 3, sums, false)?;
    Ok(Matrix::Multiply { depth, first, second, sum, saturates, to, a, b, c })
}

fn exchange(opcode: &str, form: &mut Form<'_, '_, '_, '_>) -> Result<Matrix, Refusal> {
    if !form.modifiers.take("m8n8") {
        return Err("a shape that is not known".to_owned());
    }
    let transposed = form.modifiers.take("trans");
    if opcode == "movmatrix" {
        form.expect(2)?;
        if !transposed || form.kind()? != Type::B16 {
            return Err("`movmatrix` transposes elements of 16 bits".to_owned());
        }
        let to = form.destination(0, Type::B32)?;
        return Ok(Matrix::Transpose { to, from: form.source(1, Type::B32)? });
    }
    let count = match form.modifiers.take_one(&["x1", "x2", "x4"]) {
        Some("x1") => 1,
        Some("x2") => 2,
        Some(_) => 4,
        None => return Err("no number of matrices".to_owned()),
    };
    let space = space(&mut form.modifiers)?;
    if !matches!(space, Space::Shared | Space::Generic) || form.kind()? != Type::B16 {
        return Err(format!("`{opcode}` moves elements of 16 bits in shared memory"));
    }
    form.expect(2)?;
    if opcode == "ldmatrix" {
        let to = registers(form, 0, count, true)?;
        let address = form.resolver.address(&form.operands[1], space)?;
        Ok(Matrix::Load { space, transposed, to, address })
    } else {
        let from = registers(form, 1, count, false)?;
        let address = form.resolver.address(&form.operands[0], space)?;
        Ok(Matrix::Store { space, transposed, from, address })
    }
}

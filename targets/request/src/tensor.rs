//! Element types, shapes with names, and the types of a kernel's operands.

use std::fmt;

/// Positions per block of the key and value caches.
///
/// Attention reduces block by block in this fixed size, so that its result does not depend on how
/// positions were distributed over threads.
pub const CACHE_BLOCK_POSITIONS: u64 = 256;

/// Type of one element of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Element {
    /// IEEE 754 single precision.
    F32,
    /// The upper half of an `f32`.
    Bf16,
    /// IEEE 754 half precision.
    F16,
    /// 32-bit signed integer: token ids, positions, expert numbers.
    I32,
}

impl Element {
    /// Bytes of one element.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// The name used in every text form: `f32`, `bf16`, `f16`, `i32`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::I32 => "i32",
        }
    }

    /// The element type with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::F32, Self::Bf16, Self::F16, Self::I32].into_iter().find(|element| element.name() == name)
    }

    /// `value` rounded to this type (to nearest, ties to even) and widened again.
    ///
    /// `I32` leaves the value as it is.
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 | Self::I32 => value,
            Self::Bf16 => bf16_to_f32(f32_to_bf16(value)),
            Self::F16 => f16_to_f32(f32_to_f16(value)),
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Bits of the bf16 nearest to `value`, ties to even; NaN stays NaN.
pub fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return ((bits >> 16) | 0x40) as u16;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// The value of a bf16.
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Bits of the f16 nearest to `value`, ties to even; overflow becomes infinity, NaN stays NaN.
pub fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return sign | 0x7e00;
    }
    // 65520 is the first value that rounds to infinity.
    if magnitude >= 0x477f_f000 {
        return sign | 0x7c00;
    }
    if magnitude < 0x3880_0000 {
        // Subnormal: adding 0.5 aligns the value so that the mantissa's low bits are the result.
        let aligned = f32::from_bits(magnitude) + 0.5;
        return sign | (aligned.to_bits() & 0x7fff) as u16;
    }
    let rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
    sign | ((rounded - 0x3800_0000) >> 13) as u16
}

/// The value of an f16.
pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let exponent = u32::from(bits >> 10) & 0x1f;
    let mantissa = u32::from(bits) & 0x3ff;
    let magnitude = match exponent {
        0 => (mantissa as f32 * 2.0_f32.powi(-24)).to_bits(),
        31 => 0x7f80_0000 | (mantissa << 13),
        _ => ((exponent + 112) << 23) | (mantissa << 13),
    };
    f32::from_bits(sign | magnitude)
}

/// Extent of one dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Size {
    /// Known when the program is built.
    Constant(u64),
    /// The rows of the step, between 1 and the step list's `max_rows`.
    Rows,
    /// The rows that go through the output head, between 1 and the step list's `max_logit_rows`.
    LogitRows,
}

impl Size {
    /// The extent where it is constant.
    pub const fn constant(self) -> Option<u64> {
        match self {
            Self::Constant(size) => Some(size),
            Self::Rows | Self::LogitRows => None,
        }
    }
}

/// A dimension with its name, such as `hidden=896`; printed `rows` or `logit_rows` where the extent
/// varies with the step.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Dimension {
    /// Full word in the field's terms: `hidden`, `heads`, `vocabulary`.
    pub name: String,
    /// Extent.
    pub size: Size,
}

impl Dimension {
    /// A dimension known when the program is built.
    pub fn constant(name: impl Into<String>, size: u64) -> Self {
        Self { name: name.into(), size: Size::Constant(size) }
    }

    /// The rows of the step.
    pub fn rows() -> Self {
        Self { name: "rows".to_owned(), size: Size::Rows }
    }

    /// The rows that go through the output head.
    pub fn logit_rows() -> Self {
        Self { name: "logit_rows".to_owned(), size: Size::LogitRows }
    }
}

impl fmt::Display for Dimension {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.size {
            Size::Constant(size) => write!(formatter, "{}={size}", self.name),
            Size::Rows | Size::LogitRows => formatter.write_str(&self.name),
        }
    }
}

/// Shape and element type of a value in the arena, row-major without gaps.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Outermost dimension first.
    pub dimensions: Vec<Dimension>,
    /// Element type.
    pub element: Element,
}

impl TensorType {
    /// Product of the constant dimensions: the elements of one row where the first dimension is
    /// `rows`.
    pub fn row_elements(&self) -> u64 {
        self.dimensions.iter().filter_map(|dimension| dimension.size.constant()).product()
    }

    /// Bytes when the variable dimensions have these extents.
    pub fn bytes(&self, rows: u64, logit_rows: u64) -> u64 {
        let elements: u64 = self
            .dimensions
            .iter()
            .map(|dimension| match dimension.size {
                Size::Constant(size) => size,
                Size::Rows => rows,
                Size::LogitRows => logit_rows,
            })
            .product();
        elements * self.element.bytes()
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}[", self.element)?;
        for (index, dimension) in self.dimensions.iter().enumerate() {
            if index > 0 {
                formatter.write_str(", ")?;
            }
            write!(formatter, "{dimension}")?;
        }
        formatter.write_str("]")
    }
}

/// Group quantization: every `group` consecutive inputs of a row share a scale, rounded to f16, and each
/// weight is a signed integer of `bits` times that scale. The last group of a row may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Quantization {
    /// 8 or 4.
    pub bits: u32,
    /// 32, 64 or 128.
    pub group: u32,
}

impl Quantization {
    /// Integers in a dword.
    pub const fn per_dword(self) -> u32 {
        32 / self.bits
    }

    /// The largest integer; the smallest is one further from zero.
    pub const fn largest(self) -> i32 {
        (1 << (self.bits - 1)) - 1
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "int{}:{}", self.bits, self.group)
    }
}

/// Shape and format of a weight. Linear weights are `[output, input]`, experts
/// `[experts, output, input]`, vectors `[n]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WeightType {
    /// Outermost dimension first; all constant.
    pub dimensions: Vec<Dimension>,
    /// Element type as stored in the program, or the type it would have without `quantization`.
    pub element: Element,
    /// Integers with scales instead of elements.
    pub quantization: Option<Quantization>,
}

impl WeightType {
    /// The constant extents, outermost first.
    pub fn extents(&self) -> Vec<u64> {
        self.dimensions.iter().filter_map(|dimension| dimension.size.constant()).collect()
    }

    /// Extent of the last dimension.
    pub fn columns(&self) -> u64 {
        self.extents().last().copied().unwrap_or(1)
    }

    /// Product of all extents but the last.
    pub fn rows(&self) -> u64 {
        let extents = self.extents();
        extents[..extents.len().saturating_sub(1)].iter().product()
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        TensorType { dimensions: self.dimensions.clone(), element: self.element }.fmt(formatter)?;
        match self.quantization {
            Some(quantization) => write!(formatter, " as {quantization}"),
            None => Ok(()),
        }
    }
}

/// What a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheKind {
    /// Rotated keys.
    Key,
    /// Values.
    Value,
}

/// Type of one layer's key or value cache: `[slot, kv_head, position, head_dim]`, held in blocks of
/// [`CACHE_BLOCK_POSITIONS`] positions whose inner order is the target's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CacheType {
    /// Keys or values.
    pub kind: CacheKind,
    /// Sequences served at once.
    pub slots: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Positions of one slot.
    pub context: u64,
    /// Elements of one head.
    pub head_dim: u64,
    /// Element type.
    pub element: Element,
}

impl CacheType {
    /// Blocks of one (slot, head): the context rounded up.
    pub const fn blocks(&self) -> u64 {
        self.context.div_ceil(CACHE_BLOCK_POSITIONS)
    }
}

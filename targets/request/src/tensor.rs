//! Element types, shapes with names, and the types of a kernel's operands.

use std::fmt;

use crate::QuantizedRow;

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
    /// Activations rounded to 8-bit integers, each group of consecutive elements of a row with a scale.
    /// Only values have this type; see [`QuantizedRow`] for its place in memory.
    I8 {
        /// Elements that share a scale: that of the weights they are multiplied with.
        group: u32,
    },
    /// Activations rounded to 16-bit integers, otherwise as [`Element::I8`]: where rounding to 8 bits
    /// would cost more than the second byte.
    I16 {
        /// Elements that share a scale.
        group: u32,
    },
}

/// Groups that [`Element::I8`], [`Element::I16`] and [`Quantization`] may have.
pub const GROUP_SIZES: [u32; 4] = [16, 32, 64, 128];

impl Element {
    /// Bytes of one element; of an `I8` or `I16` without its share of the scale.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::Bf16 | Self::F16 | Self::I16 { .. } => 2,
            Self::I8 { .. } => 1,
        }
    }

    /// Bytes of `elements` that lie one after the other: a row, with what belongs to it.
    pub const fn row_bytes(self, elements: u64) -> u64 {
        match QuantizedRow::new(self, elements) {
            Some(row) => row.bytes(),
            None => elements * self.bytes(),
        }
    }

    /// Elements that share a scale, where this is integers with scales.
    pub const fn integer_group(self) -> Option<u32> {
        match self {
            Self::I8 { group } | Self::I16 { group } => Some(group),
            _ => None,
        }
    }

    /// The name used in every text form: `f32`, `bf16`, `f16`, `i32`, `i8.32`, `i16.32`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::I32 => "i32",
            Self::I8 { group: 16 } => "i8.16",
            Self::I8 { group: 32 } => "i8.32",
            Self::I8 { group: 64 } => "i8.64",
            Self::I8 { group: 128 } => "i8.128",
            Self::I8 { .. } => "i8",
            Self::I16 { group: 16 } => "i16.16",
            Self::I16 { group: 32 } => "i16.32",
            Self::I16 { group: 64 } => "i16.64",
            Self::I16 { group: 128 } => "i16.128",
            Self::I16 { .. } => "i16",
        }
    }

    /// The element type with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        let bytes = GROUP_SIZES.map(|group| Self::I8 { group });
        let halves = GROUP_SIZES.map(|group| Self::I16 { group });
        let plain = [Self::F32, Self::Bf16, Self::F16, Self::I32];
        plain.into_iter().chain(bytes).chain(halves).find(|element| element.name() == name)
    }

    /// Whether values of this type are numbers of the model, rounded to themselves one by one.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::Bf16 | Self::F16)
    }

    /// `value` rounded to this type (to nearest, ties to even) and widened again.
    ///
    /// Integers leave the value as it is: those with scales are rounded by groups
    /// ([`quantize_activations`](crate::quantize_activations)).
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 | Self::I32 | Self::I8 { .. } | Self::I16 { .. } => value,
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
        let extent = |dimension: &Dimension| match dimension.size {
            Size::Constant(size) => size,
            Size::Rows => rows,
            Size::LogitRows => logit_rows,
        };
        let (last, others) = match self.dimensions.split_last() {
            Some((last, others)) => (extent(last), others),
            None => (1, &[][..]),
        };
        others.iter().map(extent).product::<u64>() * self.element.row_bytes(last)
    }

    /// Elements of the last dimension where it is constant, else 1.
    pub fn columns(&self) -> u64 {
        self.dimensions.last().and_then(|dimension| dimension.size.constant()).unwrap_or(1)
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

/// Group quantization: every `group` consecutive inputs of a row share a scale, and each weight is an
/// integer of `bits` times that scale, plus the group's minimum where there is one. The last group of a row
/// may be shorter.
///
/// Without a minimum the integers are signed; in memory they are biased by [`Quantization::bias`], so that
/// they are never negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Quantization {
    /// 8 or 4.
    pub bits: u32,
    /// One of [`GROUP_SIZES`].
    pub group: u32,
    /// Type of scales and minima: f16, or f32 where a checkpoint's blocks have finer ones.
    pub scale: Element,
    /// Integers are unsigned, and every group has a minimum.
    pub has_minimum: bool,
}

impl Quantization {
    /// Signed integers with scales in f16: what the compiler makes of unquantized weights.
    pub const fn signed(bits: u32, group: u32) -> Self {
        Self { bits, group, scale: Element::F16, has_minimum: false }
    }

    /// Integers in a dword.
    pub const fn per_dword(self) -> u32 {
        32 / self.bits
    }

    /// The largest integer; the smallest is one further from zero.
    pub const fn largest(self) -> i32 {
        (1 << (self.bits - 1)) - 1
    }

    /// What is added to an integer in memory: 128 or 8, or nothing where integers are unsigned.
    pub const fn bias(self) -> i32 {
        if self.has_minimum { 0 } else { 1 << (self.bits - 1) }
    }

    /// Bit of a dword at which the integer of its `input`-th input starts. Bytes hold consecutive inputs;
    /// of 4-bit integers the low halves hold the first four, the high halves the last four.
    pub const fn first_bit(self, input: u32) -> u32 {
        match self.bits {
            8 => input * 8,
            _ => input % 4 * 8 + input / 4 * 4,
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "int{}:{}", self.bits, self.group)?;
        if self.scale != Element::F16 {
            write!(formatter, " with scales in {}", self.scale)?;
        }
        formatter.write_str(if self.has_minimum { " and minima" } else { "" })
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

//! The header: metadata and the list of tensors, every number checked against the file.

use std::collections::BTreeMap;
use std::path::Path;

use qwen2c_format::Diagnostic;

use super::cursor::Cursor;
use crate::encoding::Encoding;
use crate::files::OpenFile;
use crate::safetensors::refuse_overlaps;
use crate::tensors::{RowOrder, StoredTensor};

/// Most elements of all arrays together: a vocabulary and its merges stay below a million.
const MAX_ARRAY_ELEMENTS: u64 = 1 << 24;
/// Most metadata entries and tensors.
const MAX_ENTRIES: u64 = 1 << 17;
/// Dimensions of a tensor; ggml's own limit.
const MAX_RANK: u32 = 4;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum MetadataValue {
    Unsigned(u64),
    Signed(i64),
    Real(f64),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i64>),
    /// An array of reals; nothing here needs its elements.
    Reals,
}

impl MetadataValue {
    /// A number that is not negative.
    pub(crate) fn as_count(&self) -> Option<u64> {
        match self {
            Self::Unsigned(number) => Some(*number),
            Self::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// A text.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// A GGUF file whose header was read and checked.
#[derive(Debug)]
pub(crate) struct GgufFile {
    /// The file.
    pub(crate) file: OpenFile,
    /// Metadata by key.
    pub(crate) metadata: BTreeMap<String, MetadataValue>,
    /// Tensors under the file's own names.
    pub(crate) tensors: BTreeMap<String, StoredTensor>,
}

impl GgufFile {
    /// Opens a file and reads its header.
    pub(crate) fn open(path: &Path) -> Result<Self, Diagnostic> {
        let file = OpenFile::open(path)?;
        let mut cursor = Cursor::new(&file);
        let (tensor_count, metadata_count) = read_counts(&mut cursor, &file)?;
        let metadata = read_metadata(&mut cursor, metadata_count)?;
        let infos = read_tensor_infos(&mut cursor, tensor_count)?;
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(value) => match value.as_count() {
                Some(alignment) if alignment.is_power_of_two() && (8..=1 << 20).contains(&alignment) => {
                    alignment
                }
                _ => return Err(cursor.damaged("`general.alignment` is not a power of two from 8 to 2^20")),
            },
        };
        let data_offset = cursor.position().next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for info in infos {
            let tensor = stored_tensor(&info, data_offset, alignment, file.bytes)
                .map_err(|diagnostic| diagnostic.at(file.place()))?;
            if tensors.insert(info.name.clone(), tensor).is_some() {
                return Err(cursor.damaged(format!("tensor `{}` comes twice", info.name)));
            }
        }
        refuse_overlaps(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)))
            .map_err(|diagnostic| diagnostic.at(file.place()))?;
        Ok(Self { file, metadata, tensors })
    }
}

/// Magic, version, and the numbers of tensors and metadata entries.
fn read_counts(cursor: &mut Cursor<'_>, file: &OpenFile) -> Result<(u64, u64), Diagnostic> {
    let magic: [u8; 4] = cursor.array("magic")?;
    if magic != *b"GGUF" {
        return Err(Diagnostic::new("the file is not a GGUF file")
            .at(file.place())
            .found(format!("`{}` at its beginning", magic.escape_ascii()))
            .needed("`GGUF`")
            .help("a safetensors checkpoint is named by its directory"));
    }
    let version = cursor.number_u32("version")?;
    if version != 3 {
        let found = if version.swap_bytes() == 3 {
            "version 3 in big-endian order".to_owned()
        } else {
            format!("version {version}")
        };
        return Err(Diagnostic::new("this version of GGUF is not read")
            .at(file.place())
            .found(found)
            .needed("version 3 in little-endian order")
            .help("convert the model again with a current llama.cpp"));
    }
    let tensors = cursor.number_u64("tensor count")?;
    let metadata = cursor.number_u64("metadata count")?;
    if tensors > MAX_ENTRIES || metadata > MAX_ENTRIES {
        return Err(cursor.damaged(format!("{tensors} tensors and {metadata} metadata entries")));
    }
    Ok((tensors, metadata))
}

fn read_metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<BTreeMap<String, MetadataValue>, Diagnostic> {
    let mut metadata = BTreeMap::new();
    let mut array_elements_left = MAX_ARRAY_ELEMENTS;
    for _ in 0..count {
        let key = cursor.text("metadata key")?;
        let kind = cursor.number_u32("metadata type")?;
        let value = if kind == 9 {
            read_array(cursor, &key, &mut array_elements_left)?
        } else {
            read_scalar(cursor, kind, &key)?
        };
        if metadata.insert(key.clone(), value).is_some() {
            return Err(cursor.damaged(format!("metadata key `{key}` comes twice")));
        }
    }
    Ok(metadata)
}

/// A value that is not an array; `kind` is ggml's number of the type.
fn read_scalar(cursor: &mut Cursor<'_>, kind: u32, key: &str) -> Result<MetadataValue, Diagnostic> {
    use MetadataValue as Value;
    Ok(match kind {
        0 => Value::Unsigned(cursor.array::<1>(key)?[0].into()),
        1 => Value::Signed(i8::from_le_bytes(cursor.array(key)?).into()),
        2 => Value::Unsigned(u16::from_le_bytes(cursor.array(key)?).into()),
        3 => Value::Signed(i16::from_le_bytes(cursor.array(key)?).into()),
        4 => Value::Unsigned(cursor.number_u32(key)?.into()),
        5 => Value::Signed(i32::from_le_bytes(cursor.array(key)?).into()),
        6 => Value::Real(f32::from_le_bytes(cursor.array(key)?).into()),
        7 => Value::Flag(cursor.array::<1>(key)?[0] != 0),
        8 => Value::Text(cursor.text(key)?),
        10 => Value::Unsigned(cursor.number_u64(key)?),
        11 => Value::Signed(i64::from_le_bytes(cursor.array(key)?)),
        12 => Value::Real(f64::from_le_bytes(cursor.array(key)?)),
        _ => return Err(cursor.damaged(format!("metadata key `{key}` has the unknown type {kind}"))),
    })
}

/// Bytes that an element of this type takes at least.
fn least_bytes(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        8 | 10..=12 => Some(8),
        _ => None,
    }
}

fn read_array(
    cursor: &mut Cursor<'_>,
    key: &str,
    elements_left: &mut u64,
) -> Result<MetadataValue, Diagnostic> {
    let kind = cursor.number_u32("array type")?;
    let count = cursor.number_u64("array length")?;
    let Some(least) = least_bytes(kind) else {
        return Err(cursor.damaged(format!("metadata key `{key}` is an array of the type {kind}")));
    };
    if count > *elements_left || count * least > cursor.remaining() {
        return Err(cursor.damaged(format!("metadata key `{key}` has {count} elements")));
    }
    *elements_left -= count;
    let mut texts = Vec::new();
    let mut integers = Vec::new();
    for _ in 0..count {
        match read_scalar(cursor, kind, key)? {
            MetadataValue::Text(text) => texts.push(text),
            MetadataValue::Unsigned(number) => integers.push(i64::try_from(number).unwrap_or(i64::MAX)),
            MetadataValue::Signed(number) => integers.push(number),
            MetadataValue::Flag(flag) => integers.push(flag.into()),
            _ => {}
        }
    }
    Ok(match kind {
        8 => MetadataValue::Texts(texts),
        6 | 12 => MetadataValue::Reals,
        _ => MetadataValue::Integers(integers),
    })
}

/// An entry of the list of tensors.
struct TensorInfo {
    name: String,
    /// Fastest first.
    dimensions: Vec<u64>,
    kind: u32,
    offset: u64,
}

fn read_tensor_infos(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<TensorInfo>, Diagnostic> {
    let mut infos = Vec::new();
    for _ in 0..count {
        let name = cursor.text("tensor name")?;
        let rank = cursor.number_u32("dimension count")?;
        if rank == 0 || rank > MAX_RANK {
            return Err(cursor.damaged(format!("tensor `{name}` has {rank} dimensions")));
        }
        let dimensions =
            (0..rank).map(|_| cursor.number_u64("dimension")).collect::<Result<Vec<u64>, _>>()?;
        let kind = cursor.number_u32("tensor type")?;
        let offset = cursor.number_u64("tensor offset")?;
        infos.push(TensorInfo { name, dimensions, kind, offset });
    }
    Ok(infos)
}

/// Checks an entry against the file.
fn stored_tensor(
    info: &TensorInfo,
    data_offset: u64,
    alignment: u64,
    file_bytes: u64,
) -> Result<StoredTensor, Diagnostic> {
    let name = &info.name;
    let encoding = encoding_of(info.kind).map_err(|kind| {
        Diagnostic::new(format!("tensor `{name}` has a type that is not read"))
            .found(kind)
            .needed("`F32`, `F16`, `BF16`, `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`, `Q8_0`, `Q4_K`, `Q5_K` or `Q6_K`")
            .help("convert the model to one of these types with llama.cpp's `llama-quantize`")
    })?;
    let shape: Vec<u64> = info.dimensions.iter().rev().copied().collect();
    let columns = info.dimensions[0];
    let elements = shape.iter().try_fold(1_u64, |product, &size| product.checked_mul(size));
    let elements = match elements {
        Some(elements) if elements > 0 && columns.is_multiple_of(encoding.block_elements()) => elements,
        _ => {
            return Err(Diagnostic::new(format!("tensor `{name}` has an impossible shape"))
                .found(format!("{shape:?} of {}", encoding.name()))
                .needed(format!("rows of whole blocks of {} elements", encoding.block_elements())));
        }
    };
    let start = data_offset.checked_add(info.offset);
    let end = start.zip(encoding.bytes_of(elements)).and_then(|(start, bytes)| start.checked_add(bytes));
    match (start, end) {
        (Some(offset), Some(end)) if end <= file_bytes && info.offset.is_multiple_of(alignment) => {
            Ok(StoredTensor { file: 0, offset, encoding, shape, order: RowOrder::Canonical })
        }
        _ => Err(Diagnostic::new(format!("tensor `{name}` lies outside the file"))
            .found(format!("{shape:?} of {} at offset {}", encoding.name(), info.offset))
            .needed(format!(
                "an offset that is a multiple of {alignment}, and an end within {file_bytes} bytes"
            ))
            .help("the file is cut short or damaged: fetch it again")),
    }
}

/// The encoding with ggml's number `kind`, or the type as a message shows it where it is not read.
fn encoding_of(kind: u32) -> Result<Encoding, String> {
    let name = match kind {
        0 => return Ok(Encoding::F32),
        1 => return Ok(Encoding::F16),
        2 => return Ok(Encoding::Q4_0),
        3 => return Ok(Encoding::Q4_1),
        6 => return Ok(Encoding::Q5_0),
        7 => return Ok(Encoding::Q5_1),
        8 => return Ok(Encoding::Q8_0),
        12 => return Ok(Encoding::Q4K),
        13 => return Ok(Encoding::Q5K),
        14 => return Ok(Encoding::Q6K),
        30 => return Ok(Encoding::Bf16),
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return Err(format!("type {kind}, which has no name here")),
    };
    Err(format!("type {kind}, `{name}`"))
}

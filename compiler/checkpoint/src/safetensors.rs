//! Headers of safetensors files, one or many with an index.
//!
//! The header is parsed here and not by the crate `safetensors`, which wants the whole file in memory
//! before it checks one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use qwen2c_format::Diagnostic;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::encoding::Encoding;
use crate::files::{OpenFile, read_json_if_present};
use crate::tensors::{RowOrder, StoredTensor, TensorTable};

/// Longest header that is read; the format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Most dimensions of a tensor.
const MAX_RANK: usize = 8;

/// Opens the tensors of a directory under the names in its files.
pub(crate) fn open_safetensors(folder: &Path) -> Result<TensorTable, Diagnostic> {
    let single = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    let mut table = TensorTable::default();
    if single.is_file() {
        for (name, tensor) in read_header(&mut table, &single)? {
            table.tensors.insert(name, tensor);
        }
        return Ok(table);
    }
    let Some(object) = read_json_if_present(&index)? else {
        return Err(no_tensors(folder));
    };
    let wanted = weight_map(&object, &index)?;
    for shard in shard_names(&object, &index)? {
        let path = folder.join(&shard);
        if !path.is_file() {
            return Err(Diagnostic::new("a shard of the checkpoint is missing")
                .at(path.display().to_string())
                .needed(format!("the file, named in `{}`", index.display()))
                .help("fetch the missing file, or pass another checkpoint with `--weights`"));
        }
        let mut found = read_header(&mut table, &path)?;
        for (name, _) in wanted.iter().filter(|(_, file)| **file == shard) {
            let Some(tensor) = found.remove(*name) else {
                return Err(Diagnostic::new(format!(
                    "tensor `{name}` is not in the shard that the index names"
                ))
                .at(path.display().to_string())
                .help("index and shards belong to different checkpoints: fetch them together"));
            };
            table.tensors.insert((*name).to_owned(), tensor);
        }
    }
    Ok(table)
}

/// Files named by an index, in the order of their names.
pub(crate) fn shard_names(index: &Map<String, Value>, path: &Path) -> Result<BTreeSet<String>, Diagnostic> {
    Ok(weight_map(index, path)?.into_values().map(str::to_owned).collect())
}

/// Tensors of an index with their files.
fn weight_map<'a>(
    index: &'a Map<String, Value>,
    path: &Path,
) -> Result<BTreeMap<&'a str, &'a str>, Diagnostic> {
    let place = path.display().to_string();
    let Some(Value::Object(map)) = index.get("weight_map") else {
        return Err(Diagnostic::new("the index has no `weight_map`").at(place));
    };
    map.iter()
        .map(|(tensor, file)| match file.as_str() {
            // A name with a separator could point anywhere on the machine.
            Some(file) if is_plain_file_name(file) => Ok((tensor.as_str(), file)),
            _ => Err(Diagnostic::new(format!("the index gives tensor `{tensor}` no valid file name"))
                .at(place.clone())
                .found(file.to_string())
                .needed("the name of a file beside the index")),
        })
        .collect()
}

fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

/// The directory holds no tensors that can be read.
fn no_tensors(folder: &Path) -> Diagnostic {
    let diagnostic = Diagnostic::new("the directory holds no tensors")
        .at(folder.display().to_string())
        .needed("`model.safetensors`, or `model.safetensors.index.json` with its shards");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    if let Some(name) = names.iter().find(|name| name.ends_with(".gguf")) {
        return diagnostic.help(format!("to use the GGUF file, name it: `{}`", folder.join(name).display()));
    }
    if names.iter().any(|name| name.starts_with("pytorch_model")) {
        return diagnostic.help("PyTorch's pickled files are not read: save the model as safetensors first");
    }
    diagnostic.help("pass `--weights random` to build without a checkpoint")
}

/// Opens a file, adds it to the table and returns its tensors.
fn read_header(table: &mut TensorTable, path: &Path) -> Result<BTreeMap<String, StoredTensor>, Diagnostic> {
    let file = OpenFile::open(path)?;
    let (header, data_offset) = header_bytes(&file)?;
    let place = file.place();
    let header: Header = serde_json::from_slice(&header).map_err(|error| {
        Diagnostic::new("the header of the safetensors file is damaged")
            .at(place.clone())
            .cause(error.to_string())
    })?;
    let data_bytes = file.bytes - data_offset;
    let index = table.files.len();
    let mut tensors = BTreeMap::new();
    for (name, entry) in header.tensors {
        let tensor = stored_tensor(&name, &entry, data_offset, data_bytes, index)
            .map_err(|diagnostic| diagnostic.at(place.clone()))?;
        tensors.insert(name, tensor);
    }
    refuse_overlaps(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)))
        .map_err(|diagnostic| diagnostic.at(place))?;
    table.files.push(file);
    Ok(tensors)
}

/// The header's bytes, and where the data begins.
fn header_bytes(file: &OpenFile) -> Result<(Vec<u8>, u64), Diagnostic> {
    let damaged = |found: String, needed: String| {
        Diagnostic::new("the file is not a safetensors file, or cut short")
            .at(file.place())
            .found(found)
            .needed(needed)
            .help("fetch the file again; a Git LFS pointer is a text of about 130 bytes")
    };
    let read = |offset: u64, bytes: &mut [u8]| {
        file.read_at(offset, bytes).map_err(|error| crate::files::cannot_read(&file.path, &error))
    };
    if file.bytes < 8 {
        return Err(damaged(format!("{} bytes", file.bytes), "8 bytes of header length".to_owned()));
    }
    let mut length = [0; 8];
    read(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES.min(file.bytes - 8) {
        return Err(damaged(
            format!("a header length of {length} bytes"),
            format!("at most {}", MAX_HEADER_BYTES.min(file.bytes - 8)),
        ));
    }
    let mut header = vec![0; length as usize];
    read(8, &mut header)?;
    Ok((header, 8 + length))
}

/// Checks an entry of the header against the file.
fn stored_tensor(
    name: &str,
    entry: &Entry,
    data_offset: u64,
    data_bytes: u64,
    file: usize,
) -> Result<StoredTensor, Diagnostic> {
    let encoding = match entry.dtype.as_str() {
        "F32" => Encoding::F32,
        "F16" => Encoding::F16,
        "BF16" => Encoding::Bf16,
        other => {
            return Err(Diagnostic::new(format!("tensor `{name}` has an element type that is not read"))
                .found(format!("`{}`", short(other)))
                .needed("`F32`, `F16` or `BF16`")
                .help("quantized checkpoints are not read yet, except GGUF"));
        }
    };
    if entry.shape.is_empty() || entry.shape.len() > MAX_RANK || entry.shape.contains(&0) {
        return Err(Diagnostic::new(format!("tensor `{name}` has no elements or too many dimensions"))
            .found(format!("{:?}", entry.shape)));
    }
    let elements = entry.shape.iter().try_fold(1_u64, |product, &size| product.checked_mul(size));
    let Some(bytes) = elements.and_then(|elements| encoding.bytes_of(elements)) else {
        return Err(Diagnostic::new(format!("tensor `{name}` is larger than any file"))
            .found(format!("{:?}", entry.shape)));
    };
    let [start, end] = entry.data_offsets;
    if start > end || end > data_bytes {
        return Err(Diagnostic::new(format!("tensor `{name}` lies outside the file"))
            .found(format!("bytes {start} to {end}"))
            .needed(format!("within {data_bytes} bytes of data"))
            .help("the file is cut short: fetch it again"));
    }
    if end - start != bytes {
        return Err(Diagnostic::new(format!("tensor `{name}` has another length than its shape"))
            .found(format!("{} bytes", end - start))
            .needed(format!("{bytes} bytes for {:?} of {}", entry.shape, encoding.name())));
    }
    Ok(StoredTensor {
        file,
        offset: data_offset + start,
        encoding,
        shape: entry.shape.clone(),
        order: RowOrder::Canonical,
    })
}

/// Refuses tensors that share bytes: no writer makes them, and a header that lies does.
pub(crate) fn refuse_overlaps<'a>(
    tensors: impl Iterator<Item = (&'a str, &'a StoredTensor)>,
) -> Result<(), Diagnostic> {
    let mut ranges: Vec<(u64, u64, &str)> = tensors
        .map(|(name, tensor)| {
            let elements: u64 = tensor.shape.iter().product();
            let bytes = tensor.encoding.bytes_of(elements).unwrap_or(u64::MAX);
            (tensor.offset, tensor.offset.saturating_add(bytes), name)
        })
        .collect();
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        let [(_, end, first), (start, _, second)] = pair else { continue };
        if start < end {
            return Err(Diagnostic::new("two tensors overlap in the file")
                .found(format!("`{first}` ends at byte {end}, `{second}` begins at byte {start}")));
        }
    }
    Ok(())
}

/// The beginning of a text from a file.
fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

/// The header's JSON object; tensors in the order of the file.
struct Header {
    tensors: Vec<(String, Entry)>,
}

/// A tensor of the header.
#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// Collects entries and refuses a name that comes twice, which a map would swallow.
struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut names = BTreeSet::new();
        let mut tensors = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if !names.insert(name.clone()) {
                return Err(A::Error::custom(format!("`{}` comes twice", short(&name))));
            }
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
            } else {
                tensors.push((name, map.next_value()?));
            }
        }
        Ok(Header { tensors })
    }
}

//! GGUF files, written by the test that reads them.

/// A GGUF file in the making.
#[derive(Clone, Default)]
pub(crate) struct Gguf {
    pub(crate) metadata: Vec<(String, u32, Vec<u8>)>,
    /// Name, extents outermost first, ggml's type, bytes.
    pub(crate) tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

/// A length and the bytes of a text.
fn text_bytes(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl Gguf {
    /// Sets a key; `kind` is ggml's number of the type.
    pub(crate) fn set(&mut self, key: &str, kind: u32, value: &[u8]) -> &mut Self {
        self.metadata.retain(|(known, _, _)| known != key);
        self.metadata.push((key.to_owned(), kind, value.to_vec()));
        self
    }

    pub(crate) fn count(&mut self, key: &str, value: u32) -> &mut Self {
        self.set(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn real(&mut self, key: &str, value: f32) -> &mut Self {
        self.set(key, 6, &value.to_le_bytes())
    }

    pub(crate) fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.set(key, 8, &text_bytes(value))
    }

    pub(crate) fn texts(&mut self, key: &str, values: &[&str]) -> &mut Self {
        let mut bytes = 8_u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        bytes.extend(values.iter().flat_map(|value| text_bytes(value)));
        self.set(key, 9, &bytes)
    }

    pub(crate) fn f32_tensor(&mut self, name: &str, shape: &[u64], values: &[f32]) -> &mut Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensors.push((name.to_owned(), shape.to_vec(), 0, bytes));
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.metadata {
            bytes.extend(text_bytes(key));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
        }
        let mut data: Vec<u8> = Vec::new();
        for (name, shape, kind, tensor) in &self.tensors {
            bytes.extend(text_bytes(name));
            bytes.extend((shape.len() as u32).to_le_bytes());
            bytes.extend(shape.iter().rev().flat_map(|size| size.to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend((data.len() as u64).to_le_bytes());
            data.extend(tensor);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(data);
        bytes
    }
}

//! GPT-2's alphabet: every byte as a printable character.
//!
//! Byte-level tokenizers write their tokens in it (a space is `Ġ`), so that a vocabulary is text. Printable
//! Latin-1 stands for itself, the other 68 bytes for the characters from U+0100 on.

/// The characters of all bytes.
pub(super) fn characters() -> [char; 256] {
    let mut next_code = 0x100;
    std::array::from_fn(|byte| {
        if matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
            char::from(byte as u8)
        } else {
            next_code += 1;
            char::from_u32(next_code - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
        }
    })
}

/// The way back.
#[derive(Clone, Debug)]
pub(super) struct ByteAlphabet {
    /// Bytes by code point; all lie below U+0144.
    bytes: [Option<u8>; 0x144],
}

impl ByteAlphabet {
    pub(super) fn new() -> Self {
        let mut bytes = [None; 0x144];
        for (byte, character) in characters().into_iter().enumerate() {
            bytes[character as usize] = Some(byte as u8);
        }
        Self { bytes }
    }

    /// The bytes that a token's text stands for; none where a character is not of the alphabet.
    pub(super) fn bytes_of(&self, text: &str) -> Option<Vec<u8>> {
        text.chars().map(|character| self.bytes.get(character as usize).copied().flatten()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back() {
        let alphabet = ByteAlphabet::new();
        for (byte, character) in characters().into_iter().enumerate() {
            assert_eq!(alphabet.bytes_of(&character.to_string()), Some(vec![byte as u8]));
        }
        assert_eq!(alphabet.bytes_of("Ġthe"), Some(b" the".to_vec()));
        assert_eq!(alphabet.bytes_of("漢"), None);
    }
}

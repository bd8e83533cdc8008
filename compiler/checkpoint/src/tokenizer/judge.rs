//! The crate `tokenizers` as the judge of the tables.

use super::vocabulary::{Vocabulary, quoted};
use qwen2c_format::Diagnostic;
use qwen2c_format::tokenizer::TokenizerView;
use qwen2c_runtime::text::Encoder;
use tokenizers::Tokenizer;

/// What every build is judged on: each rule's every alternative in many scripts, in a few lines.
const SAMPLES: [&str; 12] = [
    "The quick brown fox can't jump; they'Re sure WE'LL see: it'S 'tis 12345.67 m² ½ Ⅷ",
    "fn main() {\n\tlet x = [1, 2];\r\n\r\n    println!(\"{x:?}\");  // ok\n}\n\n\n   ",
    "   leading,  double   triple    and trailing   ",
    "Größe, naïve, smørbrød, żółć, čeština, Ελληνικά, Русский, українська",
    "e\u{301}a\u{308}o\u{302}\u{323} \u{1100}\u{1161}\u{11a8} \u{212b} \u{1f71}",
    "中文字符，日本語のテキスト、한국어 텍스트。ไทย ລາວ မြန်မာ ខ្មែរ",
    "العربية ١٢٣، עברית, فارسی ۴۵۶, اردو, हिन्दी १२३, বাংলা, தமிழ், తెలుగు, ქართული, հայերեն, አማርኛ",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ❤️ 🇩🇪 1️⃣",
    "a\u{a0}b\u{2003}c\u{3000}d\u{200b}e\u{feff}f\u{2028}g\u{85}h\u{b}i",
    "<|im_start|>user\nhi<|im_end|> <|endoftext|><tool_call></s>",
    "'ſ 'LL \"quoted\" --- ... ???\r\n!!!\n \n\t\n x \r y",
    "\u{fffd}\u{fff0} \u{0}\u{1}\u{7f} \u{10ffff}",
];

/// The crate `tokenizers` on the same data that the tables were built from.
pub struct Judge {
    pub(super) tokenizer: Tokenizer,
}

impl Judge {
    /// A judge on a `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// Where `tokenizers` cannot read it.
    pub fn from_tokenizer_json(tokenizer_json: &[u8]) -> Result<Self, Diagnostic> {
        Tokenizer::from_bytes(tokenizer_json).map(|tokenizer| Self { tokenizer }).map_err(|error| {
            Diagnostic::new("the crate `tokenizers` cannot read the tokenizer")
                .cause(error.to_string())
                .help("the file is damaged or of another kind of tokenizer; get it again")
        })
    }

    /// A judge on the data of a GGUF file.
    pub(super) fn from_vocabulary(vocabulary: &Vocabulary) -> Result<Self, Diagnostic> {
        Self::from_tokenizer_json(vocabulary.tokenizer_json().to_string().as_bytes())
    }

    /// Compares the tables on a short multilingual text and on every added token.
    ///
    /// # Errors
    ///
    /// Where any ids differ.
    pub fn approve(&mut self, table_bytes: &[u8]) -> Result<(), Diagnostic> {
        let view = TokenizerView::new(table_bytes)?;
        let encoder = Encoder::new(view);
        for sample in SAMPLES {
            self.compare(&encoder, sample)?;
        }
        for added in [false, true].into_iter().flat_map(|normalized| view.added(normalized)) {
            if let Some(text) = view.token_bytes(added).and_then(|bytes| std::str::from_utf8(bytes).ok()) {
                self.compare(&encoder, &format!("a {text} b{text}{text}"))?;
            }
        }
        Ok(())
    }

    /// Compares the tokens of one text, with and without special tokens in it recognised.
    ///
    /// # Errors
    ///
    /// Where ids differ.
    pub fn compare(&mut self, encoder: &Encoder<'_>, text: &str) -> Result<(), Diagnostic> {
        for allow_special in [false, true] {
            self.tokenizer.set_encode_special_tokens(!allow_special);
            let needed = self.tokenizer.encode_fast(text, false).map_err(|error| {
                Diagnostic::new("the crate `tokenizers` cannot encode")
                    .found(quoted(text))
                    .cause(error.to_string())
            })?;
            let found = encoder.encode(text, allow_special);
            if found != needed.get_ids() {
                return Err(difference(text, allow_special, &found, needed.get_ids()));
            }
        }
        Ok(())
    }
}

/// The first place where ids differ, with a few of them.
fn difference(text: &str, allow_special: bool, found: &[u32], needed: &[u32]) -> Diagnostic {
    let same = found.iter().zip(needed).take_while(|(found, needed)| found == needed).count();
    let part = |ids: &[u32]| format!("{:?}", ids.iter().skip(same).take(8).collect::<Vec<_>>());
    Diagnostic::new("the compiled tokenizer differs from the crate `tokenizers`")
        .at(format!("{}, token {same}, special tokens allowed: {allow_special}", quoted(text)))
        .found(part(found))
        .needed(part(needed))
        .help("please report this tokenizer: building it would give the model wrong tokens")
}

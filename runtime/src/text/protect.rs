//! Keeps what a user wrote from being read as control tokens, through a template that mixes both.
//!
//! A chat template puts `<|im_end|>` and the user's text into one string. Were that string encoded with special
//! tokens allowed, a user could write `<|im_end|>` and forge a turn; were its parts encoded each by itself,
//! tokens at their seams would differ from those that the model was trained on. So the string is encoded as a
//! whole, and before every place of the user's text where a special token begins stands a marker: a private-use
//! character that occurs nowhere else, that no template touches, and that the encoder takes out again. Text
//! without special tokens has no markers and passes templates that trim or split it unchanged.

use super::encode::Encoder;
use super::normalize::normalize;

/// A private-use character that none of the texts holds; none where they hold all 65 534 of the plane.
pub(super) fn unused_marker<'t>(texts: impl Iterator<Item = &'t str> + Clone) -> Option<char> {
    ('\u{f0000}'..='\u{ffffd}').find(|&marker| !texts.clone().any(|text| text.contains(marker)))
}

/// `text` with the marker before every special token in it, and before what would become one with the text that
/// a template puts behind it.
pub(super) fn mark_special(encoder: &Encoder<'_>, text: &str, marker: char) -> String {
    let view = encoder.view();
    let special: Vec<&[u8]> = [false, true]
        .into_iter()
        .flat_map(|normalized| view.added(normalized))
        .filter(|&id| view.is_special(id))
        .filter_map(|id| view.token_bytes(id))
        .collect();
    let longest = special.iter().map(|token| token.len()).max().unwrap_or(0);
    // Tokens that are matched after normalization must be found as they will be found then.
    let has_normalized = view.added(true).any(|id| view.is_special(id));
    let text = if has_normalized { normalize(text, view.normalization()) } else { text.into() };
    // Templates may trim the text, which brings its end nearer to theirs.
    let end = text.trim_end().len();
    let mut marked = String::with_capacity(text.len());
    for (at, character) in text.char_indices() {
        let begins = |normalized: bool| {
            encoder.added_at(&text, at, normalized).is_some_and(|found| view.is_special(found.id))
        };
        let may_continue = at < end
            && end - at < longest
            && special.iter().any(|token| token.starts_with(&text.as_bytes()[at..end]));
        if may_continue || begins(false) || begins(true) {
            marked.push(marker);
        }
        marked.push(character);
    }
    marked
}

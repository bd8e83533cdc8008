//! What the names of a signature stand for in one operation, and whether an operand fits.

use std::collections::BTreeMap;

use qwen2c_request::{CacheKind, CacheType, Dimension, Element, Size, TensorType};

/// What the names of a signature stand for, as far as the operands seen so far tell.
#[derive(Default)]
pub(super) struct Bound {
    pub(super) elements: BTreeMap<&'static str, Element>,
    pub(super) numbers: BTreeMap<&'static str, u64>,
    rows: Option<Size>,
    shape: Option<Vec<Size>>,
}

impl Bound {
    /// Binds the extents of a cache of this kind, or says what does not fit.
    pub(super) fn cache(&mut self, ty: &CacheType, kind: CacheKind) -> Result<(), String> {
        if ty.kind != kind {
            return Err(format!("holds {:?}s, needs {kind:?}s", ty.kind).to_lowercase());
        }
        let extents = [
            ("slots", ty.slots),
            ("kv_heads", ty.kv_heads),
            ("context", ty.context),
            ("head_dim", ty.head_dim),
        ];
        for (name, extent) in extents {
            if !self.number(name, extent) {
                return Err(format!("has {name}={extent}, needs {name}={}", self.numbers[name]));
            }
        }
        Ok(())
    }

    /// Binds `name`, or compares with what it is bound to.
    fn number(&mut self, name: &'static str, found: u64) -> bool {
        *self.numbers.entry(name).or_insert(found) == found
    }

    /// Whether a type fits a pattern, whose names it binds.
    pub(super) fn matches(&mut self, ty: &TensorType, pattern: &'static str) -> bool {
        let (element, rest) = pattern.split_once('[').expect("a pattern has brackets");
        let dimensions = rest.trim_end_matches(']');
        self.matches_element(ty.element, element) && self.matches_shape(&ty.dimensions, dimensions)
    }

    fn matches_element(&mut self, found: Element, pattern: &'static str) -> bool {
        if let Some(element) = Element::from_name(pattern) {
            return found == element;
        }
        let is_float = found.is_float();
        match pattern {
            "Q" => found.integer_group().is_some(),
            "X" => found.integer_group().is_some() || self.matches_element(found, "T"),
            "W" => is_float && (found == Element::F32 || self.matches_element(found, "T")),
            "T" => is_float && *self.elements.entry("T").or_insert(found) == found,
            _ => *self.elements.entry(pattern).or_insert(found) == found,
        }
    }

    fn matches_shape(&mut self, dimensions: &[Dimension], pattern: &'static str) -> bool {
        let sizes: Vec<Size> = dimensions.iter().map(|dimension| dimension.size).collect();
        if let Some(last) = pattern.strip_prefix('…') {
            let kept = if last.is_empty() { sizes.len() } else { sizes.len().saturating_sub(1) };
            let starts_with_rows = sizes.first().is_some_and(|size| size.constant().is_none());
            let shape = self.shape.get_or_insert_with(|| sizes[..kept].to_vec());
            let same = starts_with_rows && *shape == sizes[..kept];
            let last = last.trim_start_matches(", ");
            return same && (last.is_empty() || self.matches_dimension(sizes[kept], last));
        }
        let patterns: Vec<&'static str> = pattern.split(", ").collect();
        patterns.len() == sizes.len()
            && patterns.iter().zip(sizes).all(|(pattern, size)| self.matches_dimension(size, pattern))
    }

    fn matches_dimension(&mut self, found: Size, pattern: &'static str) -> bool {
        let Some(size) = found.constant() else {
            return match pattern {
                "rows" => *self.rows.get_or_insert(found) == found,
                "all_rows" => found == Size::Rows,
                "logit_rows" => found == Size::LogitRows,
                _ => false,
            };
        };
        if matches!(pattern, "rows" | "all_rows" | "logit_rows") {
            return false;
        }
        if let Ok(number) = pattern.parse::<u64>() {
            return size == number;
        }
        if let Some(half) = pattern.strip_prefix('2') {
            return size.is_multiple_of(2) && self.number(half, size / 2);
        }
        match pattern.split_once('·') {
            None => self.number(pattern, size),
            Some((left, right)) => {
                let product = |a: u64, b: u64| a.checked_mul(b);
                match (self.numbers.get(left).copied(), self.numbers.get(right).copied()) {
                    (Some(a), Some(b)) => product(a, b) == Some(size),
                    (None, Some(b)) => b > 0 && size.is_multiple_of(b) && self.number(left, size / b),
                    (Some(a), None) => a > 0 && size.is_multiple_of(a) && self.number(right, size / a),
                    (None, None) => false,
                }
            }
        }
    }

    /// `, where k = 896 and T = bf16`, of the names in `pattern` that are bound.
    pub(super) fn explain(&self, pattern: &str) -> String {
        let words: Vec<&str> =
            pattern.split(|character: char| !character.is_alphanumeric() && character != '_').collect();
        let is_meant = |name: &str| words.iter().any(|word| word.trim_start_matches('2') == name);
        let numbers = self.numbers.iter().filter(|(name, _)| is_meant(name));
        let elements = self.elements.iter().filter(|(name, _)| is_meant(name));
        let mut known: Vec<String> = elements.map(|(name, element)| format!("{name} = {element}")).collect();
        known.extend(numbers.map(|(name, number)| format!("{name} = {number}")));
        match self.rows {
            Some(Size::LogitRows) if is_meant("rows") => known.push("rows = logit_rows".to_owned()),
            Some(Size::Rows) if is_meant("rows") => known.push("rows = rows".to_owned()),
            _ => {}
        }
        if known.is_empty() { String::new() } else { format!(", where {}", known.join(", ")) }
    }
}

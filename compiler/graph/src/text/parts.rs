//! Runs of tensors in a weight's source.
//!
//! The experts of a layer are dozens of tensors whose names differ in a number. They are written once:
//! `60 * ("model.layers.0.mlp.experts.{}.gate_proj.weight"[1408])`, where `{}` counts from 0.

use std::fmt::Write;

use crate::WeightPart;

/// What stands for the counter in a repeated name.
const COUNTER: &str = "{}";

/// More parts than any model has; a text that asks for more is refused instead of filling the memory.
pub(super) const MOST_PARTS: u64 = 1 << 20;

/// The parts as text.
pub(super) fn print_parts(parts: &[WeightPart]) -> String {
    let mut text = String::new();
    match repeated_group(parts) {
        Some(group) => {
            let _ = write!(text, "{} * (", parts.len() / group.len());
            print_list(&mut text, &group);
            text.push(')');
        }
        None => print_list(&mut text, parts),
    }
    text
}

fn print_list(text: &mut String, parts: &[WeightPart]) {
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            text.push_str(", ");
        }
        super::print::print_quoted(text, &part.tensor);
        let _ = write!(text, "[{}", part.rows);
        if part.padded_rows != part.rows {
            let _ = write!(text, " padded {}", part.padded_rows);
        }
        text.push(']');
    }
}

/// The smallest group of one or two parts that, repeated with a counter from 0, gives all of them.
fn repeated_group(parts: &[WeightPart]) -> Option<Vec<WeightPart>> {
    for length in [1, 2] {
        if parts.len() < 2 * length || !parts.len().is_multiple_of(length) {
            continue;
        }
        let group: Option<Vec<WeightPart>> = (0..length)
            .map(|index| {
                let tensor = counted_name(&parts[index].tensor, &parts[index + length].tensor)?;
                Some(WeightPart { tensor, ..parts[index] })
            })
            .collect();
        if let Some(group) = group
            && repeat(&group, (parts.len() / length) as u64) == parts
        {
            return Some(group);
        }
    }
    None
}

/// `a.{}.b` for `a.0.b` and `a.1.b`.
fn counted_name(first: &str, second: &str) -> Option<String> {
    if first.contains(COUNTER) {
        return None;
    }
    first
        .match_indices('0')
        .map(|(place, _)| format!("{}{COUNTER}{}", &first[..place], &first[place + 1..]))
        .find(|name| name.replace(COUNTER, "1") == second)
}

/// `group` repeated `count` times, its counters from 0 on.
pub(super) fn repeat(group: &[WeightPart], count: u64) -> Vec<WeightPart> {
    (0..count)
        .flat_map(|number| {
            group.iter().map(move |part| WeightPart {
                tensor: part.tensor.replace(COUNTER, &number.to_string()),
                ..*part
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(tensor: &str) -> WeightPart {
        WeightPart { tensor: tensor.to_owned(), rows: 4, padded_rows: 4 }
    }

    #[test]
    fn counted_tensors_are_written_once() {
        let parts: Vec<WeightPart> =
            (0..12).map(|expert| part(&format!("layers.10.experts.{expert}.up"))).collect();
        assert_eq!(print_parts(&parts), "12 * (\"layers.10.experts.{}.up\"[4])");
    }

    #[test]
    fn alternating_tensors_are_written_as_a_pair() {
        let parts: Vec<WeightPart> = (0..3)
            .flat_map(|expert| [part(&format!("{expert}.gate")), part(&format!("{expert}.up"))])
            .collect();
        assert_eq!(print_parts(&parts), "3 * (\"{}.gate\"[4], \"{}.up\"[4])");
    }

    #[test]
    fn a_gap_in_the_count_is_written_out() {
        let parts = [part("0.up"), part("1.up"), part("3.up")];
        assert_eq!(print_parts(&parts), "\"0.up\"[4], \"1.up\"[4], \"3.up\"[4]");
    }
}

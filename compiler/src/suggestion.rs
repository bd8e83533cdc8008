//! "Did you mean …": the nearest of the names that could have been given.

/// The name closest to `given`, if it is close enough to have been meant.
///
/// Case and punctuation cost nothing (`SM80` finds `sm_80`); otherwise two letters or a third of them
/// may be wrong.
pub(crate) fn nearest<'a>(given: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = letters(given);
    names
        .into_iter()
        .map(|name| (edit_distance(&wanted, &letters(name)), name))
        .filter(|(distance, name)| *distance <= name.len().max(6) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// The letters and digits of a name in lower case.
fn letters(name: &str) -> Vec<char> {
    name.chars().filter(|letter| letter.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// Insertions, deletions and replacements that turn one into the other (Levenshtein 1966).
fn edit_distance(from: &[char], to: &[char]) -> usize {
    let mut previous: Vec<usize> = (0..=to.len()).collect();
    for (row, left) in from.iter().enumerate() {
        let mut current = vec![row + 1];
        for (column, right) in to.iter().enumerate() {
            let replaced = previous[column] + usize::from(left != right);
            current.push(replaced.min(previous[column + 1] + 1).min(current[column] + 1));
        }
        previous = current;
    }
    previous[to.len()]
}

#[cfg(test)]
mod tests {
    use super::nearest;

    const NAMES: [&str; 4] = ["sm_80", "sm_90", "x86-64-v3", "fuse_attention"];

    #[test]
    fn punctuation_and_case_do_not_matter() {
        assert_eq!(nearest("SM80", NAMES), Some("sm_80"));
        assert_eq!(nearest("x86_64_v3", NAMES), Some("x86-64-v3"));
    }

    #[test]
    fn a_few_wrong_letters_are_forgiven() {
        assert_eq!(nearest("fuse_atention", NAMES), Some("fuse_attention"));
        assert_eq!(nearest("grahp", ["config", "graph", "plan"]), Some("graph"));
    }

    #[test]
    fn something_else_gets_no_suggestion() {
        assert_eq!(nearest("banana", NAMES), None);
    }
}

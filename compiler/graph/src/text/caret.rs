//! Draws a line of text with a caret under the place that is meant.

/// Characters of the line that are shown around the caret.
const SHOWN_CHARACTERS: usize = 110;

/// Two lines: `line`, and `width` carets under its character `column` (from 1 on).
///
/// A long line is cut to what lies around the caret, and control characters become spaces, so that the
/// carets stand where they belong on any terminal.
pub(crate) fn draw(line: &str, column: usize, width: usize) -> String {
    let start = column.saturating_sub(SHOWN_CHARACTERS / 2 + 1);
    let start = if line.chars().count() <= SHOWN_CHARACTERS { 0 } else { start };
    let visible = |character: char| if character.is_control() { ' ' } else { character };
    let shown: String = line.chars().skip(start).take(SHOWN_CHARACTERS).map(visible).collect();
    let shown = shown.trim_end();
    let indent = column.saturating_sub(1).saturating_sub(start);
    let width = width.clamp(1, SHOWN_CHARACTERS.saturating_sub(indent).max(1));
    format!("{shown}\n{}{}", " ".repeat(indent), "^".repeat(width))
}

#[cfg(test)]
mod tests {
    use super::draw;

    #[test]
    fn carets_stand_under_the_column() {
        assert_eq!(draw("a = b", 3, 1), "a = b\n  ^");
        assert_eq!(draw("\ta = b", 2, 3), " a = b\n ^^^");
    }

    #[test]
    fn long_lines_are_cut_around_the_caret() {
        let line = format!("{}here{}", "x".repeat(500), "y".repeat(500));
        let drawn = draw(&line, 501, 4);
        let (shown, carets) = drawn.split_once('\n').expect("two lines");
        assert_eq!(shown.chars().count(), 110);
        let place = carets.find('^').expect("a caret");
        assert_eq!(&shown[place..place + 4], "here");
    }
}

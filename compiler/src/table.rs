//! Tables in the terminal: columns as wide as their widest cell.

use console::measure_text_width;

/// Which side of its column a cell keeps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Rows of cells; the last column is never padded, so that no line ends in spaces.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    sides: Vec<Side>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these columns.
    pub(crate) fn new(sides: &[Side]) -> Self {
        Self { sides: sides.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row<Cell: Into<String>>(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The table's lines, each behind `indent` spaces.
    pub(crate) fn lines(&self, indent: usize) -> Vec<String> {
        let widths: Vec<usize> = (0..self.sides.len())
            .map(|column| {
                self.rows.iter().filter_map(|row| row.get(column)).map(|cell| measure_text_width(cell)).max()
            })
            .map(Option::unwrap_or_default)
            .collect();
        self.rows.iter().map(|row| self.line(row, &widths, indent)).collect()
    }

    fn line(&self, row: &[String], widths: &[usize], indent: usize) -> String {
        let mut line = " ".repeat(indent);
        for (column, cell) in row.iter().enumerate() {
            if column > 0 {
                line.push_str("  ");
            }
            let padding = " ".repeat(widths[column].saturating_sub(measure_text_width(cell)));
            match self.sides[column] {
                Side::Left => line.extend([cell, padding.as_str()]),
                Side::Right => line.extend([padding.as_str(), cell]),
            }
        }
        line.truncate(line.trim_end().len());
        line
    }
}

#[cfg(test)]
mod tests {
    use super::{Side, Table};

    #[test]
    fn numbers_keep_to_the_right_and_lines_end_with_their_text() {
        let mut table = Table::new(&[Side::Left, Side::Right, Side::Left]);
        table.row(["weights", "988.1 MiB", "mapped"]);
        table.row(["kv cache", "96.0 MiB", ""]);
        assert_eq!(table.lines(2), ["  weights   988.1 MiB  mapped", "  kv cache   96.0 MiB"]);
    }
}

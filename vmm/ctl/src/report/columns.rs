//! Tables of many rows.

use super::Align;

/// A column.
pub(crate) struct Column {
    head: &'static str,
    align: Align,
}

impl Column {
    /// Of words.
    pub(crate) const fn left(head: &'static str) -> Self {
        Self { head, align: Align::Left }
    }

    /// Of numbers.
    pub(crate) const fn right(head: &'static str) -> Self {
        Self { head, align: Align::Right }
    }
}

/// The rows under their heads, each column as wide as its widest cell.
pub(crate) fn columns(columns: &[Column], rows: &[Vec<String>]) -> String {
    let width = |text: &str| text.chars().count();
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| {
            let cells = rows.iter().filter_map(|row| row.get(at)).map(|cell| width(cell));
            cells.chain([width(column.head)]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: Vec<&str>| {
        let mut line = String::new();
        for ((cell, column), width) in cells.into_iter().zip(columns).zip(&widths) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            line.push_str(&match column.align {
                Align::Left => format!("{cell:<width$}"),
                Align::Right => format!("{cell:>width$}"),
            });
        }
        line.trim_end().to_owned() + "\n"
    };
    let head = line(columns.iter().map(|column| column.head).collect());
    let rows = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    std::iter::once(head).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let rows = [["a-long-name", "1"], ["b", "1000"]].map(|row| row.map(str::to_owned).to_vec());

        let text = columns(&[Column::left("VM"), Column::right("PID")], &rows);

        assert_eq!(text, "VM            PID\na-long-name     1\nb            1000\n");
        assert_eq!(columns(&[Column::left("VM"), Column::right("PID")], &[]), "VM  PID\n");
    }
}

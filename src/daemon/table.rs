//! Tables for people.

/// Whether a column's cells stand at its left or its right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Lines of `rows` under their `heads`, in columns as wide as they need to be.
pub(crate) fn table<const N: usize>(heads: [(&str, Align); N], rows: &[[String; N]]) -> String {
    let length = |text: &str| text.chars().count();
    let mut widths = heads.map(|(head, _)| length(head));
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = length(cell).max(*width);
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&heads.map(|(head, _)| head.to_owned())).chain(rows) {
        let mut line = String::new();
        for ((cell, width), (_, align)) in row.iter().zip(widths).zip(heads) {
            line += &match align {
                Align::Left => format!("{cell:<width$}  "),
                Align::Right => format!("{cell:>width$}  "),
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// Bytes in the largest unit that leaves three digits.
pub(crate) fn bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_need_to_be() {
        let rows =
            [["a".to_owned(), "10".to_owned(), "x".to_owned()], ["böse".to_owned(), "7".to_owned(), String::new()]];
        let text = table([("NAME", Align::Left), ("N", Align::Right), ("WHY", Align::Left)], &rows);
        assert_eq!(text, "NAME   N  WHY\na     10  x\nböse   7\n");
    }

    #[test]
    fn sizes() {
        for (count, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB")] {
            assert_eq!(bytes(count), text);
        }
    }
}

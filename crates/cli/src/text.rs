//! Numbers, times and tables as people read them.

use std::borrow::Cow;

use hindsight_engine::Noun;
use jiff::Timestamp;

/// Bytes, with three digits or so: `12.3 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB"].into_iter().peekable();
    while let Some(unit) = units.next() {
        if value < 999.5 || units.peek().is_none() {
            let digits = usize::from(unit != "B" && value < 99.95);
            return format!("{value:.digits$} {unit}");
        }
        value /= 1024.0;
    }
    String::new()
}

/// A number of bytes as users write it: `20M`, `20MiB`, `20000000`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    text.parse::<bytesize::ByteSize>().map(|size| size.as_u64())
}

/// A number, its thousands apart: `1,200,000`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of things: `1 slice`, `2 slices`.
pub(crate) fn things(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// The same in an engine's word for them.
pub(crate) fn counted(number: u64, (one, many): Noun) -> String {
    things(number, one, many)
}

/// Seconds as people say them, to two units: `3d 18h`, `26m 23s`, `5s`.
pub(crate) fn span(seconds: i64) -> String {
    let left = seconds.unsigned_abs();
    let parts = [(left / 86_400, "d"), (left / 3600 % 24, "h"), (left / 60 % 60, "m"), (left % 60, "s")];
    let first = parts.iter().position(|(number, _)| *number > 0).unwrap_or(3);
    let shown = parts.iter().skip(first).take(2).filter(|(number, _)| *number > 0 || first == 3);
    shown.map(|(number, unit)| format!("{number}{unit}")).collect::<Vec<_>>().join(" ")
}

/// The time between two moments, as [`span`].
pub(crate) fn between(from: Timestamp, to: Timestamp) -> String {
    span(to.duration_since(from).as_secs())
}

/// How long something took, as [`span`].
pub(crate) fn took(from: Timestamp, to: Timestamp) -> String {
    match to.duration_since(from).as_secs() {
        ..1 => "under 1s".to_owned(),
        seconds => span(seconds),
    }
}

/// A text without anything that moves the cursor of a terminal, hides or reverses: names may hold all of
/// it. What is left out is written as JSON writes it, so that JSON stays the same value.
pub(crate) fn harmless(text: &str) -> Cow<'_, str> {
    escape(text, |c| !matches!(c, '\n' | '\t'))
}

/// The same for what must stay one line, such as a name.
pub(crate) fn line(text: &str) -> Cow<'_, str> {
    escape(text, |_| true)
}

fn escape(text: &str, but: impl Fn(char) -> bool) -> Cow<'_, str> {
    let hurts = |c: char| {
        let turns =
            matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{61c}');
        (c.is_control() || turns) && but(c)
    };
    if !text.contains(hurts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' if hurts(c) => shown.push_str("\\n"),
            c if hurts(c) => shown.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// Rows with aligned columns, each line indented by two; `right` are the columns of numbers.
pub(crate) fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let rows: Vec<Vec<_>> = rows.iter().map(|row| row.iter().map(|cell| line(cell)).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |cell: &Cow<'_, str>| cell.chars().count();
    let widths: Vec<_> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(width).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if right.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        text.push_str(format!("  {}", cells.collect::<Vec<_>>().join("  ")).trim_end());
        text.push('\n');
    }
    text
}

/// As [`table`], with a line below the first row.
pub(crate) fn table_with_head(rows: &[Vec<String>], right: &[usize]) -> String {
    let text = table(rows, right);
    let width = text.lines().map(|line| line.chars().count()).max().unwrap_or(2) - 2;
    match text.split_once('\n') {
        Some((head, rest)) => format!("{head}\n  {}\n{rest}", "-".repeat(width)),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_attack_a_terminal() {
        let name = "a\u{1b}[2J\u{9b}31m\u{202e}\r\n\u{7}\t\u{7f}ü/$";
        assert_eq!(line(name), "a\\u001b[2J\\u009b31m\\u202e\\u000d\\n\\u0007\\u0009\\u007fü/$");
        assert_eq!(harmless("a\n\tü\u{1b}"), "a\n\tü\\u001b");
        let json = serde_json::to_string(name).unwrap_or_default();
        assert_eq!(serde_json::from_str::<String>(&harmless(&json)).ok().as_deref(), Some(name));
        assert_eq!(table(&[vec!["x\ny".to_owned(), "z".to_owned()]], &[]), "  x\\ny  z\n");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            [0, 1, 999, 1000, 1024, 150_000, 12 << 20, 5 << 30, u64::MAX].map(bytes),
            ["0 B", "1 B", "999 B", "1.0 KiB", "1.0 KiB", "146 KiB", "12.0 MiB", "5.0 GiB", "16777216 TiB"]
        );
        assert_eq!([0, 12, 123, 1234, 1_234_567].map(count), ["0", "12", "123", "1,234", "1,234,567"]);
        assert_eq!([0, 5, 60, 1583, 3600, 327_062].map(span), ["0s", "5s", "1m", "26m 23s", "1h", "3d 18h"]);
        assert_eq!(things(1, "slice", "slices"), "1 slice");
    }
}

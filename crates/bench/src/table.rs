//! The table that is printed and stored.

use std::fmt::Write as _;

use serde::Serialize;

/// A figure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// How it came about.
    pub note: String,
}

/// Figures in the order in which they were found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// Adds a figure, and tells it at once: what is measured later may fail.
    pub fn add(&mut self, name: impl Into<String>, value: f64, unit: &'static str, note: impl Into<String>) {
        let name = name.into();
        eprintln!("bench: {name}: {} {unit}", figure(value));
        self.rows.push(Row { name, value, unit, note: note.into() });
    }
}

impl std::fmt::Display for Table {
    /// As Markdown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut cells = vec![["measurement", "value", "unit", "note"].map(String::from)];
        for row in &self.rows {
            cells.push([row.name.clone(), figure(row.value), row.unit.to_owned(), row.note.clone()]);
        }
        let width = |at: usize| cells.iter().filter_map(|row| row.get(at)).map(|c| c.chars().count()).max();
        let widths: Vec<usize> = (0..4).map(|at| width(at).unwrap_or(0)).collect();
        for (number, row) in cells.iter().enumerate() {
            let mut line = String::from("|");
            for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
                match at {
                    1 => write!(line, " {cell:>width$} |")?,
                    _ => write!(line, " {cell:<width$} |")?,
                }
            }
            writeln!(f, "{line}")?;
            if number == 0 {
                let dashes = widths.iter().enumerate().map(|(at, width)| match at {
                    1 => format!("{}:", "-".repeat(width + 1)),
                    _ => "-".repeat(width + 2),
                });
                writeln!(f, "|{}|", dashes.collect::<Vec<_>>().join("|"))?;
            }
        }
        Ok(())
    }
}

/// Three digits that count.
fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 || v == 0.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_reads_well() {
        let mut table = Table::default();
        table.add("raw read", 512.34, "MiB/s", "1 thread");
        table.add("ratio", 1.0512, "x", "");
        let expected = "\
| measurement | value | unit  | note     |
|-------------|------:|-------|----------|
| raw read    |   512 | MiB/s | 1 thread |
| ratio       |  1.05 | x     |          |
";
        assert_eq!(table.to_string(), expected);
    }
}

//! What was measured, and how it grows.

use std::collections::BTreeMap;
use std::time::Duration;

/// How a figure may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Growing {
    /// Not at all.
    Not,
    /// As what it stands for.
    Linear,
}

impl Growing {
    /// The largest exponent: twice the rows may take two to this power of the time.
    fn most(self) -> f64 {
        match self {
            Self::Not => 0.1,
            Self::Linear => 1.05,
        }
    }
}

#[derive(Debug)]
struct Figure {
    value: f64,
    unit: &'static str,
    limit: Option<f64>,
    growing: Growing,
}

/// All figures, by name and by rows.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    names: Vec<String>,
    all: BTreeMap<(String, u32), Figure>,
}

impl Figures {
    pub(crate) fn time(
        &mut self,
        name: impl Into<String>,
        rows: u32,
        time: Duration,
        growing: Growing,
        limit: Option<Duration>,
    ) {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        self.add(
            name,
            rows,
            Figure {
                value: ms(time),
                unit: "ms",
                limit: limit.map(ms),
                growing,
            },
        );
    }

    pub(crate) fn memory(&mut self, name: impl Into<String>, rows: u32, mb: f64, limit_mb: f64) {
        let figure = Figure {
            value: mb,
            unit: "MB",
            limit: Some(limit_mb),
            growing: Growing::Linear,
        };
        self.add(name, rows, figure);
    }

    pub(crate) fn bytes(&mut self, name: impl Into<String>, rows: u32, bytes: u64) {
        let figure = Figure {
            value: bytes as f64 / f64::from(1 << 20),
            unit: "MB",
            limit: None,
            growing: Growing::Linear,
        };
        self.add(name, rows, figure);
    }

    fn add(&mut self, name: impl Into<String>, rows: u32, figure: Figure) {
        let name = name.into();
        if !self.names.contains(&name) {
            self.names.push(name.clone());
        }
        self.all.insert((name, rows), figure);
    }

    /// Lines for people: each figure at all sizes, its exponent from the smallest to the largest, and what is missed.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.names.iter().map(|name| self.line(name)).collect()
    }

    fn line(&self, name: &str) -> String {
        let of: Vec<(u32, &Figure)> = self
            .all
            .range((name.to_owned(), 0)..=(name.to_owned(), u32::MAX))
            .map(|((_, rows), figure)| (*rows, figure))
            .collect();
        let mut line = format!("{name:42}");
        for (_, figure) in &of {
            let digits = if figure.value < 1.0 { 4 } else { 1 };
            line += &format!("{:10.digits$} {}", figure.value, figure.unit);
        }
        if let (Some((few, small)), Some((many, large))) = (of.first(), of.last())
            && few < many
        {
            let exponent = exponent((f64::from(*few), small.value), (f64::from(*many), large.value));
            let missed = if exponent > large.growing.most() {
                " MISSED"
            } else {
                ""
            };
            line += &format!(
                "  exponent {exponent:.2}, at most {}{missed}",
                large.growing.most()
            );
        }
        if let Some((_, large)) = of.last()
            && let Some(limit) = large.limit
        {
            let missed = if large.value > limit { " MISSED" } else { "" };
            line += &format!("  limit {limit} {}{missed}", large.unit);
        }
        line
    }
}

/// The power of its size by which something grows from one (size, value) to another.
fn exponent(small: (f64, f64), large: (f64, f64)) -> f64 {
    (large.1 / small.1).ln() / (large.0 / small.0).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_are_those_of_powers() {
        assert!((exponent((10.0, 3.0), (1000.0, 300.0)) - 1.0).abs() < 1e-9);
        assert!((exponent((10.0, 3.0), (1000.0, 30.0)) - 0.5).abs() < 1e-9);
        assert!(exponent((10.0, 3.0), (1000.0, 3.0)).abs() < 1e-9);
    }

    #[test]
    fn what_is_missed_is_named() {
        let mut figures = Figures::default();
        for (rows, ms) in [(10, 5), (1000, 30)] {
            let time = Duration::from_millis(ms);
            figures.time(
                "list",
                rows,
                time,
                Growing::Linear,
                Some(Duration::from_millis(20)),
            );
            figures.time("stat", rows, time, Growing::Not, None);
        }
        let lines = figures.lines();
        assert!(
            lines[0].ends_with("exponent 0.39, at most 1.05  limit 20 ms MISSED"),
            "{}",
            lines[0]
        );
        assert!(
            lines[1].ends_with("exponent 0.39, at most 0.1 MISSED"),
            "{}",
            lines[1]
        );
    }
}

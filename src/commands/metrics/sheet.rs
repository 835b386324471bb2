//! Metrics as they are collected, and their text.

use std::collections::BTreeMap;

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{CounterVec, GaugeVec, Opts, TextEncoder};

use crate::error::Error;

/// What is measured: a name by Prometheus' rules, with a base unit, and what distinguishes the samples.
#[derive(Debug, Clone, Copy)]
pub(super) struct Family {
    /// The name.
    pub(super) name: &'static str,
    /// What it says.
    pub(super) help: &'static str,
    /// The names of the labels.
    pub(super) labels: &'static [&'static str],
}

/// The samples of all families. A family without one does not appear.
#[derive(Default)]
pub(super) struct Sheet {
    families: BTreeMap<&'static str, Samples>,
}

/// The samples of a family. What is called a total only grows.
enum Samples {
    Gauges(GaugeVec),
    Counters(CounterVec),
}

impl Samples {
    fn of(family: &Family) -> prometheus::Result<Self> {
        let options = Opts::new(family.name, family.help);
        Ok(match family.name.ends_with("_total") {
            true => Self::Counters(CounterVec::new(options, family.labels)?),
            false => Self::Gauges(GaugeVec::new(options, family.labels)?),
        })
    }

    fn set(&self, labels: &[&str], value: f64) -> prometheus::Result<()> {
        match self {
            Self::Gauges(gauges) => gauges.get_metric_with_label_values(labels)?.set(value),
            Self::Counters(counters) => {
                let counter = counters.get_metric_with_label_values(labels)?;
                counter.reset();
                counter.inc_by(value);
            }
        }
        Ok(())
    }

    fn collect(&self) -> Vec<MetricFamily> {
        match self {
            Self::Gauges(gauges) => gauges.collect(),
            Self::Counters(counters) => counters.collect(),
        }
    }
}

impl Sheet {
    /// Adds a sample; `labels` are the values of the family's labels.
    ///
    /// # Errors
    /// Never, with families that the tests have seen.
    #[expect(
        clippy::cast_precision_loss,
        reason = "bytes and seconds below 2^53 are exact, larger ones nearly so"
    )]
    pub(super) fn add(&mut self, family: &Family, labels: &[&str], value: u64) -> Result<(), Error> {
        self.add_fraction(family, labels, value as f64)
    }

    /// The same for a value that is not a whole number.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub(super) fn add_fraction(&mut self, family: &Family, labels: &[&str], value: f64) -> Result<(), Error> {
        let samples = match self.families.get(family.name) {
            Some(samples) => samples,
            None => {
                let samples = Samples::of(family).map_err(fault)?;
                self.families.entry(family.name).or_insert(samples)
            }
        };
        samples.set(labels, value).map_err(fault)
    }

    /// The text, family by family in the order of their names.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub(super) fn text(&self) -> Result<String, Error> {
        let mut families: Vec<_> = self.families.values().flat_map(Samples::collect).collect();
        for family in &mut families {
            let by_labels = |metric: &prometheus::proto::Metric| -> Vec<String> {
                metric
                    .get_label()
                    .iter()
                    .map(|label| label.value().to_owned())
                    .collect()
            };
            let mut metrics = family.take_metric();
            metrics.sort_by_key(by_labels);
            family.set_metric(metrics);
        }
        let text = TextEncoder::new().encode_to_string(&families).map_err(fault)?;
        // The library writes infinity as Rust does.
        Ok(text.replace(" inf\n", " +Inf\n"))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is the error of a result")]
fn fault(error: prometheus::Error) -> Error {
    Error::failed(format!("Metrics cannot be written: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: Family = Family {
        name: "test_size_bytes",
        help: "Bytes.",
        labels: &["server", "what"],
    };

    #[test]
    fn samples_are_in_order_and_labels_are_escaped() {
        let mut sheet = Sheet::default();
        sheet.add(&BYTES, &["main", "wal"], 1 << 50).unwrap();
        sheet.add_fraction(&BYTES, &["a\"\\\n", "backups"], 0.5).unwrap();
        assert_eq!(
            sheet.text().unwrap(),
            "# HELP test_size_bytes Bytes.\n# TYPE test_size_bytes gauge\n\
             test_size_bytes{server=\"a\\\"\\\\\\n\",what=\"backups\"} 0.5\n\
             test_size_bytes{server=\"main\",what=\"wal\"} 1125899906842624\n"
        );
        assert_eq!(Sheet::default().text().unwrap(), "");
        let mut sheet = Sheet::default();
        let reads = Family {
            name: "test_reads_total",
            help: "Reads.",
            labels: &[],
        };
        sheet.add(&reads, &[], 3).unwrap();
        assert!(
            sheet.text().unwrap().ends_with("counter\ntest_reads_total 3\n"),
            "{:?}",
            sheet.text()
        );
        let mut sheet = Sheet::default();
        sheet
            .add_fraction(&BYTES, &["main", "all"], f64::INFINITY)
            .unwrap();
        assert!(sheet.text().unwrap().ends_with("} +Inf\n"), "{:?}", sheet.text());
    }
}

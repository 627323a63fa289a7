// SPDX-License-Identifier: Apache-2.0
//! What a metric is: its name, what it says, how its value is had from a row of numbers; and how rows become text.
//!
//! A table of [`Family`] is the one place where a metric is defined. The text that Prometheus reads, the reference in `docs/metrics.md` and the test of the
//! dashboard are all made from the tables, so none of them can name what the others do not know.
//!
//! A family without a row is still told of, by name and kind. A histogram to which nothing was added is left out: a node of a thousand volumes has four thousand
//! of them, fifty lines each, and most have never been used.

use super::MetricInfo;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use std::fmt;
use varve_types::{BUCKETS, Histogram};

/// What all names begin with.
pub(super) const PREFIX: &str = "varve";

/// How a value is had from a row, and of what kind it is.
pub(super) enum Read<R> {
    /// Goes up and down.
    Gauge(fn(&R) -> u64),
    /// The same, in seconds.
    Seconds(fn(&R) -> f64),
    /// Only grows, since the start of the node.
    Counter(fn(&R) -> u64),
    /// How long things took.
    Histogram(fn(&R) -> &Histogram),
}

/// A metric of all things of a kind.
pub(super) struct Family<R> {
    name: &'static str,
    help: &'static str,
    read: Read<R>,
}

/// A gauge.
pub(super) const fn gauge<R>(name: &'static str, help: &'static str, read: fn(&R) -> u64) -> Family<R> {
    Family { name, help, read: Read::Gauge(read) }
}

/// A gauge in seconds.
pub(super) const fn seconds<R>(name: &'static str, help: &'static str, read: fn(&R) -> f64) -> Family<R> {
    Family { name, help, read: Read::Seconds(read) }
}

/// A counter.
pub(super) const fn counter<R>(name: &'static str, help: &'static str, read: fn(&R) -> u64) -> Family<R> {
    Family { name, help, read: Read::Counter(read) }
}

/// A histogram.
pub(super) const fn histogram<R>(name: &'static str, help: &'static str, read: fn(&R) -> &Histogram) -> Family<R> {
    Family { name, help, read: Read::Histogram(read) }
}

/// The numbers of one thing.
pub(super) trait Row: Sized + 'static {
    /// What its labels are called.
    const LABELS: &'static [&'static str];
    /// What is told of it.
    const FAMILIES: &'static [Family<Self>];
    /// The values of its labels, in their order.
    fn labels(&self) -> Vec<&str>;
}

impl<R> Family<R> {
    const fn kind(&self) -> MetricType {
        match self.read {
            Read::Gauge(_) | Read::Seconds(_) => MetricType::Gauge,
            Read::Counter(_) => MetricType::Counter,
            Read::Histogram(_) => MetricType::Histogram,
        }
    }
}

/// What there is to know of the families of a row.
pub(super) fn infos<R: Row>() -> impl Iterator<Item = MetricInfo> {
    R::FAMILIES.iter().map(|family| MetricInfo {
        name: format!("{PREFIX}_{}", family.name),
        kind: match family.read {
            Read::Gauge(_) | Read::Seconds(_) => "gauge",
            Read::Counter(_) => "counter",
            Read::Histogram(_) => "histogram",
        },
        labels: R::LABELS,
        help: family.help,
    })
}

/// Writes all families of some rows.
pub(super) fn write<R: Row>(encoder: &mut DescriptorEncoder<'_>, rows: &[R]) -> fmt::Result {
    for family in R::FAMILIES {
        let mut metric = encoder.encode_descriptor(family.name, family.help, None, family.kind())?;
        for row in rows {
            if matches!(family.read, Read::Histogram(read) if read(row).count() == 0) {
                continue;
            }
            if R::LABELS.is_empty() {
                value(&family.read, row, &mut metric)?;
                continue;
            }
            let labels: Vec<(&str, &str)> = R::LABELS.iter().copied().zip(row.labels()).collect();
            value(&family.read, row, &mut metric.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn value<R>(read: &Read<R>, row: &R, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
    match read {
        Read::Gauge(read) => encoder.encode_gauge(&i64::try_from(read(row)).unwrap_or(i64::MAX)),
        Read::Seconds(read) => encoder.encode_gauge(&read(row)),
        Read::Counter(read) => encoder.encode_counter::<NoLabelSet, _, u64>(&read(row), None),
        Read::Histogram(read) => {
            let took = read(row);
            let bound = |bucket| Histogram::bound_us(bucket).map_or(f64::INFINITY, |micros| micros as f64 / 1e6);
            let buckets: [(f64, u64); BUCKETS] = std::array::from_fn(|bucket| (bound(bucket), took.counts()[bucket]));
            encoder.encode_histogram::<NoLabelSet>(took.sum().as_secs_f64(), took.count(), &buckets, None)
        }
    }
}

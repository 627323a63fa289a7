// SPDX-License-Identifier: Apache-2.0
//! Progress on standard error: how far, how fast, how long still. Nothing is drawn where that is no terminal.

use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;
use varve_server::api::model::{Progress, ProgressUnit};

const BYTES: &str = "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
const ITEMS: &str = "{msg} [{bar:30}] {pos}/{len}";
const OPEN: &str = "{msg} {spinner} {elapsed}";

/// A line of progress, gone when it is dropped.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    what: String,
}

impl Bar {
    /// Progress through a known number of bytes.
    pub fn bytes(what: &str, total: u64) -> Self {
        Self::new(what, BYTES, ProgressBar::new(total))
    }
    /// Progress of which nothing is known but that it goes on.
    pub fn open(what: &str) -> Self {
        Self::new(what, OPEN, ProgressBar::new_spinner())
    }

    fn new(what: &str, template: &str, bar: ProgressBar) -> Self {
        bar.set_style(style(template));
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, what: what.to_owned() }
    }

    /// Some more bytes are done.
    pub fn add(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// A job is so far.
    pub fn follow(&self, progress: &Progress) {
        let message = if progress.message.is_empty() { String::new() } else { format!(" ({})", progress.message) };
        self.bar.set_message(format!("{}{message}", self.what));
        if progress.total > 0 {
            self.bar.set_style(style(if progress.unit == ProgressUnit::Bytes { BYTES } else { ITEMS }));
            self.bar.set_length(progress.total);
            self.bar.set_position(progress.done);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates are constants of this file").progress_chars("=> ")
}

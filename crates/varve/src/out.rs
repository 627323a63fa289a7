// SPDX-License-Identifier: Apache-2.0
//! What is printed: JSON documents, aligned tables, moments and durations as people read them.
//!
//! Tables are for eyes and may change; JSON is for programs and keeps to the documents of the API. Sizes are in binary units, moments in UTC.
//!
//! Everything goes through [`print()`], which takes a reader that went away (`varve … | head`) for a reason to stop and not for an error.

use crate::failure::{Failure, Result};
use serde::Serialize;
use std::io::{ErrorKind, Write};
use varve_types::format_size;

/// Writes text to standard output.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::io("standard output", &error)),
    }
}

/// Writes a line about what went wrong to standard error; where even that fails there is nobody to tell.
pub fn complain(message: &str) {
    let _ = writeln!(std::io::stderr(), "varve: {message}");
}

/// Writes a document, or what people read instead of it.
pub fn show<T: Serialize>(json: bool, document: &T, human: impl FnOnce(&T) -> String) -> Result<()> {
    if !json {
        return print(&human(document));
    }
    let text = serde_json::to_string_pretty(document);
    let text = text.map_err(|error| Failure::failed(format!("the answer can not be written as JSON: {error}")))?;
    print(&(text + "\n"))
}

/// A table whose columns are as wide as they must be.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
}

impl Table {
    /// A table with a line of titles.
    pub fn new(titles: &[&str]) -> Self {
        let mut table = Self::default();
        table.row(titles.iter().map(|title| (*title).to_owned()).collect());
        table
    }
    /// Columns whose cells stand at the right, as numbers do.
    #[must_use]
    pub fn right(mut self, columns: &[usize]) -> Self {
        self.right = columns.to_vec();
        self
    }
    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
    /// Adds a row of a name and what it is.
    pub fn pair(&mut self, name: &str, value: impl Into<String>) {
        self.row(vec![name.to_owned(), value.into()]);
    }
    /// The lines, each behind `indent`.
    pub fn render(&self, indent: &str) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().enumerate().map(|(column, cell)| {
                let pad = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
                if self.right.contains(&column) { pad + cell } else { cell.clone() + &pad }
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            text.push_str(indent);
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A moment, in UTC: `2026-01-02 03:04:05 UTC`.
pub fn moment(ms: u64) -> String {
    let seconds = ms / 1000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", second / 3600, second / 60 % 60, second % 60)
}

/// A moment as people write it, in UTC, in milliseconds since 1970: `2026-01-02 03:04:05`, with a `T` between, seconds left out, or a `Z` or `UTC` behind it.
pub fn parse_moment(text: &str) -> Option<u64> {
    let text = text.trim().trim_end_matches("UTC").trim_end_matches('Z').trim_end();
    let (date, time) = text.split_once(['T', ' '])?;
    let numbers = |text: &str, by: char| text.split(by).map(|part| part.parse().ok()).collect::<Option<Vec<u64>>>();
    let (date, time) = (numbers(date, '-')?, numbers(time, ':')?);
    let (&[year, month, day], &[hour, minute, ref second @ ..]) = (&date[..], &time[..]) else { return None };
    let second = match *second {
        [] => 0,
        [second] => second,
        _ => return None,
    };
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let day_number = day_of(year, month, day);
    // A day that its month does not have comes out as one of the next.
    (civil(day_number) == (year, month, day)).then_some(((day_number * 24 + hour) * 3600 + minute * 60 + second) * 1000)
}

/// The day counted from 1 January 1970, by the same source as [`civil`].
const fn day_of(year: u64, month: u64, day: u64) -> u64 {
    let year = year - (month <= 2) as u64;
    let (era, of_era) = (year / 400, year % 400);
    let month_from_march = (month + 9) % 12;
    let of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let of_era = of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    (era * 146_097 + of_era).saturating_sub(719_468)
}

/// Year, month and day of a day counted from 1 January 1970 (H. Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// A duration: the two largest of days, hours, minutes and seconds.
pub fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) if seconds < 10 => format!("{}.{} s", seconds, ms % 1000 / 100),
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// Bytes a second.
pub fn rate(bytes: u64, ms: u64) -> String {
    let per_second = u128::from(bytes) * 1000 / u128::from(ms.max(1));
    format!("{}/s", format_size(u64::try_from(per_second).unwrap_or(u64::MAX)))
}

/// A count with its noun: `1 volume`, `2 volumes`.
pub fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["NAME", "SIZE"]).right(&[1]);
        table.row(vec!["a".to_owned(), "10 GiB".to_owned()]);
        table.row(vec!["longer".to_owned(), "1 B".to_owned()]);
        assert_eq!(table.render(""), "NAME      SIZE\na       10 GiB\nlonger     1 B\n");
    }

    #[test]
    fn a_moment_is_read_as_it_is_written() {
        for ms in [0, 951_782_400_000, 1_767_323_045_000, 4_107_542_399_000] {
            assert_eq!(parse_moment(&moment(ms)), Some(ms), "{}", moment(ms));
        }
        let at = Some(1_767_323_045_000);
        for text in ["2026-01-02 03:04:05", "2026-01-02T03:04:05Z", " 2026-01-02T03:04:05 ", "2026-01-02 03:04:05 UTC"]
        {
            assert_eq!(parse_moment(text), at, "{text}");
        }
        assert_eq!(parse_moment("2026-01-02 03:04"), Some(1_767_323_040_000));
        for text in [
            "",
            "yesterday",
            "2026-01-02",
            "2026-13-02 03:04",
            "2026-02-30 03:04",
            "2026-01-00 03:04",
            "1969-12-31 23:59",
            "2026-01-02 24:00",
            "2026-01-02 03:04:05:06",
            "2026-01-02 03:-4",
        ] {
            assert_eq!(parse_moment(text), None, "{text}");
        }
    }

    #[test]
    fn moments_and_durations_read_well() {
        assert_eq!(moment(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(moment(951_782_400_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(moment(1_767_323_045_999), "2026-01-02 03:04:05 UTC");
        assert_eq!(moment(4_107_542_399_000), "2100-02-28 23:59:59 UTC");
        for (ms, text) in
            [(0, "0.0 s"), (1_250, "1.2 s"), (59_999, "59 s"), (61_000, "1 min 1 s"), (3_723_000, "1 h 2 min")]
        {
            assert_eq!(duration(ms), text);
        }
        assert_eq!(duration(90_000_000), "1 d 1 h");
        assert_eq!(rate(10 << 20, 2000), "5 MiB/s");
        assert_eq!((count(1, "volume"), count(0, "volume")), ("1 volume".to_owned(), "0 volumes".to_owned()));
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The plot: a panel a row, a bar a target as long as its median, a whisker from the least to the greatest round.
//!
//! Every panel has a scale of its own from zero, for the rows have units of their own. Plain SVG, no script, no font but the
//! reader's.

use super::goals::OURS;
use super::groups::{ROWS, Row};
use super::stats::{Samples, Spread, short};
use super::targets::Kind;

const WIDTH: f64 = 860.0;
const MARGIN: f64 = 20.0;
const LABEL: f64 = 170.0;
/// Where the values stand, to the right of the longest bar.
const VALUE: f64 = 150.0;
const BAR: f64 = 18.0;
const STEP: f64 = 25.0;
const TITLE: f64 = 30.0;
const GAP: f64 = 18.0;

/// Draws every row that was measured.
pub fn draw(samples: &Samples) -> String {
    let mut body = String::new();
    let mut y = MARGIN + 26.0;
    for row in &ROWS {
        let bars: Vec<(&str, Spread)> = Kind::ALL
            .into_iter()
            .filter_map(|kind| Some((kind.name(), samples.spread(row.key, kind.name())?)))
            .collect();
        if !bars.is_empty() {
            y = panel(&mut body, row, &bars, y);
        }
    }
    let height = y + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{MARGIN}\" y=\"{}\" font-size=\"16\" font-weight=\"bold\">Median of the rounds; the line is the least and the \
         greatest</text>\n{body}</svg>\n",
        MARGIN + 8.0
    )
}

/// Draws one panel from `y` downwards and gives where the next begins.
fn panel(body: &mut String, row: &Row, bars: &[(&str, Spread)], y: f64) -> f64 {
    let longest = bars.iter().map(|(_, spread)| spread.max).fold(0.0, f64::max);
    let room = WIDTH - 2.0 * MARGIN - LABEL - VALUE;
    let length = |value: f64| if longest > 0.0 { value / longest * room } else { 0.0 };
    let direction = if row.more_is_better { "more is better" } else { "less is better" };
    add(
        body,
        &format!(
            "<text x=\"{MARGIN}\" y=\"{:.1}\" font-weight=\"bold\">{} <tspan font-weight=\"normal\" fill=\"#666\">({}, {direction})\
             </tspan></text>",
            y + 16.0,
            escape(row.title),
            escape(row.unit)
        ),
    );
    let left = MARGIN + LABEL;
    let mut top = y + TITLE;
    for (target, spread) in bars {
        let middle = top + BAR / 2.0;
        let colour = if *target == OURS { "#2a6fb0" } else { "#b7c0c9" };
        let (from, to) = (left + length(spread.min), left + length(spread.max));
        add(
            body,
            &format!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n\
                 <rect x=\"{left}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\n\
                 <path d=\"M{from:.1} {middle:.1}H{to:.1}M{from:.1} {:.1}v8M{to:.1} {:.1}v8\" stroke=\"#222\" stroke-width=\"1.4\"/>\n\
                 <text x=\"{:.1}\" y=\"{:.1}\">{} <tspan fill=\"#666\" font-size=\"11\">{}–{}</tspan></text>",
                left - 8.0,
                middle + 4.5,
                escape(target),
                length(spread.median),
                middle - 4.0,
                middle - 4.0,
                to + 8.0,
                middle + 4.5,
                short(spread.median),
                short(spread.min),
                short(spread.max)
            ),
        );
        top += STEP;
    }
    top + GAP
}

fn add(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_for_each_target_that_was_measured() {
        let mut samples = Samples::default();
        for (round, value) in [(0, 50.0), (1, 100.0), (2, 75.0)] {
            samples.add("write_qd1", "varve", round, value);
            samples.add("write_qd1", "disk", round, value / 2.0);
        }
        let svg = draw(&samples);
        assert_eq!(svg.matches("<path").count(), 2);
        assert!(svg.contains("4 KiB random write, QD1") && svg.contains("IOPS"));
        // 860 - 2 × 20 - 170 - 150 = 500 for the greatest; the median of ours is three quarters of it.
        assert!(svg.contains("width=\"375.0\""), "{svg}");
        assert_eq!(escape("a<b & c>"), "a&lt;b &amp; c&gt;");
    }

    #[test]
    fn nothing_measured_is_an_empty_picture() {
        assert!(!draw(&Samples::default()).contains("<path"));
    }
}

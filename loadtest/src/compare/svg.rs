//! Plots as inline SVG. Colours are CSS classes of the page, so light and dark both work.

use std::fmt::Write as _;

/// Escapes text for HTML and SVG.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A line of a [`lines`] plot.
pub(super) struct Line {
    /// Its name.
    pub name: String,
    /// The number of its colour.
    pub colour: usize,
    /// One value per step of the x axis, where there is one.
    pub values: Vec<Option<f64>>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 310.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 130.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 36.0;

/// A round number at or above `value`: 1, 2 or 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.max(1e-9).log10().floor());
    [1.0, 2.0, 5.0, 10.0].iter().map(|step| step * power).find(|&round| round >= value * 0.999).unwrap_or(value)
}

/// A number without needless digits.
fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{} M", trim(v / 1e6)),
        v if v >= 1e3 => format!("{} k", trim(v / 1e3)),
        v => trim(v),
    }
}

fn trim(value: f64) -> String {
    let text = if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Lines over evenly spaced steps, from zero up. `unit` labels the y axis.
pub(super) fn lines(steps: &[String], unit: &str, lines: &[Line]) -> String {
    let top = lines.iter().flat_map(|line| line.values.iter().flatten()).fold(0.0f64, |top, &value| top.max(value));
    let top = round_up(top);
    let x = |index: usize| LEFT + (WIDTH - LEFT - RIGHT) * index as f64 / (steps.len().max(2) - 1) as f64;
    let y = |value: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top;
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    for quarter in 0..=4 {
        let value = top * f64::from(quarter) / 4.0;
        let level = y(value);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{level:.1}\" y2=\"{level:.1}\"/>\
             <text class=\"tick end\" x=\"{}\" y=\"{:.1}\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            level + 4.0,
            short(value)
        );
    }
    let _ = write!(svg, "<text class=\"tick\" x=\"4\" y=\"13\">{}</text>", escape(unit));
    for (index, step) in steps.iter().enumerate() {
        let _ = write!(
            svg,
            "<text class=\"tick mid\" x=\"{:.1}\" y=\"{}\">{}</text>",
            x(index),
            HEIGHT - 14.0,
            escape(step)
        );
    }
    let mut labels: Vec<(f64, &Line)> = Vec::new();
    for line in lines {
        let points: Vec<(f64, f64, f64)> = line
            .values
            .iter()
            .enumerate()
            .filter_map(|(index, value)| value.map(|value| (x(index), y(value), value)))
            .collect();
        let path: Vec<String> = points.iter().map(|(x, y, _)| format!("{x:.1},{y:.1}")).collect();
        let _ = write!(svg, "<polyline class=\"line c{}\" points=\"{}\"/>", line.colour, path.join(" "));
        for (x, y, value) in &points {
            let _ = write!(
                svg,
                "<circle class=\"dot c{}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"><title>{}: {} {}</title></circle>",
                line.colour,
                escape(&line.name),
                short(*value),
                escape(unit)
            );
        }
        labels.extend(points.last().map(|&(_, y, _)| (y, line)));
    }
    svg.push_str(&end_labels(labels));
    svg.push_str("</svg>");
    svg
}

/// Names at the right ends of the lines, moved apart where they would overlap, none below the axis.
fn end_labels(mut labels: Vec<(f64, &Line)>) -> String {
    const APART: f64 = 15.0;
    labels.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut free = TOP;
    for (y, _) in &mut labels {
        *y = y.max(free);
        free = *y + APART;
    }
    let mut ceiling = HEIGHT - BOTTOM;
    for (y, _) in labels.iter_mut().rev() {
        *y = y.min(ceiling);
        ceiling = *y - APART;
    }
    let mut svg = String::new();
    for (y, line) in labels {
        let _ = write!(
            svg,
            "<text class=\"name c{}\" x=\"{}\" y=\"{:.1}\">{}</text>",
            line.colour,
            WIDTH - RIGHT + 10.0,
            y + 4.0,
            escape(&line.name)
        );
    }
    svg
}

/// A bar with its spread.
pub(super) struct Bar {
    /// Its name.
    pub name: String,
    /// The number of its colour.
    pub colour: usize,
    /// The median, the smallest and the largest.
    pub value: (f64, f64, f64),
    /// The value in words.
    pub label: String,
}

/// Horizontal bars from zero, with whiskers from the smallest to the largest run.
pub(super) fn bars(bars: &[Bar]) -> String {
    const ROW: f64 = 26.0;
    const NAMES: f64 = 110.0;
    const LABELS: f64 = 210.0;
    let top = bars.iter().fold(1e-9f64, |top, bar| top.max(bar.value.0).max(bar.value.2.min(bar.value.0 * 1.5)));
    let height = bars.len() as f64 * ROW + 4.0;
    let width_of = |value: f64| (WIDTH - NAMES - LABELS) * (value / top).clamp(0.0, 1.0);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">");
    for (index, bar) in bars.iter().enumerate() {
        let y = index as f64 * ROW + 4.0;
        let (median, min, max) = bar.value;
        let middle = y + 9.0;
        let _ = write!(
            svg,
            "<text class=\"name end c{c}\" x=\"{}\" y=\"{:.1}\">{}</text>\
             <rect class=\"bar c{c}\" x=\"{NAMES}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"18\" rx=\"3\"/>\
             <line class=\"whisker\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>\
             <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            NAMES - 8.0,
            y + 13.0,
            escape(&bar.name),
            width_of(median).max(1.0),
            NAMES + width_of(min),
            NAMES + width_of(max),
            NAMES + width_of(median.max(max)) + 8.0,
            y + 13.0,
            escape(&bar.label),
            c = bar.colour
        );
    }
    svg.push_str("</svg>");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        assert_eq!([round_up(0.7), round_up(1.0), round_up(430_000.0)], [1.0, 1.0, 500_000.0]);
        assert_eq!([short(0.25), short(1500.0), short(2_000_000.0)], ["0.25", "1.5 k", "2 M"]);
    }

    #[test]
    fn names_cannot_break_out_of_the_page() {
        let line = Line { name: "<script>".into(), colour: 0, values: vec![Some(1.0), None, Some(2.0)] };
        let svg = lines(&["1".into(), "2".into(), "3".into()], "x & y", &[line]);
        assert!(!svg.contains("<script>") && svg.contains("&lt;script&gt;") && svg.contains("x &amp; y"));
    }
}

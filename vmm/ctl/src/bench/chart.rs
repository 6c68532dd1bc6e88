//! A plot of figures as SVG: a group of bars a row, one bar a VMM.
//!
//! Colours are in a style sheet that a page and a file of its own share: light, dark where the reader prefers that, and
//! light on paper. Each shape has the colour for paper as an attribute, too, for programs without style sheets. In grey
//! the first bar of a group is the darkest, and the legend has the order of the bars.

use std::fmt::Write as _;

use super::aims::Marks;
use super::figure::{Better, Figure};
use super::number::{short, ticks};
use super::table::{Plot, Row};

/// Colours of text, of what is less important, of lines, of the aim, and of the bars, on paper and in the dark.
const COLOURS: [(&str, &str, &str); 11] = [
    ("back", "#ffffff", "#16191d"),
    ("text", "#1b1f24", "#e6e9ed"),
    ("less", "#5a626c", "#9aa4b0"),
    ("line", "#d4d9df", "#343b44"),
    ("aim", "#b3261e", "#ff8a80"),
    ("vmm0", "#12507b", "#5aa9e6"),
    ("vmm1", "#e0a458", "#f2b872"),
    ("vmm2", "#8f98a3", "#a7b0bb"),
    ("vmm3", "#5c8a4c", "#86c06f"),
    ("vmm4", "#c7b3d6", "#c9a9e2"),
    ("vmm5", "#7a3b46", "#d98695"),
];
const BARS: usize = 6;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 270.0;
/// Of the place for the number behind the longest bar.
const RIGHT: f64 = 100.0;
const TOP: f64 = 62.0;
const BAR: f64 = 15.0;
const GAP: f64 = 12.0;
const LINE: f64 = 16.0;
/// Letters of a label's line, and of the reason for a dash.
const LETTERS: usize = 38;
const REASON: usize = 64;

/// The style sheet of all plots.
pub(super) fn style() -> String {
    let rules = |dark: bool| {
        COLOURS.iter().fold(String::new(), |mut text, (class, light, night)| {
            let colour = if dark { night } else { light };
            let property = if *class == "line" { "stroke" } else { "fill" };
            let _ = write!(text, ".{class}{{{property}:{colour}}}");
            text
        })
    };
    format!("{}@media screen and (prefers-color-scheme:dark){{{}}}", rules(false), rules(true))
}

fn paper(class: &str) -> &'static str {
    let found = COLOURS.iter().find(|(name, ..)| *name == class);
    found.map_or("#000000", |(_, light, _)| light)
}

/// Text between tags and in attributes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // What no XML may have (W3C XML 1.0, 2.2).
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            letter if letter.is_control() => escaped.push('\u{fffd}'),
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// Where values are, from left to right.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) =
            values.fold((0f64, 0f64), |(low, high), value| (low.min(value), high.max(value)));
        // All are 0, or there is none.
        if low == high { Self { low, high: low + 1.0 } } else { Self { low, high } }
    }

    fn at(&self, value: f64) -> f64 {
        LEFT + (value - self.low) / (self.high - self.low) * (WIDTH - LEFT - RIGHT)
    }
}

/// SVG that is being written.
struct Drawing(String);

impl Drawing {
    fn text(&mut self, x: f64, y: f64, class: &str, extra: &str, text: &str) {
        let fill = paper(class);
        let text = escape(text);
        let _ = writeln!(
            self.0,
            r#"<text x="{x:.1}" y="{y:.1}" class="{class}" fill="{fill}"{extra}>{text}</text>"#
        );
    }

    /// A box that says what it is to who points at it.
    fn bar(&mut self, [x, y, width, height]: [f64; 4], class: &str, says: &str) {
        let fill = paper(class);
        let says = escape(says);
        let _ = writeln!(
            self.0,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" class="{class}" fill="{fill}"><title>{says}</title></rect>"#
        );
    }

    fn upright(&mut self, x: f64, from: f64, to: f64) {
        let stroke = paper("line");
        let _ = writeln!(
            self.0,
            r#"<line x1="{x:.1}" y1="{from:.1}" x2="{x:.1}" y2="{to:.1}" class="line" stroke="{stroke}"/>"#
        );
    }
}

/// A label in lines.
fn wrap(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.len() - 1;
        let length = lines[last].chars().count();
        if length > 0 && length + 1 + word.chars().count() > LETTERS {
            lines.push(cut(word, LETTERS));
        } else {
            let space = if length > 0 { " " } else { "" };
            lines[last] = format!("{}{space}{}", lines[last], cut(word, LETTERS));
        }
    }
    lines
}

fn cut(text: &str, letters: usize) -> String {
    match text.chars().count() > letters {
        true => text.chars().take(letters - 1).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

fn height(row: &Row<'_>, lines: &[String]) -> f64 {
    let bars = row.cells.len().max(1);
    (bars as f64 * BAR).max(lines.len() as f64 * LINE) + GAP
}

/// A plot. `is_alone`: with the style sheet, as a file of its own.
pub(super) fn draw(plot: &Plot<'_>, marks: &Marks, is_alone: bool) -> String {
    let values = plot.figures().flat_map(|figure| [figure.value, marks.get(figure)]);
    let scale = Scale::of(values.flatten());
    let labels: Vec<Vec<String>> = plot.rows.iter().map(|row| wrap(&row.label)).collect();
    let rows = plot.rows.iter().zip(&labels);
    let bottom = TOP + rows.clone().map(|(row, lines)| height(row, lines)).sum::<f64>();
    let mut drawing = Drawing(String::new());
    head(
        &mut drawing,
        plot,
        bottom + 26.0,
        is_alone,
        plot.figures().any(|figure| marks.get(figure).is_some()),
    );
    for value in ticks(scale.low, scale.high) {
        let x = scale.at(value);
        drawing.upright(x, TOP - 4.0, bottom - 4.0);
        drawing.text(
            x,
            bottom + 12.0,
            "less",
            r#" font-size="11" text-anchor="middle""#,
            &short(value),
        );
    }
    let mut y = TOP;
    for (row, lines) in rows {
        for (at, line) in (0..).map(f64::from).zip(lines) {
            drawing.text(LEFT - 10.0, y + 12.0 + at * LINE, "text", r#" text-anchor="end""#, line);
        }
        for ((column, figure), at) in row.cells.iter().zip(0..) {
            let y = y + f64::from(at) * BAR;
            bar(&mut drawing, &scale, y, figure, *column, marks.get(figure));
        }
        y += height(row, lines);
    }
    drawing.0.push_str("</svg>\n");
    drawing.0
}

fn head(drawing: &mut Drawing, plot: &Plot<'_>, height: f64, is_alone: bool, has_aims: bool) {
    let name = escape(plot.name);
    let _ = writeln!(
        drawing.0,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0}" width="{WIDTH}" height="{height:.0}" role="img" aria-label="{name}" font-family="system-ui, 'DejaVu Sans', sans-serif" font-size="13">"#
    );
    if is_alone {
        let _ = writeln!(drawing.0, "<style>{}</style>", style());
    }
    drawing.bar([0.0, 0.0, WIDTH, height], "back", plot.name);
    drawing.text(10.0, 20.0, "text", r#" font-size="15" font-weight="600""#, plot.name);
    let better = match plot.figures().next().map(|figure| figure.better) {
        Some(Better::More) => "more is better",
        _ => "less is better",
    };
    let what = format!("{}; {better}; {}", plot.unit, plot.method.words());
    drawing.text(WIDTH - 10.0, 20.0, "less", r#" text-anchor="end""#, &what);
    let mut x = 10.0;
    for (at, column) in plot.columns.iter().enumerate() {
        drawing.bar([x, 32.0, 11.0, 11.0], &colour(at), column);
        drawing.text(x + 16.0, 42.0, "text", "", &cut(column, LETTERS));
        x += 38.0 + 7.8 * column.chars().count().min(LETTERS) as f64;
    }
    if has_aims {
        drawing.bar([x + 4.0, 31.0, 2.5, 13.0], "aim", "aim");
        drawing.text(x + 12.0, 42.0, "text", "", "aim");
    }
}

fn colour(column: usize) -> String {
    format!("vmm{}", column % BARS)
}

fn bar(
    drawing: &mut Drawing,
    scale: &Scale,
    y: f64,
    figure: &Figure,
    column: usize,
    mark: Option<f64>,
) {
    let label = figure.vmm.label();
    let zero = scale.at(0.0);
    let Some(value) = figure.value else {
        let reason = figure.cannot.as_deref().unwrap_or_default();
        drawing.text(
            zero + 4.0,
            y + 11.5,
            "less",
            r#" font-size="12""#,
            &cut(&format!("– {label}: {reason}"), REASON),
        );
        return;
    };
    let end = scale.at(value);
    let says = format!("{label}: {value} {}", figure.unit);
    drawing.bar(
        [end.min(zero), y + 1.0, (end - zero).abs().max(0.5), BAR - 2.0],
        &colour(column),
        &says,
    );
    if let Some(mark) = mark {
        let says = format!("aim: {} {}", short(mark), figure.unit);
        drawing.bar([scale.at(mark) - 1.2, y - 1.0, 2.5, BAR + 2.0], "aim", &says);
    }
    // Behind the bar, and behind the mark where that would be in the number.
    let marked = mark.map(|mark| scale.at(mark)).filter(|at| (end - 2.0..end + 60.0).contains(at));
    let x = marked.unwrap_or(end).max(end).max(zero) + 5.0;
    drawing.text(x, y + 11.5, "text", r#" font-size="12""#, &short(value));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use roxmltree::{Document, Node};

    use super::super::aims::verdicts;
    use super::super::figure::{Aim, Bound};
    use super::super::samples::{dash, figure};
    use super::super::table::sections;
    use super::*;

    fn drawn(figures: &[Figure]) -> String {
        let sections = sections(figures);
        draw(&sections[0].plots[0], &Marks::of(&verdicts(figures)), true)
    }

    /// Of each bar that a class has: its left and right end.
    fn bars(document: &Document<'_>, class: &str) -> Vec<(f64, f64)> {
        let number =
            |node: &Node<'_, '_>, name| node.attribute(name).unwrap().parse::<f64>().unwrap();
        document
            .descendants()
            .filter(|node| node.has_tag_name("rect") && node.attribute("class") == Some(class))
            .map(|node| (number(&node, "x"), number(&node, "x") + number(&node, "width")))
            .filter(|(left, _)| *left >= LEFT)
            .collect()
    }

    fn close(one: f64, other: f64) -> bool {
        (one - other).abs() < 0.2
    }

    #[test]
    fn bars_are_as_long_as_their_values() {
        let svg = drawn(&[figure("tessera", 10.0), figure("QEMU", 40.0)]);
        let document = Document::parse(&svg).unwrap();

        let ([own], [peer]) = (
            bars(&document, "vmm0")[..].try_into().unwrap(),
            bars(&document, "vmm1")[..].try_into().unwrap(),
        );
        let (own, peer): ((f64, f64), (f64, f64)) = (own, peer);
        assert!(close(own.0, LEFT) && close(peer.0, LEFT), "{own:?} {peer:?}");
        assert!(close(peer.1, WIDTH - RIGHT), "{peer:?}");
        assert!(close((own.1 - own.0) * 4.0, peer.1 - peer.0), "{own:?} {peer:?}");
    }

    #[test]
    fn values_below_zero_are_left_of_it() {
        let svg = drawn(&[figure("tessera", -10.0), figure("QEMU", 30.0)]);
        let document = Document::parse(&svg).unwrap();

        let (own, peer) = (bars(&document, "vmm0")[0], bars(&document, "vmm1")[0]);
        assert!(close(own.0, LEFT) && close(own.1, peer.0), "{own:?} {peer:?}");
    }

    #[test]
    fn an_aim_is_marked_where_it_is() {
        let aim = Some(Aim { bound: Bound::AtMost, value: 30.0, of: None });
        let svg = drawn(&[Figure { aim, ..figure("tessera", 20.0) }, figure("QEMU", 40.0)]);
        let document = Document::parse(&svg).unwrap();

        let (left, right) = bars(&document, "aim")[0];
        let expected = LEFT + 0.75 * (WIDTH - LEFT - RIGHT);
        assert!(left < expected && expected < right, "{left} {right} {expected}");
    }

    #[test]
    fn what_a_vmm_cannot_do_is_a_dash_and_no_bar() {
        let svg = drawn(&[figure("tessera", 20.0), dash("QEMU", "it has none")]);
        let document = Document::parse(&svg).unwrap();

        assert!(bars(&document, "vmm1").is_empty());
        assert!(svg.contains("– QEMU: it has none"), "{svg}");
    }

    #[test]
    fn long_labels_are_in_lines_and_end() {
        let lines = wrap(&format!("cold boot of a kernel that is compressed, {}", "x".repeat(100)));

        assert_eq!(lines[0], "cold boot of a kernel that is");
        assert!(lines.iter().all(|line| line.chars().count() <= LETTERS), "{lines:?}");
    }

    proptest! {
        #[test]
        fn any_texts_and_values_are_well_formed(
            name in "\\PC{1,60}", case in "\\PC{0,60}", vmm in "\\PC{1,20}",
            value in -9e15f64..9e15, other in -9e15f64..9e15,
        ) {
            let mut one = figure(&vmm, value);
            one.name.clone_from(&name);
            one.case = case;
            let mut two = figure("QEMU", other);
            two.name = name;
            prop_assert!(Document::parse(&drawn(&[one, two])).is_ok());
        }
    }
}

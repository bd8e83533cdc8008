//! Writing SVG: a handful of shapes, with classes that the page's style sheet colours.

use std::fmt::Write;

/// A drawing under construction, in its own units; the page scales it to its column.
pub(super) struct Svg {
    width: f64,
    body: String,
}

/// Which end of a text stands at its position.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    /// The text begins there.
    Start,
    /// The text is centred on it.
    Middle,
    /// The text ends there.
    End,
}

impl Svg {
    /// An empty drawing so wide.
    pub(super) fn new(width: f64) -> Self {
        Self { width, body: String::new() }
    }

    /// A straight line.
    pub(super) fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let _ = writeln!(
            self.body,
            r#"<line class="{class}" x1="{}" y1="{}" x2="{}" y2="{}"/>"#,
            number(from.0),
            number(from.1),
            number(to.0),
            number(to.1)
        );
    }

    /// A filled polygon.
    pub(super) fn polygon(&mut self, class: &str, points: &[(f64, f64)]) {
        let points: Vec<String> =
            points.iter().map(|(x, y)| format!("{},{}", number(*x), number(*y))).collect();
        let _ = writeln!(self.body, r#"<polygon class="{class}" points="{}"/>"#, points.join(" "));
    }

    /// A bar from `x` to the right, with a text that shows while the pointer rests on it.
    pub(super) fn bar(&mut self, class: &str, corner: (f64, f64), size: (f64, f64), title: &str) {
        let _ = writeln!(
            self.body,
            r#"<rect class="{class}" x="{}" y="{}" width="{}" height="{}" rx="2"><title>{}</title></rect>"#,
            number(corner.0),
            number(corner.1),
            number(size.0.max(0.0)),
            number(size.1),
            escape(title)
        );
    }

    /// A disc with a text that shows while the pointer rests on it.
    pub(super) fn disc(&mut self, class: &str, center: (f64, f64), radius: f64, title: &str) {
        let _ = writeln!(
            self.body,
            r#"<circle class="{class}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>"#,
            number(center.0),
            number(center.1),
            number(radius),
            escape(title)
        );
    }

    /// A square of the same area as the disc of this radius.
    pub(super) fn square(&mut self, class: &str, center: (f64, f64), radius: f64, title: &str) {
        let half = radius * 0.886;
        self.bar(class, (center.0 - half, center.1 - half), (2.0 * half, 2.0 * half), title);
    }

    /// A line of text.
    pub(super) fn text(&mut self, class: &str, at: (f64, f64), anchor: Anchor, text: &str) {
        self.turned_text(class, at, anchor, 0.0, text);
    }

    /// A line of text, turned around its position by an angle in degrees.
    pub(super) fn turned_text(
        &mut self,
        class: &str,
        at: (f64, f64),
        anchor: Anchor,
        degrees: f64,
        text: &str,
    ) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let (x, y) = (number(at.0), number(at.1));
        let turn = if degrees == 0.0 {
            String::new()
        } else {
            format!(r#" transform="rotate({} {x} {y})""#, number(degrees))
        };
        let _ = writeln!(
            self.body,
            r#"<text class="{class}" x="{x}" y="{y}" text-anchor="{anchor}"{turn}>{}</text>"#,
            escape(text)
        );
    }

    /// The finished drawing, so high, with a description for those who cannot see it.
    pub(super) fn finish(self, height: f64, description: &str) -> String {
        let Self { width, body } = self;
        format!(
            "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n{body}</svg>\n",
            number(width),
            number(height),
            escape(description)
        )
    }
}

/// Text between tags or in an attribute.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A coordinate with one decimal, and none where it is zero.
fn number(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::{Anchor, Svg};

    #[test]
    fn shapes_are_written_with_classes_and_escaped_texts() {
        let mut svg = Svg::new(100.0);
        svg.line("grid", (0.0, 1.04), (10.0, 2.25));
        svg.bar("bar c0", (1.0, 2.0), (-3.0, 4.0), "a < b");
        svg.turned_text("axis", (5.0, 6.0), Anchor::Middle, -90.0, "R&D \"x\"");
        insta::assert_snapshot!(svg.finish(50.0, "a drawing"), @r#"
        <svg viewBox="0 0 100 50" role="img" aria-label="a drawing">
        <line class="grid" x1="0" y1="1" x2="10" y2="2.2"/>
        <rect class="bar c0" x="1" y="2" width="0" height="4" rx="2"><title>a &lt; b</title></rect>
        <text class="axis" x="5" y="6" text-anchor="middle" transform="rotate(-90 5 6)">R&amp;D &quot;x&quot;</text>
        </svg>
        "#);
    }
}

//! Figures in Prometheus's text format.
//!
//! # References
//! Prometheus, "Exposition formats", text-based format, version 0.0.4

use std::fmt::Write;

use serde_json::Value;

/// The `Content-Type` of this format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// What begins each name.
const PREFIX: &str = "tessera";

/// How many objects may be in one another, so that no document uses up the stack.
const MAX_DEPTH: usize = 8;

/// Names and values of labels.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// Figures, a line each. Those of one name are to be added one after the other.
#[derive(Debug, Default)]
pub struct Text {
    text: String,
    last: String,
}

impl Text {
    /// Adds a figure. Its name is `tessera`, then what is given; one that ends in `_total` is a counter, any
    /// other a gauge. Letters that no name has become underscores.
    pub fn add(&mut self, name: &str, labels: Labels<'_>, value: impl std::fmt::Display) {
        let name = identifier(&format!("{PREFIX}_{name}"));
        // Writing to a String cannot fail.
        if name != self.last {
            let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
            let _ = writeln!(self.text, "# TYPE {name} {kind}");
        }
        self.text.push_str(&name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let before = if at == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{before}{}=\"{}\"", identifier(label), escaped(text));
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
        self.last = name;
    }

    /// Adds all numbers of an object and of the objects in it, each under the path to it. Texts in an object
    /// are labels of the numbers in it.
    pub fn add_all(&mut self, figures: &Value, labels: Labels<'_>) {
        self.add_object("", figures, labels, MAX_DEPTH);
    }

    fn add_object(&mut self, path: &str, figures: &Value, labels: Labels<'_>, depth: usize) {
        let (Some(object), true) = (figures.as_object(), depth > 0) else { return };
        let own = object.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)));
        let labels: Vec<_> = labels.iter().copied().chain(own).collect();
        for (name, value) in object {
            let path = if path.is_empty() { name.clone() } else { format!("{path}_{name}") };
            match value {
                Value::Number(number) => self.add(&path, &labels, number),
                Value::Bool(flag) => self.add(&path, &labels, u8::from(*flag)),
                _ => self.add_object(&path, value, &labels, depth - 1),
            }
        }
    }

    /// The whole text.
    pub fn finish(self) -> String {
        self.text
    }
}

fn identifier(name: &str) -> String {
    let letter = |letter: char| match letter {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '_' => letter,
        _ => '_',
    };
    name.chars().map(letter).collect()
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figures_stand_under_their_paths_with_the_labels_of_their_objects() {
        let figures = json!({
            "exits_total": 7,
            "tag_storage": { "supply": "node:1", "reserved_bytes": 65536, "attached": true },
        });

        let mut text = Text::default();
        text.add_all(&figures, &[("vm", "one")]);

        assert_eq!(
            text.finish(),
            "# TYPE tessera_exits_total counter\n\
             tessera_exits_total{vm=\"one\"} 7\n\
             # TYPE tessera_tag_storage_attached gauge\n\
             tessera_tag_storage_attached{vm=\"one\",supply=\"node:1\"} 1\n\
             # TYPE tessera_tag_storage_reserved_bytes gauge\n\
             tessera_tag_storage_reserved_bytes{vm=\"one\",supply=\"node:1\"} 65536\n"
        );
    }

    #[test]
    fn nothing_in_a_label_ends_its_line() {
        let mut text = Text::default();
        text.add("a-b", &[("name", "x\"\n\\")], 1);

        assert_eq!(
            text.finish(),
            "# TYPE tessera_a_b gauge\ntessera_a_b{name=\"x\\\"\\n\\\\\"} 1\n"
        );
    }

    #[test]
    fn objects_without_end_are_cut() {
        let mut figures = json!({ "deep": 1 });
        for _ in 0..100 {
            figures = json!({ "in": figures });
        }

        let mut text = Text::default();
        text.add_all(&figures, &[]);

        assert_eq!(text.finish(), "");
    }
}

//! Control data of Debian packages (deb822(5)): the form of a package index.

/// One paragraph: fields in their order, continuation lines folded in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stanza(Vec<(String, String)>);

impl Stanza {
    /// The value of a field; names are compared without case, as deb822(5) says.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The first alternative of each dependency, without versions and architectures.
    pub(crate) fn depends(&self) -> impl Iterator<Item = &str> {
        self.field("Depends").unwrap_or_default().split(',').filter_map(|dependency| {
            let first = dependency.split('|').next()?;
            let name = first.split([' ', '(', '[', ':', '\n']).find(|word| !word.is_empty())?;
            Some(name)
        })
    }
}

/// All paragraphs of a text. Lines that are no field are skipped: an index may gain forms we do not know.
pub(crate) fn parse(text: &str) -> Vec<Stanza> {
    let mut stanzas = Vec::new();
    let mut current = Stanza::default();
    for line in text.lines() {
        if line.trim().is_empty() {
            if !current.0.is_empty() {
                stanzas.push(std::mem::take(&mut current));
            }
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = current.0.last_mut() {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':')
            && !line.starts_with('#')
        {
            current.0.push((name.to_owned(), value.trim().to_owned()));
        }
    }
    if !current.0.is_empty() {
        stanzas.push(current);
    }
    stanzas
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const INDEX: &str = "Package: linux-image-cloud-arm64\nVersion: 6.12.107-1\nDepends: linux-image-6.12.107+deb13-cloud-arm64 (= 6.12.107-1), a:any | b, c [arm64]\n\n\
        Package: busybox-static\nDescription: shell\n with many\n .\n utilities\nsha256: 00ff\n";

    #[test]
    fn paragraphs_and_fields_are_told_apart() {
        let stanzas = parse(INDEX);

        assert_eq!(stanzas.len(), 2);
        assert_eq!(stanzas[0].field("version"), Some("6.12.107-1"));
        assert_eq!(stanzas[1].field("SHA256"), Some("00ff"));
        assert_eq!(stanzas[1].field("Version"), None);
    }

    #[test]
    fn continuation_lines_belong_to_their_field() {
        assert_eq!(parse(INDEX)[1].field("Description"), Some("shell\nwith many\n.\nutilities"));
    }

    #[test]
    fn dependencies_lose_versions_alternatives_and_architectures() {
        let stanzas = parse(INDEX);
        let names: Vec<_> = stanzas[0].depends().collect();

        assert_eq!(names, ["linux-image-6.12.107+deb13-cloud-arm64", "a", "c"]);
    }

    #[test]
    fn empty_and_malformed_texts_give_no_fields() {
        assert!(parse("").is_empty());
        assert!(parse("\n\n  \n").is_empty());
        assert!(parse(" continuation of nothing\nno field\n").is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in ".{0,200}(\n.{0,50}){0,8}") {
            for stanza in parse(&text) {
                let _ = stanza.depends().count();
            }
        }
    }
}

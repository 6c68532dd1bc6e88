//! The tables of `resources/seccomp/`: which thread may make which system call.
//!
//! A line is one of
//!
//! - `const NAME VALUE`
//! - `group NAME` or `filter NAME`, to which the lines after it belong
//! - `use GROUP`
//! - `CALL`, or `CALL CONDITION and CONDITION ...`, where a condition is `argN == VALUE` or `argN & MASK == VALUE`
//!
//! `#` begins a comment. Several lines of one call are alternatives. A condition looks at the lower 32 bits of an
//! argument, which are all that the kernel has of an `int`.

use std::collections::{BTreeMap, BTreeSet};

/// What one argument is to be.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Condition {
    /// Which argument, from 0.
    pub(crate) argument: u8,
    /// Which of its bits are compared.
    pub(crate) mask: u32,
    pub(crate) value: u32,
}

/// Conditions that are to hold together.
pub(crate) type Alternative = Vec<Condition>;

/// The calls of a filter by number. A call without alternatives is allowed whatever its arguments are.
pub(crate) type Calls = BTreeMap<u32, BTreeSet<Alternative>>;

/// The filters of a table by name.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) filters: BTreeMap<String, Calls>,
}

/// Numbers of system calls by name.
pub(crate) fn numbers(text: &str) -> Result<BTreeMap<&str, u32>, String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (number, name) = line.split_once(' ').ok_or_else(|| format!("no call: {line}"))?;
            Ok((name, number.parse().map_err(|_| format!("no number: {line}"))?))
        })
        .collect()
}

impl Table {
    /// Reads a table whose calls have these numbers.
    pub(crate) fn parse(text: &str, numbers: &BTreeMap<&str, u32>) -> Result<Self, String> {
        let mut reader = Reader { numbers, constants: BTreeMap::new(), sections: BTreeMap::new() };
        let mut section = None;
        for (at, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            reader.line(&words, &mut section).map_err(|why| format!("line {}: {why}", at + 1))?;
        }
        reader.filters()
    }
}

/// A group or a filter as it is written.
#[derive(Debug, Default)]
struct Section {
    is_filter: bool,
    uses: Vec<String>,
    /// Each call with its conditions.
    calls: Vec<(u32, Alternative)>,
}

struct Reader<'a> {
    numbers: &'a BTreeMap<&'a str, u32>,
    constants: BTreeMap<String, u32>,
    sections: BTreeMap<String, Section>,
}

impl Reader<'_> {
    fn line(&mut self, words: &[&str], section: &mut Option<String>) -> Result<(), String> {
        match words {
            [] => Ok(()),
            ["const", name, value] => {
                let value = self.value(value)?;
                match self.constants.insert((*name).to_owned(), value) {
                    None => Ok(()),
                    Some(_) => Err(format!("{name} twice")),
                }
            }
            [kind @ ("group" | "filter"), name] => {
                *section = Some((*name).to_owned());
                let new = Section { is_filter: *kind == "filter", ..Section::default() };
                match self.sections.insert((*name).to_owned(), new) {
                    None => Ok(()),
                    Some(_) => Err(format!("{name} twice")),
                }
            }
            [first, rest @ ..] => {
                let call = match (*first, rest) {
                    ("use", [_]) => None,
                    (name, conditions) => {
                        let number = self.numbers.get(name);
                        let number = number.ok_or_else(|| format!("no system call {name}"))?;
                        Some((*number, self.conditions(conditions)?))
                    }
                };
                let name = section.as_ref().ok_or("before the first section")?;
                let section = self.sections.get_mut(name).ok_or("no section")?;
                match call {
                    Some(call) => section.calls.push(call),
                    None => section.uses.extend(rest.iter().map(|name| (*name).to_owned())),
                }
                Ok(())
            }
        }
    }

    fn conditions(&self, words: &[&str]) -> Result<Alternative, String> {
        let parts = words.split(|word| *word == "and").filter(|part| !part.is_empty());
        let mut conditions =
            parts.map(|part| self.condition(part)).collect::<Result<Vec<_>, _>>()?;
        conditions.sort();
        Ok(conditions)
    }

    fn condition(&self, words: &[&str]) -> Result<Condition, String> {
        let (argument, mask, value) = match words {
            [argument, "==", value] => (argument, u32::MAX, value),
            [argument, "&", mask, "==", value] => (argument, self.value(mask)?, value),
            other => return Err(format!("no condition: {}", other.join(" "))),
        };
        let number = argument.strip_prefix("arg").and_then(|number| number.parse().ok());
        match number {
            Some(argument @ 0..=5) => Ok(Condition { argument, mask, value: self.value(value)? }),
            _ => Err(format!("no argument: {argument}")),
        }
    }

    fn value(&self, word: &str) -> Result<u32, String> {
        let number = match word.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => word.parse().ok(),
        };
        number
            .or_else(|| self.constants.get(word).copied())
            .ok_or_else(|| format!("no value: {word}"))
    }

    fn filters(&self) -> Result<Table, String> {
        let mut used = BTreeSet::new();
        let mut table = Table::default();
        for (name, section) in self.sections.iter().filter(|(_, section)| section.is_filter) {
            let mut calls = Calls::new();
            self.collect(section, &mut calls, &mut used).map_err(|why| format!("{name}: {why}"))?;
            table.filters.insert(name.clone(), calls);
        }
        let unused = self
            .sections
            .iter()
            .find(|(name, section)| !section.is_filter && !used.contains(*name));
        match unused {
            Some((name, _)) => Err(format!("no filter uses the group {name}")),
            None => Ok(table),
        }
    }

    /// Adds what a section allows. A rule that another makes needless is an error.
    fn collect(
        &self,
        section: &Section,
        calls: &mut Calls,
        used: &mut BTreeSet<String>,
    ) -> Result<(), String> {
        for name in &section.uses {
            let group = self.sections.get(name).filter(|group| !group.is_filter);
            let group = group.ok_or_else(|| format!("no group {name}"))?;
            used.insert(name.clone());
            self.collect(group, calls, used)?;
        }
        for (number, alternative) in &section.calls {
            let is_new = !calls.contains_key(number);
            let alternatives = calls.entry(*number).or_default();
            let is_free = alternative.is_empty() || alternatives.is_empty();
            let is_added = match is_free {
                true => {
                    is_new && (alternative.is_empty() || alternatives.insert(alternative.clone()))
                }
                false => alternatives.insert(alternative.clone()),
            };
            if !is_added {
                return Err(format!("a rule of call {number} is needless: {alternative:?}"));
            }
        }
        Ok(())
    }
}

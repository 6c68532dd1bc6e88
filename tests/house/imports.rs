//! What each module of a crate uses of the others, read from its source.
//!
//! Only paths that begin with `crate`, `super` or `self` matter: any other names a dependency, or a
//! module below the one that names it. Names that a module re-exports are followed to where they are defined.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A path from the root of the crate, without `crate`.
pub(crate) type Module = Vec<String>;

/// One use of something.
#[derive(Clone, Debug)]
pub(crate) struct Import {
    pub(crate) file: String,
    pub(crate) line: usize,
    pub(crate) from: Module,
    pub(crate) to: Module,
}

/// A source file of the crate.
pub(crate) struct Source {
    pub(crate) file: String,
    module: Module,
    text: String,
}

impl Source {
    /// The file at this place below the crate's `src`; comments and test modules in it are left out.
    pub(crate) fn new(file: &str, below_src: &Path, text: &str) -> Self {
        let mut module: Module = below_src
            .with_extension("")
            .iter()
            .map(|part| part.to_string_lossy().into_owned())
            .collect();
        if module.last().is_some_and(|last| last == "mod" || last == "lib") {
            module.pop();
        }
        Self { file: file.to_owned(), module, text: product_code(text) }
    }

    /// Whether it is compiled for tests and for fuzzing only.
    pub(crate) fn is_for_tests(&self) -> bool {
        let names = ["tests", "testing", "fake", "contract", "fuzz"];
        self.module.iter().any(|part| names.contains(&part.as_str()))
    }
}

/// Every import of the sources, resolved.
pub(crate) fn imports(sources: &[Source]) -> Vec<Import> {
    let modules: BTreeSet<Module> = sources.iter().map(|source| source.module.clone()).collect();
    let exports: BTreeMap<(Module, String), Module> =
        sources.iter().flat_map(|source| exports(source, &modules)).collect();
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| !source.is_for_tests()) {
        let mut add = |at: usize, path: &[String]| {
            let to = resolve(path, &exports, &modules);
            let line = source.text[..at].matches('\n').count() + 1;
            let (file, from) = (source.file.clone(), source.module.clone());
            found.push(Import { file, line, from, to: to.clone() });
            to
        };
        let mut aliases: BTreeMap<String, Module> = BTreeMap::new();
        for start in
            ["crate::", "super::", "self::"].iter().flat_map(|word| starts(&source.text, word))
        {
            for leaf in leaves(&source.text, start) {
                let Some(path) = absolute(&leaf.path, &source.module) else { continue };
                let to = add(leaf.at, &path);
                if let Some(name) = leaf.alias.or_else(|| path.last().cloned())
                    && modules.contains(&to)
                {
                    aliases.insert(name, to);
                }
            }
        }
        // What is named through a module that was imported.
        for (name, module) in &aliases {
            for start in starts(&source.text, &format!("{name}::")) {
                for leaf in leaves(&source.text, start) {
                    add(leaf.at, &[module, &leaf.path[1..]].concat());
                }
            }
        }
    }
    found
}

/// The text with comments and test-only items blanked; lines stay where they are.
fn product_code(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            code.push('\n');
            // A module of tests is the last item of its file; another item ends with its line or brace.
            if lines.peek().is_some_and(|next| next.ends_with('{') && next.starts_with("mod ")) {
                break;
            }
            let mut depth = 0;
            for item in lines.by_ref() {
                code.push('\n');
                depth += item.matches(['{', '(']).count() as isize;
                depth -= item.matches(['}', ')']).count() as isize;
                if depth <= 0 && item.ends_with(['}', ';', ',']) {
                    break;
                }
            }
            continue;
        }
        code.push_str(line.split("//").next().unwrap_or_default());
        code.push('\n');
    }
    code
}

/// Where paths begin with this word.
fn starts(text: &str, word: &str) -> Vec<usize> {
    let begins = |at: usize| {
        let before = text[..at].chars().next_back().unwrap_or(' ');
        // `super::super::x` is one path.
        !before.is_alphanumeric() && !['_', ':', '$'].contains(&before)
    };
    text.match_indices(word).map(|(at, _)| at).filter(|at| begins(*at)).collect()
}

struct Leaf {
    path: Vec<String>,
    alias: Option<String>,
    at: usize,
}

/// The paths of the tree that begins here: `a::{b, c::d as e}` has two.
fn leaves(text: &str, start: usize) -> Vec<Leaf> {
    let mut found = Vec::new();
    let mut at = start;
    tree(text, &mut at, Vec::new(), &mut found);
    found
}

fn tree(text: &str, at: &mut usize, mut path: Vec<String>, found: &mut Vec<Leaf>) {
    let begin = *at;
    loop {
        let rest = &text[*at..];
        let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        if length > 0 {
            path.push(rest[..length].to_owned());
            *at += length;
        }
        if text[*at..].starts_with("::") {
            *at += 2;
            continue;
        }
        if length == 0 && text[*at..].starts_with('{') {
            *at += 1;
            return group(text, at, &path, found);
        }
        if length == 0 && text[*at..].starts_with('*') {
            *at += 1;
        }
        let alias = text[*at..].strip_prefix(" as ").map(|rest| {
            rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
        });
        *at += alias.as_ref().map_or(0, |alias| alias.len() + 4);
        return found.push(Leaf { path, alias, at: begin });
    }
}

fn group(text: &str, at: &mut usize, path: &[String], found: &mut Vec<Leaf>) {
    while let Some(next) = text[*at..].chars().next() {
        match next {
            '}' => {
                *at += 1;
                return;
            }
            c if c.is_alphanumeric() || c == '_' || c == '*' => {
                tree(text, at, path.to_vec(), found);
            }
            c => *at += c.len_utf8(),
        }
    }
}

/// A path from the root; `None` if it leaves the crate.
fn absolute(path: &[String], module: &[String]) -> Option<Module> {
    let mut base = module.to_vec();
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" => (base, rest) = (Vec::new(), &path[1..]),
        "self" => rest = &path[1..],
        "super" => {
            while rest.first().is_some_and(|part| part == "super") {
                base.pop()?;
                rest = &rest[1..];
            }
        }
        _ => {}
    }
    let itself = |part: &&String| *part != "self";
    Some(base.into_iter().chain(rest.iter().filter(itself).cloned()).collect())
}

/// What a module re-exports, each name with the path to what it is.
fn exports(source: &Source, modules: &BTreeSet<Module>) -> Vec<((Module, String), Module)> {
    let mut found = Vec::new();
    for item in ["pub use ", "pub(crate) use "] {
        for (at, _) in source.text.match_indices(item) {
            for leaf in leaves(&source.text, at + item.len()) {
                let Some(path) = absolute(&leaf.path, &source.module) else { continue };
                let child = [source.module.as_slice(), &leaf.path[..1]].concat();
                let own = ["crate", "super", "self"].contains(&leaf.path[0].as_str());
                let Some(name) = leaf.alias.or_else(|| path.last().cloned()) else { continue };
                if own || modules.contains(&child) {
                    found.push(((source.module.clone(), name), path));
                }
            }
        }
    }
    found
}

/// Follows re-exports to where a name is defined.
fn resolve(
    path: &[String],
    exports: &BTreeMap<(Module, String), Module>,
    modules: &BTreeSet<Module>,
) -> Module {
    let mut at = Module::new();
    for part in path {
        let mut next = at.clone();
        next.push(part.clone());
        // No chain of re-exports is as long as there are modules.
        for _ in modules {
            let Some((name, module)) = next.split_last().filter(|_| !modules.contains(&next))
            else {
                break;
            };
            match exports.get(&(module.to_vec(), name.clone())) {
                Some(target) if *target != next => next = target.clone(),
                _ => break,
            }
        }
        at = next;
    }
    at
}

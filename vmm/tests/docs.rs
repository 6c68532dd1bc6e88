//! The documents against what they describe: links, paths of the source tree, flags, dependencies.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use serde_json::Value;
use vmm::config::RunArgs;
use vmm::tag_storage::broker::BrokerArgs;

/// Where a path in a document may begin.
const ROOTS: [&str; 6] = ["", "arch/src", "devices/src", "vmm/src", "vmm/src/tag_storage", "tests"];

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(document: &str) -> String {
    fs::read_to_string(workspace().join(document)).unwrap()
}

/// Every document for people: its path and its text without blocks of code.
fn documents() -> Vec<(PathBuf, String)> {
    let pages = fs::read_dir(workspace().join("docs")).unwrap();
    let pages = pages.map(|entry| entry.unwrap().path());
    let top = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"];
    let top = top.iter().map(|name| workspace().join(name));
    pages
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .chain(top)
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let prose = text.split("```").step_by(2).collect();
            (path, prose)
        })
        .collect()
}

/// Whether this is a file or a folder of the source tree, as documents name them.
fn is_source(word: &str) -> bool {
    let plain = |letter: char| {
        letter.is_ascii_lowercase() || letter.is_ascii_digit() || "_-./".contains(letter)
    };
    word.contains('/')
        && (word.ends_with(".rs") || word.ends_with('/'))
        && !word.starts_with(['/', '.'])
        && word.chars().all(plain)
}

/// The flags that a page has a row for.
fn documented(page: &str) -> BTreeSet<String> {
    let text = read(page);
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `--"));
    rows.map(|row| row.split(['`', ' ']).next().unwrap().to_owned()).collect()
}

fn flags(command: &Command) -> BTreeSet<String> {
    command.get_arguments().filter_map(|flag| Some(flag.get_long()?.to_owned())).collect()
}

#[test]
fn links_lead_to_files() {
    let mut links = 0;
    for (document, text) in documents() {
        for link in text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0)) {
            if link.starts_with("http") {
                continue;
            }
            let file = link.split('#').next().unwrap();
            let target = document.parent().unwrap().join(file);
            assert!(target.exists(), "{}: {link} leads nowhere", document.display());
            links += 1;
        }
    }
    assert!(links > 0);
}

#[test]
fn paths_of_the_source_tree_exist() {
    let mut wrong = Vec::new();
    let mut paths = 0;
    for (document, text) in documents() {
        // Every other piece is between backticks.
        for word in text.split('`').skip(1).step_by(2).filter(|word| is_source(word)) {
            paths += 1;
            if !ROOTS.iter().any(|root| workspace().join(root).join(word).exists()) {
                wrong.push(format!("{}: {word}", document.display()));
            }
        }
    }
    assert!(paths > 0);
    assert!(wrong.is_empty(), "not in the source tree: {wrong:#?}");
}

#[test]
fn each_flag_has_a_row_and_each_row_a_flag() {
    let run = RunArgs::augment_args(Command::new("run"));
    let broker = BrokerArgs::augment_args(Command::new("broker"));

    assert_eq!(documented("docs/configuration.md"), flags(&run));
    assert_eq!(documented("docs/broker.md"), flags(&broker));
}

#[test]
fn each_dependency_has_a_row() {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(workspace())
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let own: BTreeSet<_> = packages.iter().map(|package| package["name"].as_str()).collect();
    let used = packages.iter().flat_map(|package| package["dependencies"].as_array().unwrap());
    let used: BTreeSet<_> = used.map(|dependency| dependency["name"].as_str()).collect();

    let page = read("docs/dependencies.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let known: BTreeSet<_> = rows.flat_map(|crates| crates.split(", ")).map(Some).collect();

    let missing: Vec<_> = used.difference(&own).filter(|name| !known.contains(*name)).collect();
    assert!(missing.is_empty(), "docs/dependencies.md has no row for {missing:?}");
}

/// The lines of all sources in a folder, without their indentation.
fn lines(folder: &Path, found: &mut BTreeSet<String>) {
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            lines(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(path).unwrap();
            found.extend(text.lines().map(|line| line.trim().to_owned()));
        }
    }
}

#[test]
fn examples_are_code_of_the_source_tree() {
    let mut known = BTreeSet::new();
    for room in ["devices/src", "vmm/src"] {
        lines(&workspace().join(room), &mut known);
    }

    let text = read("CONTRIBUTING.md");
    let examples = text.split("```rust").skip(1).map(|rest| rest.split("```").next().unwrap());
    let examples = examples.flat_map(str::lines).map(str::trim).filter(|line| !line.is_empty());
    let examples: Vec<_> = examples.collect();

    assert!(!examples.is_empty());
    let made_up: Vec<_> = examples.iter().filter(|line| !known.contains(**line)).collect();
    assert!(made_up.is_empty(), "CONTRIBUTING.md shows what no source has: {made_up:#?}");
}

/// The functions of all tests.
fn tests(folder: &Path, to: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests(&path, to);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(path).unwrap();
            // Of proptest as well, whose tests have arguments.
            let functions = text.split("#[test]").skip(1).filter_map(|rest| rest.split_once("fn "));
            to.extend(functions.filter_map(|(_, rest)| Some(rest.split_once('(')?.0.to_owned())));
        }
    }
}

#[test]
fn the_tests_that_guard_against_traps_are_there() {
    let mut all = BTreeSet::new();
    for folder in ["arch", "devices", "vmm", "tests"] {
        tests(&workspace().join(folder), &mut all);
    }
    let page = read("docs/snapshots-traps.md");
    let is_name = |word: &&str| {
        let plain = |letter: char| letter.is_ascii_lowercase() || letter == '_';
        word.matches('_').count() > 2 && word.chars().all(plain)
    };
    let named: BTreeSet<_> = page.split('`').skip(1).step_by(2).filter(is_name).collect();

    let missing: Vec<_> = named.iter().filter(|name| !all.contains(**name)).collect();

    assert!(named.len() > 20, "{named:?}");
    assert!(missing.is_empty(), "no such tests: {missing:#?}");
}

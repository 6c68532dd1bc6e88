//! `tesseractl bench`: the program over files.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;
use tesseractl::bench::model::validation;

/// A figure's line, as docs/benchmarks.md has it.
fn line(vmm: &str, value: &Value) -> String {
    let mut figure = json!({
        "bench": "start",
        "name": "exec to exit",
        "case": "raw, cold",
        "vmm": { "name": vmm, "version": "1" },
        "value": value,
        "unit": "instructions",
        "better": "less",
        "method": "counted",
        "setting": { "memory_mib": 256, "vcpus": 1 },
        "host": { "machine": "emulated", "kernel": "6.12", "memory_mib": 4096, "cpus": 1 },
    });
    if value.is_null() {
        figure["cannot"] = "it has none".into();
    }
    json!({ "schema": 1, "figure": figure }).to_string() + "\n"
}

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }
}

fn bench(words: &[&Path]) -> (Option<i32>, String, String) {
    let program = env!("CARGO_BIN_EXE_tesseractl");
    let Output { status, stdout, stderr } =
        Command::new(program).arg("bench").args(words).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn a_report_is_made_of_the_lines_of_benches() {
    let files = Files::new();
    let lines = line("tessera", &json!(10)) + &line("QEMU", &Value::Null);
    let (input, out) = (files.file("figures", &lines), files.path("out"));

    let (code, said, errors) = bench(&[
        Path::new("report"),
        &input,
        Path::new("--out"),
        &out,
        Path::new("--note=commit=1a2b"),
    ]);

    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert!(said.contains("2 figures; 0 of 0 aims met"), "{said}");
    let report: Value =
        serde_json::from_str(&fs::read_to_string(out.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["notes"]["commit"], "1a2b");
    assert!(fs::read_to_string(out.join("report.md")).unwrap().contains("– QEMU: it has none"));
    assert!(out.join("report.html").exists());
    assert!(out.join("plots/start-exec-to-exit.svg").exists());
}

#[test]
fn a_comparison_ends_as_what_has_moved() {
    let files = Files::new();
    let [before, same, worse] = [10, 10, 11]
        .map(|value| files.file(&format!("{value}-{}", line!()), &line("tessera", &json!(value))));
    let compare =
        |other: &Path, more: &str| bench(&[Path::new("compare"), &before, other, Path::new(more)]);

    assert_eq!(compare(&same, "--tolerance=0").0, Some(0));
    let (code, said, _) = compare(&worse, "--tolerance=5");
    assert_eq!(code, Some(1));
    assert!(said.contains("worse   start: exec to exit, raw, cold (tessera): 10 -> 11"), "{said}");
    assert!(said.contains("(+10.00 %)"), "{said}");
    assert_eq!(compare(&worse, "--tolerance=10").0, Some(0));
    assert_eq!(compare(&worse, "--worse").0, Some(1));
    assert_eq!(bench(&[Path::new("compare"), &worse, &before, Path::new("--worse")]).0, Some(0));
    assert_eq!(compare(&worse, "--tolerance=-1").0, Some(64));
}

#[test]
fn files_that_are_none_or_contradict_each_other_are_refused() {
    let files = Files::new();
    let one = files.file("one", &line("tessera", &json!(10)));
    let other = files.file("other", &line("tessera", &json!(11)));
    let broken = files.file("broken", "{\"schema\":1,");
    let out = files.path("out");
    let report = |file: &Path| bench(&[Path::new("report"), &one, file, Path::new("--out"), &out]);

    let (code, _, errors) = report(&other);
    assert_eq!(code, Some(65));
    assert!(errors.contains("(tessera): 10 and 11"), "{errors}");
    let (code, _, errors) = report(&broken);
    assert_eq!(code, Some(65));
    assert!(errors.contains("JSON document 1") && errors.contains("EOF"), "{errors}");
    assert_eq!(report(&files.path("missing")).0, Some(65));
    assert!(!out.exists());
    assert_eq!(report(&one).0, Some(0));
}

/// A figure of the bench `lending`.
fn lending(name: &str, case: &str, value: &Value) -> String {
    let mut line: Value = serde_json::from_str(&line("tessera", value)).unwrap();
    let figure = &mut line["figure"];
    (figure["bench"], figure["name"], figure["case"]) =
        ("lending".into(), name.into(), case.into());
    line.to_string() + "\n"
}

#[test]
fn a_model_is_held_to_what_was_measured() {
    let files = Files::new();
    let validate = |report: &Path| {
        bench(&[Path::new("model"), Path::new("--json"), Path::new("--validate"), report])
    };
    let policies = ["never", "last-resort", "balanced", "eager"];
    let mut first = String::new();
    for policy in policies {
        let sizes = [716_800, 245_760, 20_480, 4_096, 237_568, 2048, 1024];
        for (what, kib) in validation::FIRST.iter().zip(sizes) {
            first += &lending("memory at first", &format!("{policy}, {what}"), &json!(kib));
        }
    }
    // What the model says, beside a thousand of all.
    let mut wrong = first.clone();
    for policy in policies {
        for load in ["idle", "480 MiB taken", "all taken"] {
            for name in [validation::CHUNKS.0, validation::EVICTIONS.0, validation::LENT.0] {
                wrong += &lending(name, &format!("{policy}, {load}"), &json!(1000));
            }
        }
        wrong += &lending("borrower has of the host at most", policy, &json!(1000));
        wrong += &lending("of that on the node", policy, &json!(1000));
    }

    let (code, said, errors) = validate(&files.file("wrong", &wrong));

    assert_eq!((code, errors.as_str()), (Some(1), ""));
    let said: Value = serde_json::from_str(&said).unwrap();
    let pairs = said["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 44);
    let mut right = first.clone();
    for pair in pairs {
        let (name, case) = pair["figure"].as_str().unwrap().split_once(", ").unwrap();
        right += &lending(name, case, &pair["modelled"]);
    }
    assert_eq!(validate(&files.file("right", &right)).0, Some(0));
    let (code, _, errors) = validate(&files.file("first", &first));
    assert_eq!(code, Some(65));
    assert!(errors.contains("make it with `make bench ONLY=lending`"), "{errors}");
}

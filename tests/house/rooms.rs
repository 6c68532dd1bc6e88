//! The arrows between the rooms of `vmm/src`, read from its `use` lines and paths.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::imports::{Import, Source, imports};
use super::{sources, workspace};

/// What each room may use beside [`COMMON`]. What is not here may use nothing.
///
/// The order is that of the arrows: run, machine, what a machine is made of, system calls.
const ARROWS: &[(&str, &[&str])] = &[
    (
        "run",
        &[
            "api",
            "backends",
            "config",
            "console",
            "folder",
            "hypervisor",
            HYPERVISOR_STATE,
            "jail",
            "kvm",
            "machine",
            MACHINE_CONTENTS,
            "memory",
            BROKER_CLIENT,
            PLACEMENT,
            POOL,
            "registry",
            RESERVATION,
            "sandbox",
            "snapshot",
            "spec",
            "sys",
            "tag_storage",
            "template",
            "vcpu",
        ],
    ),
    // Of the machine, run, pool, broker and supply it knows nothing.
    ("api", &["backends", "config", "memory", PLACEMENT, RESERVATION, "spec", "sys"]),
    (
        "machine",
        &[
            "backends",
            "config",
            "console",
            "hypervisor",
            HYPERVISOR_STATE,
            "kvm",
            MACHINE_CONTENTS,
            "memory",
            BROKER_CLIENT,
            PLACEMENT,
            RESERVATION,
            "snapshot",
            "spec",
            "sys",
            "tag_storage",
            "template",
            "vcpu",
        ],
    ),
    // What is saved and loaded of guest memory.
    (MACHINE_CONTENTS, &["memory", "snapshot"]),
    ("template", &[MACHINE_CONTENTS, "memory", "registry", "sandbox", "snapshot", "sys"]),
    // It knows no hypervisor and no guest memory, but what their states are made of.
    ("snapshot", &["folder", HYPERVISOR_STATE, "sys"]),
    ("backends", &["memory", "sandbox", "spec", "sys"]),
    ("console", &["sys", "vcpu"]),
    ("hypervisor", &[HYPERVISOR_STATE, "memory", "vcpu"]),
    (HYPERVISOR_STATE, &[]),
    ("kvm", &["hypervisor", HYPERVISOR_STATE, "memory", "sys", "vcpu"]),
    ("vcpu", &[HYPERVISOR_STATE, "sys"]),
    ("memory", &["sys"]),
    (
        RESERVATION,
        &["memory", BROKER_CLIENT, PLACEMENT, POOL, SUPPLY, "spec", "sys", "tag_storage"],
    ),
    (PLACEMENT, &["memory", BROKER_CLIENT, SUPPLY, "sys", "tag_storage"]),
    (BROKER_CLIENT, &[BROKER_PROTOCOL, POOL, SUPPLY, "sys", "tag_storage"]),
    (BROKER_SERVER, &[BROKER_PROTOCOL, "folder", POOL, "sandbox", SUPPLY, "sys", "tag_storage"]),
    // The numbers and reports of the pool travel in messages.
    (BROKER_PROTOCOL, &[POOL, SUPPLY, "tag_storage"]),
    (POOL, &[SUPPLY, "tag_storage"]),
    (SUPPLY, &["sys", "tag_storage"]),
    // Its own files; it re-exports names of its rooms, which are followed to where they are.
    ("tag_storage", &[]),
    ("sys", &[]),
    ("spec", &["config", "folder", "vm_id"]),
    ("config", &["jail", "sandbox"]),
    ("sandbox", &["folder", "sys"]),
    // It is around the VM, of which it knows nothing.
    ("jail", &["folder", "sys", "vm_id"]),
    ("cli", &["config", "jail", BROKER_SERVER, "template"]),
    ("doctor", &["backends", "hypervisor", "kvm", "memory", "sandbox", "sys"]),
    // Messages are written without waiting.
    ("error", &["sys"]),
    ("events", &[]),
    ("exit_status", &[]),
    ("metrics", &[]),
    ("prometheus", &[]),
    ("registry", &["sys", "vm_id"]),
    ("folder", &[]),
    ("vm_id", &[]),
];

const BROKER_CLIENT: &str = "tag_storage::broker::client";
const BROKER_PROTOCOL: &str = "tag_storage::broker::protocol";
const BROKER_SERVER: &str = "tag_storage::broker::server";
const HYPERVISOR_STATE: &str = "hypervisor::state";
const MACHINE_CONTENTS: &str = "machine::contents";
const PLACEMENT: &str = "tag_storage::placement";
const POOL: &str = "tag_storage::pool";
const RESERVATION: &str = "tag_storage::reservation";
const SUPPLY: &str = "tag_storage::supply";

/// What any room may use.
const COMMON: [&str; 5] = ["error", "events", "exit_status", "metrics", "prometheus"];

/// The one file of `api` that knows the rooms behind the VM, and those rooms.
const CONVERSION: (&str, [&str; 4]) =
    ("vmm/src/api/convert.rs", ["backends", "memory", PLACEMENT, RESERVATION]);

/// Arrows that are to go, each with what it is for. An entry that is not needed fails.
const KNOWN: &[(&str, &str, &str)] = &[];

fn room(module: &[String]) -> Option<&'static str> {
    let path = module.join("::");
    let inside = |room: &&str| path == *room || path.starts_with(&format!("{room}::"));
    // Of a room and a folder of it, the folder.
    let rooms = ARROWS.iter().map(|(room, _)| *room).filter(inside);
    rooms.max_by_key(|room| room.len())
}

/// An import from one room into another.
struct Crossing {
    import: Import,
    from: &'static str,
    /// A module that is no room is named as it is.
    to: String,
}

fn crossings(sources: &[Source]) -> Vec<Crossing> {
    let mut found = Vec::new();
    for import in imports(sources) {
        let Some(from) = room(&import.from) else { continue };
        let to = room(&import.to).map_or_else(|| import.to.join("::"), str::to_owned);
        if from != to {
            found.push(Crossing { import, from, to });
        }
    }
    found
}

/// What is wrong with these imports, and with the table of known wrongs.
fn wrongs(crossings: &[Crossing], known: &[(&str, &str, &str)]) -> BTreeSet<String> {
    let mut wrongs = BTreeSet::new();
    let mut needed = BTreeSet::new();
    for Crossing { import, from, to } in crossings {
        let at = format!("{}:{}: {}", import.file, import.line, import.to.join("::"));
        let allowed = ARROWS.iter().find(|(room, _)| room == from).map_or(&[][..], |(_, to)| to);
        if !allowed.contains(&to.as_str()) && !COMMON.contains(&to.as_str()) {
            match known.iter().find(|(a, b, _)| a == from && b == to) {
                Some((a, b, _)) => {
                    needed.insert((*a, *b));
                }
                None => {
                    wrongs
                        .insert(format!("{at}: {from} must not use {to}; it may use {allowed:?}"));
                }
            }
        }
        let (file, behind) = CONVERSION;
        if *from == "api" && behind.contains(&to.as_str()) && import.file != file {
            wrongs.insert(format!("{at}: of api only {file} knows {to}"));
        }
    }
    for (from, to, reason) in known.iter().filter(|(a, b, _)| !needed.contains(&(*a, *b))) {
        wrongs.insert(format!("{from} no longer uses {to} ({reason}): take it out of KNOWN"));
    }
    wrongs
}

/// The rooms from which an arrow leads back to themselves.
fn circles(crossings: &[Crossing]) -> BTreeSet<String> {
    let mut arrows: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for Crossing { from, to, .. } in crossings {
        arrows.entry(from).or_default().insert(to);
    }
    let leads_back = |start: &&str| {
        let mut reached = BTreeSet::new();
        let mut open: Vec<&str> = arrows[start].iter().copied().collect();
        while let Some(room) = open.pop() {
            if reached.insert(room) {
                open.extend(arrows.get(room).into_iter().flatten());
            }
        }
        reached.contains(start)
    };
    arrows.keys().copied().filter(leads_back).map(str::to_owned).collect()
}

fn tree() -> Vec<Source> {
    let src = workspace().join("vmm/src");
    let mut all = Vec::new();
    sources(&src, &mut all);
    all.iter()
        .filter(|path| !path.starts_with(src.join("bin")))
        .map(|path| {
            let file = path.strip_prefix(workspace()).unwrap().to_string_lossy();
            let text = std::fs::read_to_string(path).unwrap();
            Source::new(&file, path.strip_prefix(&src).unwrap(), &text)
        })
        .collect()
}

#[test]
fn rooms_use_what_they_may() {
    let crossings = crossings(&tree());

    // One of each kind, so that a reader that finds nothing does not pass.
    for arrow in [("run", "machine"), ("api", "backends"), (BROKER_SERVER, POOL), (POOL, SUPPLY)] {
        assert!(
            crossings.iter().any(|found| (found.from, found.to.as_str()) == arrow),
            "{arrow:?}"
        );
    }
    let wrongs: Vec<_> = wrongs(&crossings, KNOWN).into_iter().collect();
    assert!(wrongs.is_empty(), "{}", wrongs.join("\n"));
}

#[test]
fn rooms_go_in_no_circle() {
    assert_eq!(circles(&crossings(&tree())), BTreeSet::new());
}

/// The tree with one more file of this text.
fn with(place: &str, text: &str) -> Vec<Source> {
    let mut sources = tree();
    sources.push(Source::new(&format!("vmm/src/{place}"), Path::new(place), text));
    sources
}

fn complaint(place: &str, text: &str) -> String {
    wrongs(&crossings(&with(place, text)), KNOWN).into_iter().collect()
}

#[test]
fn an_import_against_each_rule_is_found() {
    for (place, import, to) in [
        ("machine/extra.rs", "use crate::run::run;", "run"),
        ("api/extra.rs", "use crate::run::Error;", "run"),
        ("api/convert/extra.rs", "use crate::machine::Machine;", "machine"),
        ("api/extra.rs", "use crate::tag_storage::Pool;", POOL),
        ("api/extra.rs", "use crate::tag_storage::broker::BrokerReport;", BROKER_PROTOCOL),
        ("api/extra.rs", "use crate::tag_storage::LendPolicy;", SUPPLY),
        ("api/extra.rs", "use crate::backends::balloon::Status;", "backends"),
        ("backends/extra.rs", "use crate::api::model::Balloon;", "api"),
        ("memory/extra.rs", "use crate::machine::Machine;", "machine"),
        ("vcpu/extra.rs", "use crate::kvm::Vm;", "kvm"),
        ("console/extra.rs", "use crate::api::Server;", "api"),
        ("spec/extra.rs", "use crate::machine::Board;", "machine"),
        ("config/extra.rs", "use crate::spec::Spec;", "spec"),
        ("sandbox/extra.rs", "use crate::config::RunArgs;", "config"),
        ("jail/extra.rs", "use crate::spec::Spec;", "spec"),
        ("sys/extra.rs", "use crate::memory::GuestRam;", "memory"),
        ("tag_storage/pool/extra.rs", "use crate::tag_storage::broker::Client;", BROKER_CLIENT),
        ("tag_storage/pool/extra.rs", "use crate::tag_storage::PoolClient;", RESERVATION),
        ("tag_storage/supply/extra.rs", "use crate::tag_storage::Pool;", POOL),
        (
            "tag_storage/broker/protocol/extra.rs",
            "use super::super::client::Client;",
            BROKER_CLIENT,
        ),
        (
            "tag_storage/broker/client/extra.rs",
            "use crate::tag_storage::broker::Server;",
            BROKER_SERVER,
        ),
        ("tag_storage/broker/server/extra.rs", "use super::super::client::Client;", BROKER_CLIENT),
        (
            "tag_storage/reservation/extra.rs",
            "use crate::tag_storage::broker::Server;",
            BROKER_SERVER,
        ),
        ("tag_storage/reservation/extra.rs", "use crate::api::model::TagStorage;", "api"),
        ("tag_storage/placement/extra.rs", "use crate::tag_storage::Pool;", POOL),
        ("snapshot/extra.rs", "use crate::hypervisor::Vm;", "hypervisor"),
        ("snapshot/extra.rs", "use crate::memory::GuestRam;", "memory"),
        ("doctor/extra.rs", "use crate::run::run;", "run"),
    ] {
        let found = complaint(place, &format!("\n{import}\n"));
        assert!(found.contains(&format!("vmm/src/{place}:2: ")), "{place} {import}: {found}");
        assert!(
            found.contains(&format!(" must not use {to};"))
                || found.contains(&format!(" knows {to}")),
            "{found}"
        );
    }
}

#[test]
fn an_import_is_found_in_every_form() {
    for text in [
        "use crate::{error::chain, tag_storage::{Bytes, broker::Client as Other}};",
        "use crate::tag_storage::{\n    Bytes,\n    broker::{self},\n};\nfn f(_: broker::Client) {}",
        "use super::super::broker::Client;",
        "fn f() { crate::tag_storage::broker::report(path); }",
        "use crate::tag_storage::broker as other;\nfn f() -> other::Client { todo!() }",
    ] {
        let found = complaint("tag_storage/pool/extra.rs", text);
        assert!(found.contains("must not use tag_storage::broker::client"), "{text}: {found}");
    }
}

#[test]
fn comments_and_tests_may_name_anything() {
    for text in [
        "/// See [`crate::run::run`].\nstruct A;",
        "#[cfg(test)]\nuse crate::run::run;\nuse crate::tag_storage::Bytes;",
        "struct A;\n\n#[cfg(test)]\nmod tests {\n    use crate::run::run;\n}\n",
    ] {
        assert_eq!(complaint("tag_storage/pool/extra.rs", text), "", "{text}");
    }
    assert_eq!(complaint("tag_storage/pool/tests/extra.rs", "use crate::run::run;"), "");
}

#[test]
fn a_circle_is_found() {
    let sources = with("config/extra.rs", "use crate::spec::Spec;");

    let expected = BTreeSet::from(["config".to_owned(), "spec".to_owned()]);
    assert_eq!(circles(&crossings(&sources)), expected);
}

#[test]
fn a_known_wrong_that_is_none_any_more_is_found() {
    let known = [KNOWN, &[(POOL, "api", "nothing")]].concat();

    let found: String = wrongs(&crossings(&tree()), &known).into_iter().collect();

    assert!(found.contains("take it out of KNOWN"), "{found}");
}

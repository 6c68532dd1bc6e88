//! Has the linker put together the code that a VM does not run (see `cold.ld`), and makes programs of the tables of
//! system calls (`resources/seccomp/`), so that no process of a VM has a compiler for them.

#[path = "seccomp/bpf.rs"]
mod bpf;
#[path = "seccomp/table.rs"]
mod table;

use std::env;
use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=cold.ld");
    let target = |part| env::var(format!("CARGO_CFG_TARGET_{part}")).unwrap_or_default();
    let folder = env::var("CARGO_MANIFEST_DIR")?;
    // The patterns are for the linker that .cargo/config.toml names for this target.
    if (target("ARCH").as_str(), target("ENV").as_str()) == ("aarch64", "musl") {
        println!("cargo::rustc-link-arg-bin=tessera=-T{folder}/cold.ld");
    }
    let filters = filters(&Path::new(&folder).join("../resources/seccomp"))?;
    fs::write(Path::new(&env::var("OUT_DIR")?).join("filters.rs"), filters)?;
    Ok(())
}

/// The programs as source text: a constant a filter, and a function that finds them.
fn filters(folder: &Path) -> Result<String, Box<dyn Error>> {
    println!("cargo::rerun-if-changed=seccomp");
    let read = |name| {
        let path = folder.join(name);
        println!("cargo::rerun-if-changed={}", path.display());
        fs::read_to_string(path)
    };
    let (calls, table) = (read("aarch64.calls")?, read("aarch64.filters")?);
    let table = table::Table::parse(&table, &table::numbers(&calls)?)
        .map_err(|why| format!("resources/seccomp/aarch64.filters: {why}"))?;
    let (mut source, mut names) = (String::new(), String::new());
    for (name, calls) in &table.filters {
        let program = bpf::compile(calls)?;
        let (constant, length) = (name.to_uppercase(), program.len());
        writeln!(source, "pub(super) static {constant}: [u64; {length}] = {program:#x?};")?;
        writeln!(names, "        {name:?} => Some(&{constant}),")?;
    }
    writeln!(source, "/// The program of a filter by its name in the table.")?;
    writeln!(
        source,
        "pub(super) fn named(name: &str) -> Option<&'static [u64]> {{\n    match name {{"
    )?;
    writeln!(source, "{names}        _ => None,\n    }}\n}}")?;
    Ok(source)
}

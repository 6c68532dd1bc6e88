//! Manual pages and completions, as examples/generate.rs makes them.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use clap::CommandFactory;

fn generate(folder: &Path) {
    let program = Path::new(env!("CARGO_BIN_EXE_tesseractl")).with_file_name("examples/generate");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/generate.rs");
    let changed = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
    assert!(
        changed(&program) >= changed(&source),
        "{program:?} is missing or older than its source: cargo build -p tesseractl --examples"
    );
    assert!(Command::new(program).arg(folder).status().unwrap().success());
}

#[test]
fn each_verb_has_a_page_and_is_completed_in_each_shell() {
    let folder = tempfile::tempdir().unwrap();
    generate(folder.path());
    // Once more over what is there.
    generate(folder.path());
    let read = |path: &str| fs::read_to_string(folder.path().join(path)).unwrap();

    for program in [vmm::cli::Arguments::command(), tesseractl::cli::Arguments::command()] {
        let name = program.get_name();
        let shells = [
            read(&format!("bash-completion/completions/{name}")),
            read(&format!("zsh/site-functions/_{name}")),
            read(&format!("fish/vendor_completions.d/{name}.fish")),
        ];
        assert!(read(&format!("man/man1/{name}.1")).contains(".SH SYNOPSIS"));
        for verb in program.get_subcommands().map(clap::Command::get_name) {
            let page = read(&format!("man/man1/{name}-{verb}.1"));
            assert!(page.contains(&format!("\\fB{name}\\fR(1)")), "{page}");
            for shell in &shells {
                assert!(shell.contains(verb), "{name} {verb}");
            }
        }
    }
    // The flags that are described only once their command is named.
    assert!(read("man/man1/tessera-run.1").contains("\\-\\-api\\-sock"));
    assert!(read("man/man1/tesseractl-run.1").contains("\\-\\-api\\-sock"));
    for name in ["tessera", "tesseractl"] {
        let file = folder.path().join("bash-completion/completions").join(name);
        assert!(Command::new("bash").arg("-n").arg(file).status().unwrap().success());
    }
}

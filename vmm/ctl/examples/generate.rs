//! Manual pages and completions of shells for `tessera` and `tesseractl`, out of their command lines, in the layout of
//! a prefix such as /usr/share: `generate DIRECTORY`. The programs themselves carry none of it.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;

/// Where each shell looks for completions (bash-completion's README; zsh's `site-functions`; fish's
/// `vendor_completions.d`).
const SHELLS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions"),
    (Shell::Zsh, "zsh/site-functions"),
    (Shell::Fish, "fish/vendor_completions.d"),
];

fn main() -> Result<(), Box<dyn Error>> {
    let share = std::env::args_os().nth(1).map(PathBuf::from);
    let share = share.ok_or("name the directory for the files")?;
    for program in [vmm::cli::Arguments::command(), tesseractl::cli::Arguments::command()] {
        let name = program.get_name().to_owned();
        manuals(&program, &share.join("man/man1"))?;
        for (shell, folder) in SHELLS {
            let folder = share.join(folder);
            fs::create_dir_all(&folder)?;
            let file = generate_to(shell, &mut program.clone(), &name, &folder)?;
            if shell == Shell::Bash {
                // bash-completion loads a file by the name of the command.
                fs::rename(file, folder.join(&name))?;
            }
        }
    }
    Ok(())
}

/// A page for the program and one for each of its verbs.
fn manuals(program: &Command, folder: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder)?;
    let mut program = program.clone().disable_help_subcommand(true);
    program.build();
    let version = program.get_version().unwrap_or_default();
    let source = format!("{} {version}", program.get_name());
    page(&program, None, &source, folder)
}

fn page(
    command: &Command,
    above: Option<&str>,
    source: &str,
    folder: &Path,
) -> Result<(), Box<dyn Error>> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let manual = Man::new(command.clone()).title(name.to_uppercase()).source(source);
    let mut text = Vec::new();
    manual.manual("Tessera").render(&mut text)?;
    if let Some(above) = above {
        let above = above.replace('-', "\\-");
        text.extend(format!(".SH SEE ALSO\n\\fB{above}\\fR(1)\n").bytes());
    }
    fs::write(folder.join(format!("{name}.1")), text)?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        page(verb, Some(&name), source, folder)?;
    }
    Ok(())
}

//! Starts the program of libFuzzer's for each target.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;

use crate::figures::{Figures, Outcome, table};

/// Fuzzes targets, one after the other, and prints a table of what came of it.
///
/// Inputs that were found stay in the folder for the next run. The exit status is not 0 if a target failed.
#[derive(Parser)]
struct Options {
    /// The program of libFuzzer's
    #[arg(long)]
    program: PathBuf,
    /// Where corpora, logs and findings go
    #[arg(long)]
    folder: PathBuf,
    /// How long each target runs, in seconds
    #[arg(long, default_value_t = 60)]
    time: u64,
    /// How often each target is executed at most, whatever its time
    #[arg(long)]
    runs: Option<u64>,
    /// So many targets at a time
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Execute the target with this file alone, and show what it prints
    #[arg(long)]
    input: Option<PathBuf>,
    /// Put the inputs that matter into the corpus in the source tree
    #[arg(long)]
    minimise: bool,
    /// The targets; all, if none is named
    targets: Vec<String>,
}

/// The longest input of a target: little more is found by longer ones, and each takes longer.
const MOST_BYTES: u32 = 2048;
/// Files of a corpus in the source tree, and the most bytes of each.
const MOST_FILES: usize = 30;
const MOST_KEPT: u32 = 512;
/// An execution that takes so many seconds hangs.
const HANGS: u32 = 20;
/// An execution that takes so many MiB is a finding.
const MOST_MEMORY: u32 = 2048;
/// How often a target says how far it is.
const PROGRESS: Duration = Duration::from_secs(10);

pub(crate) fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fuzz: {error}");
            ExitCode::from(70)
        }
    }
}

/// Whether all is well.
fn run(options: &Options) -> io::Result<bool> {
    let targets = targets(options)?;
    if let Some(input) = &options.input {
        let [target] = &targets[..] else {
            return Err(io::Error::other("name one target for the input: TARGET=name"));
        };
        return Ok(command(options, target).arg(input).status()?.success());
    }
    if options.minimise {
        targets.iter().try_for_each(|target| minimise(options, target))?;
        return Ok(true);
    }
    let outcomes = fuzz_all(options, &targets)?;
    print!("\n{}", table(&outcomes));
    for Outcome { target, figures, .. } in &outcomes {
        if let Some(finding) = &figures.finding {
            println!("\n{target}: {}", message(options, target, finding)?);
            println!("to see it again: make fuzz TARGET={target} INPUT={finding}");
        }
    }
    Ok(outcomes.iter().all(|outcome| outcome.passed))
}

/// The targets that are wanted. The seeds of all are in the folder then.
fn targets(options: &Options) -> io::Result<Vec<String>> {
    let seeds = options.folder.join("seeds");
    fs::create_dir_all(&seeds)?;
    let written = Command::new(&options.program).env("TESSERA_FUZZ_SEEDS", &seeds).output()?;
    if !written.status.success() {
        let said = String::from_utf8_lossy(&written.stderr).into_owned();
        return Err(io::Error::other(format!("the program does not write its seeds: {said}")));
    }
    let mut known: Vec<String> = fs::read_dir(&seeds)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()?;
    known.sort();
    let unknown = options.targets.iter().find(|target| !known.contains(target));
    if let Some(unknown) = unknown {
        let known = known.join(", ");
        return Err(io::Error::other(format!("there is no target {unknown}; there are {known}")));
    }
    if !options.targets.is_empty() {
        return Ok(options.targets.clone());
    }
    // It fails, as it should.
    known.retain(|target| target != "planted");
    Ok(known)
}

fn fuzz_all(options: &Options, targets: &[String]) -> io::Result<Vec<Outcome>> {
    let waiting: Mutex<VecDeque<&String>> = Mutex::new(targets.iter().collect());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = || {
        let mut outcomes = Vec::new();
        while let Some(target) = next() {
            outcomes.push(fuzz(options, target)?);
        }
        io::Result::Ok(outcomes)
    };
    let all: io::Result<Vec<_>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..options.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        let ended = |_| Err(io::Error::other("a thread of the runner ended"));
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(ended)).collect()
    });
    let mut all = all?.concat();
    all.sort_by(|one, other| one.target.cmp(&other.target));
    Ok(all)
}

fn command(options: &Options, target: &str) -> Command {
    let mut command = Command::new(&options.program);
    command.env("TESSERA_FUZZ_TARGET", target);
    command.arg(format!("-timeout={HANGS}")).arg(format!("-rss_limit_mb={MOST_MEMORY}"));
    // What the sanitizer calls a leak are memories that are mapped once for all executions.
    command.arg("-detect_leaks=0");
    command
}

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

fn fuzz(options: &Options, target: &str) -> io::Result<Outcome> {
    let folder = |name: &str| -> io::Result<PathBuf> {
        let folder = options.folder.join(name).join(target);
        fs::create_dir_all(&folder)?;
        Ok(folder)
    };
    let findings = folder("findings")?;
    let mut log = File::create(folder("logs")?.join("log"))?;
    let mut command = command(options, target);
    command
        .args([format!("-max_total_time={}", options.time), format!("-max_len={MOST_BYTES}")])
        .args(["-print_final_stats=1", "-close_fd_mask=3", "-use_value_profile=0"])
        .arg(format!("-artifact_prefix={}/", findings.display()));
    if let Some(runs) = options.runs {
        command.arg(format!("-runs={runs}"));
    }
    let dictionary = Path::new(env!("CARGO_MANIFEST_DIR")).join("dictionaries").join(target);
    if dictionary.exists() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    command.arg(folder("corpus")?).arg(options.folder.join("seeds").join(target));
    if corpus(target).exists() {
        command.arg(corpus(target));
    }
    let start = Instant::now();
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let mut figures = Figures::default();
    let mut shown = start;
    for line in
        child.stderr.take().into_iter().flat_map(|stderr| BufReader::new(stderr).split(b'\n'))
    {
        let line = line?;
        log.write_all(&line)?;
        log.write_all(b"\n")?;
        if figures.read(&String::from_utf8_lossy(&line)) && shown.elapsed() > PROGRESS {
            shown = Instant::now();
            let Figures { executions, edges, .. } = figures;
            let seconds = start.elapsed().as_secs();
            println!("{target}: {executions} executions in {seconds} s, {edges} edges");
        }
    }
    let status = child.wait()?;
    let (seconds, passed) = (start.elapsed().as_secs_f64(), status.success());
    let counted = folder("executions")?.join("count");
    let before = fs::read_to_string(&counted).ok().and_then(|count| count.trim().parse().ok());
    let total = figures.executions + before.unwrap_or(0);
    fs::write(&counted, total.to_string())?;
    let outcome = Outcome { target: target.to_owned(), figures, total, seconds, passed };
    let what = if passed { "done" } else { "FAILED" };
    println!("{target}: {what} after {} executions in {seconds:.0} s", outcome.figures.executions);
    Ok(outcome)
}

/// What a target says to an input that fails.
fn message(options: &Options, target: &str, finding: &str) -> io::Result<String> {
    let output = command(options, target).arg(finding).output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let of_panic = text.lines().skip_while(|line| !line.contains("panicked at")).take(4);
    let lines: Vec<&str> =
        of_panic.take_while(|line| !line.starts_with("==") && !line.starts_with("stack")).collect();
    Ok(if lines.is_empty() {
        "it hangs, or takes too much memory".to_owned()
    } else {
        lines.join("\n")
    })
}

/// Replaces the corpus in the source tree by the inputs that it takes to meet as much.
fn minimise(options: &Options, target: &str) -> io::Result<()> {
    let merged = options.folder.join("merged").join(target);
    if merged.exists() {
        fs::remove_dir_all(&merged)?;
    }
    fs::create_dir_all(&merged)?;
    let mut command = command(options, target);
    command.args(["-set_cover_merge=1", "-close_fd_mask=3"]).arg(format!("-max_len={MOST_KEPT}"));
    command.arg(&merged).arg(options.folder.join("corpus").join(target));
    if corpus(target).exists() {
        command.arg(corpus(target));
    }
    if !command.stderr(Stdio::null()).status()?.success() {
        return Err(io::Error::other(format!("{target}: the corpus cannot be minimised")));
    }
    let mut files: Vec<(u64, PathBuf)> = fs::read_dir(&merged)?
        .map(|entry| entry.and_then(|entry| Ok((entry.metadata()?.len(), entry.path()))))
        .collect::<io::Result<_>>()?;
    files.sort();
    // The longest meet most.
    let left_out = files.len().saturating_sub(MOST_FILES);
    let corpus = corpus(target);
    fs::create_dir_all(&corpus)?;
    // What was a finding stays.
    for entry in fs::read_dir(&corpus)? {
        let path = entry?.path();
        if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("finding-")) {
            fs::remove_file(path)?;
        }
    }
    for (_, path) in &files[left_out..] {
        let name = path.file_name().map(|name| name.to_string_lossy()[..12].to_owned());
        fs::copy(path, corpus.join(name.unwrap_or_default()))?;
    }
    println!("{target}: {} of {} inputs", files.len() - left_out, files.len());
    Ok(())
}

//! A VM as a job of Slurm.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use vmm::error::printable;

use super::args::FleetRunArgs;
use super::slurm::{call, field};
use crate::failure::{EXIT_REFUSED, Failure};
use crate::output::{Form, say};

/// Below the folder that has the programs' folder.
const SCRIPT: &str = "share/tessera/fleet/slurm/vm.job";
/// Between two looks at a job: each is a request to the controller, which serves the whole cluster.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long a controller may be away, which is restarted or moves to its backup meanwhile.
const PATIENCE: Duration = Duration::from_secs(120);
/// The states in which nothing of a job is left to come (JOB STATE CODES of squeue(1)).
const FINAL: [&str; 9] = [
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
];

/// What is known of a job.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
struct Job {
    /// Its number.
    job: u64,
    /// As Slurm calls it.
    state: String,
    /// Why it does not run.
    reason: Option<String>,
    /// Where it runs, or ran last.
    node: Option<String>,
    /// How often it was requeued.
    restarts: u64,
    /// The exit status of its script, once it has ended.
    status: Option<u8>,
}

/// Submits a job and follows it; the exit status of its VM.
///
/// # Errors
/// When Slurm refuses the job, or its controller does not answer for two minutes.
pub(super) fn run(args: &FleetRunArgs, form: Form) -> Result<u8, Failure> {
    let words = submission(args)?;
    let answer = call(Path::new("sbatch"), &words)?;
    let job = submitted(&answer)?;
    say(&format!("job {job} is submitted"));
    if args.detach {
        form.show(&Job { job, state: "PENDING".to_owned(), ..Job::default() }, |_| {
            format!("{job}\n")
        })?;
        return Ok(0);
    }
    let end = follow(job)?;
    form.show(&end, Job::line)?;
    Ok(end.exit())
}

/// The words for sbatch.
fn submission(args: &FleetRunArgs) -> Result<Vec<OsString>, Failure> {
    let script = match &args.script {
        Some(script) => script.clone(),
        None => installed_script()?,
    };
    let mut words: Vec<OsString> = vec!["--parsable".into()];
    words.push(format!("--gres={}", args.gres).into());
    words.push(format!("--mem={}", args.mem).into());
    words.extend(args.options.iter().cloned());
    words.push(script.into());
    let named = args.vm.first().is_some_and(|word| word == "tessera");
    words.extend(args.vm.iter().skip(usize::from(named)).cloned());
    Ok(words)
}

fn installed_script() -> Result<PathBuf, Failure> {
    let program = std::env::current_exe().ok();
    let prefix = program.as_deref().and_then(|program| program.parent()?.parent());
    let script = prefix.map(|prefix| prefix.join(SCRIPT)).filter(|script| script.is_file());
    script.ok_or_else(|| {
        Failure::usage("there is no job script beside this program: name it with --script PATH")
    })
}

/// The number in the answer of `sbatch --parsable`: `JOB` or `JOB;CLUSTER`.
fn submitted(answer: &str) -> Result<u64, Failure> {
    let number = answer.lines().last().and_then(|line| line.split(';').next());
    number.and_then(|number| number.trim().parse().ok()).ok_or_else(|| {
        Failure::refused(format!("sbatch names no job: {}", printable(answer.trim())))
    })
}

/// Says what becomes of a job until it has ended.
fn follow(number: u64) -> Result<Job, Failure> {
    let mut known = Job::default();
    let mut seen = Instant::now();
    loop {
        match look(number) {
            Ok(job) => {
                seen = Instant::now();
                if job != known && !job.has_ended() {
                    say(job.line().trim_end());
                }
                if job.has_ended() {
                    return Ok(job);
                }
                known = job;
            }
            Err(failure) if seen.elapsed() > PATIENCE || is_forgotten(&failure) => {
                return Err(failure);
            }
            Err(_) => {}
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Slurm forgets a job MinJobAge after its end.
fn is_forgotten(failure: &Failure) -> bool {
    failure.message.contains("Invalid job id")
}

fn look(number: u64) -> Result<Job, Failure> {
    let words = ["--oneliner", "show", "job", &number.to_string()];
    Ok(Job::of(number, &call(Path::new("scontrol"), &words)?))
}

impl Job {
    fn of(job: u64, line: &str) -> Self {
        let owned = |name| field(line, name).map(printable);
        let state = owned("JobState").unwrap_or_default();
        let reason = owned("Reason").filter(|reason| reason != "None");
        let node = owned("BatchHost").or_else(|| owned("NodeList"));
        let restarts = field(line, "Restarts").and_then(|count| count.parse().ok()).unwrap_or(0);
        let mut job = Self { job, state, reason, node, restarts, status: None };
        if job.has_ended() {
            job.status = field(line, "ExitCode").and_then(status);
        }
        job
    }

    fn has_ended(&self) -> bool {
        FINAL.contains(&self.state.as_str())
    }

    fn line(&self) -> String {
        let mut line = format!("job {}: {}", self.job, self.state.to_lowercase());
        if let Some(node) = &self.node {
            line.push_str(&format!(" on {node}"));
        }
        if let Some(reason) = &self.reason {
            line.push_str(&format!(" ({reason})"));
        }
        if self.restarts > 0 {
            line.push_str(&format!(", requeued {} times", self.restarts));
        }
        if let Some(status) = self.status {
            line.push_str(&format!(", exit status {status}"));
        }
        line + "\n"
    }

    /// A job that was cancelled, or whose node failed, has the status 0 as well.
    fn exit(&self) -> u8 {
        match (self.status, self.state.as_str()) {
            (Some(0), "COMPLETED") => 0,
            (Some(0) | None, _) => EXIT_REFUSED,
            (Some(status), _) => status,
        }
    }
}

/// Of `STATUS:SIGNAL`, as a shell has it.
fn status(code: &str) -> Option<u8> {
    let (status, signal) = code.split_once(':')?;
    match (status.parse::<u8>().ok()?, signal.parse::<u8>().ok()?) {
        (status, 0) => Some(status),
        (_, signal) => Some(signal.saturating_add(128)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_what_slurm_says_of_it() {
        let line = "JobId=7 JobName=vm JobState=PENDING Reason=Resources Dependency=(null) Restarts=0 \
                    ExitCode=0:0 NodeList=(null)";
        let pending = Job::of(7, line);
        assert_eq!(pending.line(), "job 7: pending (Resources)\n");
        assert!(!pending.has_ended());

        let line = "JobState=RUNNING Reason=None Restarts=2 ExitCode=0:0 NodeList=n2 BatchHost=n2";
        assert_eq!(Job::of(7, line).line(), "job 7: running on n2, requeued 2 times\n");

        let line = "JobState=FAILED Reason=NonZeroExitCode Restarts=0 ExitCode=11:0 BatchHost=n2";
        let failed = Job::of(7, line);
        assert_eq!(failed.line(), "job 7: failed on n2 (NonZeroExitCode), exit status 11\n");
        assert_eq!(failed.exit(), 11);
    }

    #[test]
    fn only_a_job_that_has_completed_succeeds() {
        let exit = |line| Job::of(1, line).exit();

        assert_eq!(exit("JobState=COMPLETED ExitCode=0:0"), 0);
        assert_eq!(exit("JobState=CANCELLED ExitCode=0:0"), EXIT_REFUSED);
        assert_eq!(exit("JobState=FAILED ExitCode=0:9"), 137);
        assert_eq!(exit("JobState=NODE_FAIL"), EXIT_REFUSED);
        assert_eq!(exit("JobState=FAILED ExitCode=nonsense"), EXIT_REFUSED);
    }

    #[test]
    fn a_submission_names_its_job() {
        assert_eq!(submitted("12\n"), Ok(12));
        assert_eq!(submitted("12;cluster\n"), Ok(12));
        assert!(submitted("").is_err());
    }
}

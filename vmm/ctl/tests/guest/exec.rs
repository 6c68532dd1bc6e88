//! Commands: streams, status, signals, terminal, and who outlives whom.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Stdio};

use rustix::process::Signal;

use super::common::until;
use super::harness::{Guest, anonymous_kib, runs, signal, text};

/// The number that a command has written to a file.
fn number(path: &std::path::Path) -> u32 {
    until("a number in the file", || fs::read_to_string(path).ok()?.trim().parse().ok())
}

fn piped(guest: &Guest, arguments: &[&str]) -> Child {
    guest
        .command("exec", arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn streams_are_separate_and_the_status_is_the_commands() {
    let guest = Guest::start();

    let output = guest.sh("echo out; echo err >&2; exit 3");

    assert_eq!((text(&output.stdout), text(&output.stderr)), ("out\n".into(), "err\n".into()));
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn a_signal_that_ends_the_command_is_128_and_its_number() {
    let guest = Guest::start();

    assert_eq!(guest.sh("kill -TERM $$").status.code(), Some(143));
    assert_eq!(guest.sh("kill -KILL $$").status.code(), Some(137));
}

#[test]
fn what_cannot_be_run_has_codes_of_its_own() {
    let guest = Guest::start();
    fs::write(guest.path("text"), "no program").unwrap();
    let text_file = guest.path("text");

    for (arguments, code, message) in [
        (&["nonexistent-program"][..], 127, "no program nonexistent-program"),
        (&[text_file.to_str().unwrap()], 126, "cannot be executed"),
        (&["--cwd", "/nonexistent", "true"], 125, "/nonexistent cannot be entered"),
        (&["--user", "nonexistent", "true"], 125, "no user nonexistent"),
        (&["--env", "NOVALUE", "true"], 64, "NAME=VALUE"),
        (&[], 64, "CMD"),
    ] {
        let output = guest.run("exec", arguments);

        assert_eq!(output.status.code(), Some(code), "{arguments:?} {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(message), "{}", text(&output.stderr));
    }
}

#[test]
fn more_arguments_than_a_request_takes_are_refused_by_name() {
    let guest = Guest::start();
    let words = vec!["x"; 5000];

    let long = guest.run("exec", &["echo", &"x".repeat(70_000)]);
    let many = guest.run("exec", &[&["echo"], &words[..]].concat());
    // Not UTF-8, as an argument may be.
    let raw = std::os::unix::ffi::OsStrExt::from_bytes(b"\xff\xfe");
    let raw =
        guest.command("exec", &["printf", "%s"]).arg::<&std::ffi::OsStr>(raw).output().unwrap();

    assert_eq!((long.status.code(), many.status.code()), (Some(125), Some(125)));
    assert!(text(&long.stderr).contains("64 KiB"), "{}", text(&long.stderr));
    assert!(text(&many.stderr).contains("4096"), "{}", text(&many.stderr));
    assert_eq!(raw.stdout, b"\xff\xfe");
}

#[test]
fn the_environment_is_the_commands_own() {
    let guest = Guest::start();
    let folder = fs::canonicalize(guest.folder.path()).unwrap();

    let output = guest
        .command("exec", &["--env", "A=b=c", "--cwd", folder.to_str().unwrap()])
        .args(["--", "sh", "-c", "echo $A; pwd; echo $PATH; env | grep -c ^CARGO"])
        .output()
        .unwrap();

    let lines = text(&output.stdout);
    let lines: Vec<&str> = lines.lines().collect();
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(lines, ["b=c", folder.to_str().unwrap(), path, "0"]);
}

#[test]
fn a_command_has_a_session_default_signals_and_three_descriptors() {
    let guest = Guest::start();

    let output = guest.run(
        "exec",
        &["--", "sh", "-c", "exec grep -E '^(Sig(Blk|Ign)|NSsid|NSpgid|Pid)' /proc/self/status"],
    );
    let descriptors = guest.run("exec", &["--", "ls", "/proc/self/fd"]);

    let status = text(&output.stdout);
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().to_owned()
    };
    assert_eq!((field("SigBlk"), field("SigIgn")), ("0".repeat(16), "0".repeat(16)));
    assert_eq!((field("NSsid"), field("NSpgid")), (field("Pid"), field("Pid")));
    // The fourth is that of the folder which ls reads.
    assert_eq!(text(&descriptors.stdout), "0\n1\n2\n3\n");
}

#[test]
fn a_command_is_not_kept_from_the_kernel_when_memory_is_short() {
    let guest = Guest::start();
    fs::write(format!("/proc/{}/oom_score_adj", guest.agent()), "7").unwrap();

    let output = guest.run("exec", &["cat", "/proc/self/oom_score_adj"]);

    assert_eq!(text(&output.stdout), "0\n");
}

#[test]
fn another_user_has_its_number_and_its_groups() {
    let guest = Guest::start();
    if !rustix::process::geteuid().is_root() {
        // Only root can become another user: the refusal is all there is to see.
        let output = guest.run("exec", &["--user", "65534", "--", "id", "-u"]);
        assert_eq!(output.status.code(), Some(125));
        return;
    }

    let output =
        guest.run("exec", &["--user", "65534", "--cwd", "/", "--", "sh", "-c", "id -u; id -G"]);

    assert_eq!(text(&output.stdout), "65534\n65534\n", "{}", text(&output.stderr));
}

#[test]
fn input_is_carried_to_its_end() {
    let guest = Guest::start();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let mut child = piped(&guest, &["--", "cat"]);

    let mut input = child.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || input.write_all(&sent).unwrap());
    let output = child.wait_with_output().unwrap();

    writer.join().unwrap();
    assert!(output.stdout == bytes, "{} bytes of {}", output.stdout.len(), bytes.len());
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_hundred_mib_of_output_arrive_whole() {
    let guest = Guest::start();

    let mut child = piped(&guest, &["--", "sh", "-c", "head -c 104857600 /dev/zero"]);
    let output = child.stdout.take().unwrap();
    let sum = std::process::Command::new("sha256sum").stdin(output).output().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));

    // The digest of 100 MiB of zeros.
    let expected = "20492a4d0d84f8beb1767f6616229f85d44c2827b64bdbfb260ee12fa1109e0e";
    assert_eq!(text(&sum.stdout).split(' ').next().unwrap(), expected);
}

#[test]
fn a_reader_that_leaves_ends_the_command_by_sigpipe() {
    let guest = Guest::start();
    let mut child = piped(&guest, &["--", "yes"]);

    let mut some = [0; 4];
    child.stdout.take().unwrap().read_exact(&mut some).unwrap();

    assert_eq!(child.wait().unwrap().code(), Some(141));
}

#[test]
fn a_command_that_closes_its_input_stops_the_writer() {
    let guest = Guest::start();
    let mut child = piped(&guest, &["--", "sh", "-c", "exec <&-; echo closed; sleep 1000"]);
    let mut line = [0; 7];
    child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();

    let mut input = child.stdin.take().unwrap();
    let chunk = [b'x'; 4096];
    until("the writer gets EPIPE", || input.write_all(&chunk).err());

    child.kill().unwrap();
    child.wait().unwrap();
}

/// Input that is not read does not hold up a signal.
#[test]
fn signals_get_through_while_input_waits() {
    let guest = Guest::start();
    let ready = guest.path("ready");
    let script =
        format!("trap 'exit 9' TERM; echo 1 >{}; while :; do sleep 0.05; done", ready.display());
    let mut child = piped(&guest, &["--", "sh", "-c", &script]);
    let mut input = child.stdin.take().unwrap();
    std::thread::spawn(move || {
        // As much as there is room for on the way, and then it waits.
        while input.write_all(&[0; 65_536]).is_ok() {}
    });
    number(&ready);

    signal(child.id(), Signal::TERM);

    assert_eq!(child.wait().unwrap().code(), Some(9));
}

/// Nor does output that is not read here.
#[test]
fn signals_get_through_while_output_waits() {
    let guest = Guest::start();
    let ready = guest.path("ready");
    let script = format!("echo $$ >{}; exec yes", ready.display());
    let mut child = piped(&guest, &["--", "sh", "-c", &script]);
    let command = number(&ready);

    signal(child.id(), Signal::INT);
    until("the command ends", || (!runs(command)).then_some(()));

    // What was on the way is read, and then there is an end.
    let mut rest = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn the_third_signal_ends_the_client() {
    let guest = Guest::start();
    let ready = guest.path("ready");
    let script = format!("trap '' INT; echo $$ >{}; sleep 1000", ready.display());
    let mut child = piped(&guest, &["--die-with-client", "--", "sh", "-c", &script]);
    let command = number(&ready);

    let end = until("the client ends", || {
        signal(child.id(), Signal::INT);
        child.try_wait().unwrap()
    });

    assert_eq!(end.code(), Some(130));
    until("the command ends", || (!runs(command)).then_some(()));
}

#[test]
fn a_grandchild_that_holds_the_output_does_not_keep_the_client() {
    let guest = Guest::start();
    let left = guest.path("left");

    let output = guest.sh(&format!("sleep 1000 & echo $! >{}; echo done", left.display()));

    assert_eq!((text(&output.stdout), output.status.code()), ("done\n".into(), Some(0)));
    let left = number(&left);
    assert!(runs(left));
    signal(left, Signal::KILL);
}

/// One that writes for ever does not either; what the command itself has written is there.
#[test]
fn a_grandchild_that_writes_does_not_keep_the_client() {
    let guest = Guest::start();

    let output = guest.sh("yes grandchild & echo own >&2; exit 5");

    assert_eq!((text(&output.stderr), output.status.code()), ("own\n".into(), Some(5)));
}

#[test]
fn output_at_the_very_end_is_not_lost() {
    let guest = Guest::start();

    for round in 0..20 {
        let output = guest.sh("head -c 60000 /dev/zero; head -c 60000 /dev/zero >&2");
        assert_eq!((output.stdout.len(), output.stderr.len()), (60_000, 60_000), "round {round}");
    }
}

#[test]
fn a_command_outlives_a_client_that_is_killed() {
    let guest = Guest::start();
    let (pid, go, done) = (guest.path("pid"), guest.path("go"), guest.path("done"));
    let script = format!(
        "echo $$ >{}; cat >/dev/null; until [ -e {} ]; do echo output; sleep 0.02; done; head -c 1000000 /dev/zero; echo 1 >{}",
        pid.display(),
        go.display(),
        done.display()
    );
    let mut child = piped(&guest, &["--", "sh", "-c", &script]);
    let command = number(&pid);

    child.kill().unwrap();
    child.wait().unwrap();
    fs::write(&go, "").unwrap();

    assert_eq!(number(&done), 1);
    until("the command ends and is waited for", || {
        (!std::path::Path::new(&format!("/proc/{command}")).exists()).then_some(())
    });
}

#[test]
fn die_with_client_kills_the_process_group() {
    let guest = Guest::start();
    let (first, second) = (guest.path("first"), guest.path("second"));
    let script = format!(
        "echo $$ >{}; sh -c 'echo $$ >{}; sleep 1000'; true",
        first.display(),
        second.display()
    );
    let mut child = piped(&guest, &["--die-with-client", "--", "sh", "-c", &script]);
    let (first, second) = (number(&first), number(&second));

    child.kill().unwrap();
    child.wait().unwrap();

    for command in [first, second] {
        until("the group is killed", || (!runs(command)).then_some(()));
    }
}

#[test]
fn an_agent_that_dies_ends_the_client_and_not_the_command() {
    let mut guest = Guest::start();
    let pid = guest.path("pid");
    let child =
        piped(&guest, &["--", "sh", "-c", &format!("echo $$ >{}; exec sleep 1000", pid.display())]);
    let command = number(&pid);

    guest.kill_agent();
    let output = child.wait_with_output().unwrap();

    assert_eq!(output.status.code(), Some(125));
    assert!(
        text(&output.stderr).contains("agent closed the connection"),
        "{}",
        text(&output.stderr)
    );
    assert!(runs(command));
    signal(command, Signal::KILL);
}

#[test]
fn fifty_commands_at_once() {
    let guest = Guest::start();

    let children: Vec<Child> = (0..50)
        .map(|number| {
            piped(&guest, &["--", "sh", "-c", &format!("echo {number}; cat; exit {number}")])
        })
        .collect();
    for (number, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        assert_eq!(text(&output.stdout), format!("{number}\n"), "{}", text(&output.stderr));
        assert_eq!(output.status.code(), Some(number as i32));
    }
}

#[test]
fn a_slow_reader_bounds_the_memory_of_both() {
    let guest = Guest::start();
    let ready = guest.path("ready");
    let script = format!("echo $$ >{}; exec cat /dev/zero", ready.display());
    let mut child = piped(&guest, &["--", "sh", "-c", &script]);
    let command = number(&ready);
    // The command sleeps in a write once all that lies between is full.
    let written = || fs::read_to_string(format!("/proc/{command}/io")).unwrap_or_default();
    let mut before = written();
    until("the command waits", || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        let now = written();
        let still = now == before && now.contains("wchar");
        before = now;
        still.then_some(())
    });

    let (agent, client) = (anonymous_kib(guest.agent()), anonymous_kib(child.id()));

    assert!(agent < 4096 && client < 8192, "agent {agent} KiB, client {client} KiB");
    child.kill().unwrap();
    child.wait().unwrap();
}

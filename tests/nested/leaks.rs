//! A VM that has ended leaves its host as it was.

use std::fs;

use testing::guest::Plan;
use testing::lab::Lab;
use testing::procfs::first_number;
use testing::wait::until;

/// What a host has in use.
#[derive(Debug)]
struct Usage {
    threads: u64,
    files: u64,
    sockets: u64,
    /// In KiB.
    memory: u64,
}

fn usage() -> Usage {
    let tasks = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.bytes().all(|byte| byte.is_ascii_digit()).then_some(name)
    });
    let own = |pid: &String| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "tessera")
    };
    let threads = tasks
        .filter(own)
        .map(|pid| fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count) as u64)
        .sum();
    let free = first_number("/proc/meminfo", "MemFree:");
    Usage {
        threads,
        files: first_number("/proc/sys/fs/file-nr", ""),
        sockets: first_number("/proc/net/sockstat", "sockets: used"),
        memory: first_number("/proc/meminfo", "MemTotal:") - free,
    }
}

#[test]
#[ignore = "long"]
fn a_vm_that_is_paused_looked_at_and_listened_to_leaks_nothing() {
    Lab::new().run(|| {
        let mut guest = Plan::workload("count,100").with("--cpus", "2").start();
        guest.report("tick");
        let use_it = |guest: &mut testing::guest::Guest| {
            for _ in 0..20 {
                let mut client = guest.client();
                client.pause().unwrap();
                client.metrics().unwrap();
                client.resume().unwrap();
            }
            // An answer to a new client says that the ones before have been let go.
            guest.client().instance().unwrap();
        };
        let count =
            |what: &str, pid: u32| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
        let dirty = |pid| testing::memory::own_anonymous(pid, 512 << 20);
        use_it(&mut guest);
        let pid = guest.pid();
        let before = (count("fd", pid), count("task", pid), dirty(pid));

        for _ in 0..3 {
            use_it(&mut guest);
        }

        let after = (count("fd", pid), count("task", pid), dirty(pid));
        assert!(after.0 <= before.0 + 1, "descriptors: {before:?} {after:?}");
        assert_eq!(after.1, before.1, "threads: {before:?} {after:?}");
        assert!(after.2 <= before.2 + (32 << 10), "memory: {before:?} {after:?}");
        guest.client().stop().unwrap();
        assert_eq!(guest.finish().code, Some(12));
    });
}

#[test]
#[ignore = "long"]
fn five_boots_in_a_row_leave_no_thread_file_socket_or_page() {
    Lab::new().emulated().run(|| {
        let run = || drop(Plan::workload("smp").with("--cpus", "2").run().expect_power_off());
        // The first fills the host's caches.
        run();
        let before = usage();

        for _ in 0..5 {
            run();
        }

        // The kernel frees descriptors and page lists behind a grace period, and counts in batches.
        let after = until("files and sockets that are closed", || {
            let after = usage();
            let is_closed = after.files <= before.files + 32 && after.sockets <= before.sockets + 2;
            is_closed.then_some(after)
        });
        println!("before {before:?}, after {after:?}");
        assert_eq!(after.threads, 0);
        // One guest touches some 60 MiB: a leak of one chunk in each of five boots is over this. What processors keep in
        // lists of free pages is not counted as free, and goes back after a while.
        until("memory that is free again", || {
            (usage().memory < before.memory + (8 << 10)).then_some(())
        });
    });
}

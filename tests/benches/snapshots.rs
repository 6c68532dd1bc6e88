//! What saving and restoring a guest costs, in instructions of the nested host.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use testing::figures::{Entry, counted, kept};
use testing::guest::{Guest, Plan};
use testing::lab::{Lab, artifact};
use testing::memory;
use testing::scratch::Scratch;
use testing::template::Holder;
use vmm::metrics::monotonic;

const BENCH: &str = "snapshots";

const LIMIT: Duration = Duration::from_secs(900);

/// Instructions that a save of an idle guest of 256 MiB shall take at most.
const AIM_SAVE: f64 = 120e6;

/// A save of an idle guest of 1 GiB may take so many times [`AIM_SAVE`].
const AIM_GROWTH: f64 = 1.5;

/// Instructions from exec to the guest's first where its memory is read later.
const AIM_FIRST: f64 = 3e6;

/// Bytes that an idle clone shall have for itself at most, guest memory and the VMM's own together.
const AIM_CLONE: f64 = 4e6;

fn idle(memory: &str) -> Plan {
    Plan::workload("idle").with("--memory", memory).with("--mte", "require")
}

fn now() -> u64 {
    monotonic().as_nanos() as u64
}

fn millions(instructions: u64) -> f64 {
    instructions as f64 / 1e6
}

fn size(file: &Path) -> f64 {
    fs::metadata(file).unwrap().len() as f64 / f64::from(1 << 20)
}

/// Saves a paused guest; returns the instructions from request to answer.
fn save(guest: &Guest, folder: &Path) -> u64 {
    save_as(guest, folder, "Full")
}

fn save_as(guest: &Guest, folder: &Path, what: &str) -> u64 {
    fs::create_dir_all(folder).unwrap();
    let mut client = guest.client();
    let before = now();
    let files = json!({
        "snapshot_type": what,
        "snapshot_path": folder.join("state"),
        "mem_file_path": folder.join("memory"),
    });
    client.send("PUT", "/snapshot/create", &files).unwrap();
    now() - before
}

/// What a restored guest costs.
struct Cost {
    /// From the start of the program to the guest's first instruction.
    first: u64,
    /// What only this VM has of guest memory, 2 s later.
    guest: u64,
    /// What only it has of all else, the program's own pages among it, which are dirty for good in an initramfs.
    own: u64,
}

fn restore(plan: Plan) -> Cost {
    let before = now();
    let guest = plan.start();
    guest.answers();
    // The answer has come after the guest has run; a second is what an idle guest does of its own.
    std::thread::sleep(Duration::from_secs(2));
    let metrics = guest.client().metrics().unwrap();
    let first = metrics["vcpu"]["first_entry_monotonic_nanoseconds"].as_u64().unwrap();
    // What the only clone has mapped of the template is private to it as well, and not its own.
    let (of_guest, of_process): (Vec<_>, Vec<_>) =
        memory::mappings(guest.pid()).into_iter().partition(|mapping| mapping.has("mt"));
    guest.stop();
    Cost {
        first: first - before,
        guest: of_guest.iter().map(|mapping| mapping.anonymous).sum(),
        own: of_process.iter().map(|mapping| mapping.private_dirty).sum(),
    }
}

#[test]
fn saving_and_restoring_an_idle_guest() {
    Lab::new().counting_instructions().timeout(LIMIT).run(|| {
        let scratch = Scratch::new();
        for (memory, most) in [("256M", AIM_SAVE), ("1G", AIM_SAVE * AIM_GROWTH)] {
            let folder = scratch.join(memory);
            let mut guest = idle(memory).start();
            guest.report("ready");
            let resident = guest.client().footprint().unwrap().resident_bytes;
            guest.client().pause().unwrap();
            let cold = save(&guest, &folder);
            let warm = save(&guest, &folder);
            guest.stop();
            println!(
                "{memory}: saved in {:.1} million instructions ({:.1} the first time): memory file {:.1} MiB, \
                 state {:.3} MiB, of {:.1} MiB resident",
                millions(warm),
                millions(cold),
                size(&folder.join("memory")),
                size(&folder.join("state")),
                resident as f64 / f64::from(1 << 20),
            );
            let set = |figure: Entry| figure.guest(memory, 1).supply("ledger");
            set(counted(BENCH, "save", "instructions")).case("once before").record(warm as f64);
            set(counted(BENCH, "save", "instructions")).case("the first time").at_most(most).record(cold as f64);
            for file in ["memory", "state"] {
                set(kept(BENCH, "files", "MiB")).case(file).record(size(&folder.join(file)));
            }
            let holder = Holder::start(&folder, &[]);
            for (how, plan) in [
                ("", Plan::restore(&folder)),
                (" lazily", Plan::restore(&folder).flag("--lazy")),
                (" as a clone", holder.plan(&folder)),
            ] {
                restore(plan.clone());
                let Cost { first, guest, own } = restore(plan);
                let case = format!("restored{how}");
                let set = |figure: Entry| set(figure).case(&case);
                let instructions = set(counted(BENCH, "exec to first guest instruction", "instructions"));
                let instructions = if how.is_empty() { instructions } else { instructions.at_most(AIM_FIRST) };
                instructions.record(first as f64);
                if how == " as a clone" {
                    let all = set(kept(BENCH, "private memory of guest and VMM", "bytes"));
                    all.at_most(AIM_CLONE).record((guest + own) as f64);
                }
                set(kept(BENCH, "private memory of the guest", "bytes")).record(guest as f64);
                set(kept(BENCH, "private memory of the VMM", "bytes")).record(own as f64);
                println!(
                    "{memory}: restored{how} in {:.2} million instructions to the first of the guest; private after 2 s: \
                     {:.2} MB of the guest, {:.2} MB of the VMM",
                    millions(first),
                    guest as f64 / 1e6,
                    own as f64 / 1e6,
                );
            }
        }
    });
}

/// What so many VMs take of the host together, each in MB: their private memory, and their share of the rest.
fn together(guests: &[Guest]) -> (f64, f64) {
    let sum = |of: fn(memory::Mapping) -> u64| {
        let all = guests.iter().flat_map(|guest| memory::mappings(guest.pid()));
        all.map(of).sum::<u64>() as f64 / 1e6
    };
    (sum(|mapping| mapping.private_dirty), sum(|mapping| mapping.proportional))
}

#[test]
fn sixteen_clones_beside_sixteen_boots() {
    const VMS: usize = 16;

    Lab::new().timeout(LIMIT).run(|| {
        let scratch = Scratch::new();
        let folder = scratch.join("one");
        let mut boots: Vec<_> = (0..VMS).map(|_| idle("128M").start()).collect();
        boots.iter_mut().for_each(|guest| drop(guest.report("ready")));
        std::thread::sleep(Duration::from_secs(2));
        let booted = together(&boots);
        let one = boots.pop().unwrap();
        one.client().pause().unwrap();
        save(&one, &folder);
        one.stop();
        boots.into_iter().for_each(Guest::stop);

        let holder = Holder::start(&folder, &[]);
        let clones: Vec<_> = (0..VMS).map(|_| holder.plan(&folder).start()).collect();
        clones.iter().for_each(Guest::answers);
        std::thread::sleep(Duration::from_secs(2));
        let cloned = together(&clones);
        clones.into_iter().for_each(Guest::stop);

        println!(
            "{VMS} VMs of 128 MiB, idle: booted {:.1} MB private ({:.1} MB proportional), cloned {:.1} MB ({:.1} MB)",
            booted.0, booted.1, cloned.0, cloned.1
        );
        for (case, (private, proportional)) in [("booted", booted), ("cloned", cloned)] {
            for (name, value) in [("private", private), ("proportional", proportional)] {
                let figure = kept(BENCH, &format!("memory of 16 VMs, {name}"), "MB");
                figure.case(case).guest("128M", 1).supply("ledger").record(value);
            }
        }
        assert!(cloned.1 < booted.1, "clones take more than VMs that were booted");
    });
}

/// Saves a guest that runs; returns the instructions from request to answer.
fn pause_and_save(guest: &Guest, folder: &Path, what: &str) -> u64 {
    guest.client().pause().unwrap();
    let spent = save_as(guest, folder, what);
    guest.client().resume().unwrap();
    spent
}

#[test]
fn diffs_of_an_idle_guest() {
    Lab::new().counting_instructions().timeout(LIMIT).run(|| {
        let scratch = Scratch::new();
        let folder = scratch.join("full");
        let mut guest = idle("256M").flag("--track-dirty-pages").start();
        guest.report("ready");
        let record = |case: &str, spent: u64, length: u64| {
            let set = |figure: Entry| figure.case(case).guest("256M", 1).supply("ledger");
            set(counted(BENCH, "save while it runs", "instructions")).record(spent as f64);
            set(kept(BENCH, "memory file of it", "bytes")).record(length as f64);
        };
        let length = || fs::metadata(folder.join("memory")).unwrap().len();
        for (time, what) in (0..).zip(["Full", "Diff", "Diff", "Diff"]) {
            // What an idle guest writes in a second.
            std::thread::sleep(Duration::from_secs(1));
            let spent = pause_and_save(&guest, &folder, what);
            println!(
                "256M, {what}: {:.1} million instructions, memory file {:.2} MiB",
                millions(spent),
                size(&folder.join("memory"),)
            );
            let case = if time == 0 { "full".to_owned() } else { format!("diff {time}") };
            record(&case, spent, length());
        }
        guest.client().pause().unwrap();
        for time in 1..=2 {
            let spent = save_as(&guest, &folder, "Diff");
            println!(
                "256M, Diff at once: {:.1} million instructions, memory file {} B",
                millions(spent),
                length()
            );
            record(&format!("diff at once {time}"), spent, length());
        }
        guest.stop();
    });
}

/// From the start of the program to an answer of the guest's agent, in instructions.
fn answered(plan: Plan) -> u64 {
    let before = now();
    let guest = plan.start();
    guest.answers();
    guest.agent_answers();
    let took = now() - before;
    guest.stop();
    took
}

#[test]
fn the_first_answer_of_an_agent() {
    Lab::new().counting_instructions().timeout(LIMIT).run(|| {
        let (scratch, others) = (Scratch::new(), Scratch::new());
        let (folder, socket) = (scratch.join("one"), others.join("vsock"));
        let of_tests = Plan::agent(&scratch).with("--memory", "256M").with("--mte", "require");
        // As users boot it: tests leave out what takes most of the kernel's start.
        let whole = Plan::bare(&artifact("Image")).initrd(&scratch.join("initrd"));
        let whole = whole.append("quiet workload=agent").with("--memory", "256M");
        let whole = whole.with("--mte", "require").with("--vsock", socket.to_str().unwrap());
        let guest = of_tests.clone().start();
        guest.answers();
        guest.agent_answers();
        guest.client().pause().unwrap();
        save(&guest, &folder);
        guest.stop();
        let holder = Holder::start(&folder, &[]);
        let elsewhere = |plan: Plan| plan.with("--vsock", socket.to_str().unwrap());
        let mut boot = None;
        for (case, plan) in [
            ("booted", whole),
            ("booted as tests do", of_tests),
            ("restored", elsewhere(Plan::restore(&folder))),
            ("restored lazily", elsewhere(Plan::restore(&folder).flag("--lazy"))),
            ("restored as a clone", elsewhere(holder.plan(&folder))),
        ] {
            answered(plan.clone());
            let took = answered(plan);
            let boot = *boot.get_or_insert(took);
            println!(
                "{case}: {:.1} million instructions to the agent's first answer, {:.3} of a boot's",
                millions(took),
                took as f64 / boot as f64
            );
            let figure = counted(BENCH, "exec to the agent's first answer", "instructions");
            let figure = figure.case(case).guest("256M", 1).supply("ledger");
            let figure = match case.starts_with("restored") {
                true => figure.at_most(boot as f64 / 10.0),
                false => figure,
            };
            figure.record(took as f64);
        }
    });
}

/// The same guest without MTE: what is left out is to find, read, pack and check tags.
#[test]
fn what_tags_take_of_a_save() {
    Lab::new().counting_instructions().timeout(LIMIT).run(|| {
        let scratch = Scratch::new();
        let [with, without] = ["require", "off"].map(|mte| {
            let plan = Plan::workload("idle").append("nokaslr").with("--memory", "256M");
            let mut guest = plan.with("--mte", mte).start();
            guest.report("ready");
            guest.client().pause().unwrap();
            let folder = scratch.join(mte);
            save(&guest, &folder);
            let spent = save(&guest, &folder);
            guest.stop();
            (spent, size(&folder.join("memory")))
        });
        println!(
            "256M: saved in {:.1} million instructions ({:.1} MiB), without MTE {:.1} ({:.1} MiB)",
            millions(with.0),
            with.1,
            millions(without.0),
            without.1
        );
        for (case, (spent, _)) in [("with tags", with), ("without MTE", without)] {
            let figure = counted(BENCH, "save of the same guest", "instructions");
            figure.case(case).guest("256M", 1).supply("ledger").record(spent as f64);
        }
    });
}

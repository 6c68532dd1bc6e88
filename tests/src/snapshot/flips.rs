//! Snapshots of which a bit is another.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use tesseractl::client::Error;
use vmm::api::model::State;

use super::{power_off, save, small, text, verified};
use crate::dice::Dice;
use crate::guest::{Guest, Plan};
use crate::scratch::Scratch;

/// Which bits are flipped, one at a time.
#[derive(Clone, Copy, Debug)]
pub struct Flips {
    /// One of so many of the headers.
    pub one_of: usize,
    /// How many elsewhere, at random.
    pub others: usize,
    /// Of their choice.
    pub seed: u64,
}

/// Where the offset of the first section is in a state file: behind the header's numbers and the first section's kind
/// and checksum. What is before the first section is the header.
const FIRST_SECTION: u64 = 32 + 8;
/// The header of a memory file.
const MEMORY_HEADER: usize = 128;

/// A VM that has not started, and loads.
struct Waiting {
    guest: Guest,
    state: PathBuf,
    memory: PathBuf,
}

impl Waiting {
    fn new(folder: &Path) -> Self {
        let guest = Plan::waiting().start();
        guest.answers();
        Self { guest, state: folder.join("state"), memory: folder.join("memory") }
    }

    /// Why it does not load the snapshot; `None` if it does.
    fn refusal(&self) -> Option<String> {
        let load = json!({ "snapshot_path": self.state, "mem_file_path": self.memory });
        match self.guest.client().send("PUT", "/snapshot/load", &load) {
            Ok(_) => None,
            Err(Error::Refused { status: 400, message }) => {
                let state = self.guest.client().instance().unwrap().state;
                assert_eq!(state, State::NotStarted, "{message}");
                Some(message)
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Flips bits of a snapshot. Each is found when the snapshot is loaded, with the name of the file, or means nothing: the
/// guest is what it was. The VMM that has refused them all loads the whole snapshot in the end.
///
/// # Panics
/// When a bit is not found, or more than that goes wrong.
pub fn flipped(flips: Flips) {
    let scratch = Scratch::new();
    let folder = scratch.join("one");
    let mut guest = small().start();
    guest.report("ready");
    save(&guest, &folder, &["--keep-paused"]);
    guest.stop();
    let mut waiting = Waiting::new(&folder);
    let mut dice = Dice::of(flips.seed);
    for (file, path) in [waiting.state.clone(), waiting.memory.clone()].into_iter().enumerate() {
        let bytes = fs::read(&path).unwrap();
        let header = match file {
            0 => {
                let at = FIRST_SECTION as usize;
                u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
            }
            _ => MEMORY_HEADER,
        };
        assert!(header > 100 && header < 1000, "{header}");
        let open = File::options().write(true).open(&path).unwrap();
        let of_header = (0..header * 8).step_by(flips.one_of);
        let rest = (bytes.len() - header) * 8;
        let others: Vec<_> = (0..flips.others).map(|_| header * 8 + dice.below(rest)).collect();
        let (mut found, mut accepted) = (0, 0);
        for bit in of_header.chain(others) {
            let (at, byte) = ((bit / 8) as u64, bytes[bit / 8]);
            open.write_all_at(&[byte ^ (1 << (bit % 8))], at).unwrap();
            let refusal = waiting.refusal();
            open.write_all_at(&[byte], at).unwrap();
            match refusal {
                Some(message) => {
                    assert!(message.contains(text(&path)), "bit {bit}: {message}");
                    found += 1;
                }
                // Between the parts of a memory file nothing has a meaning.
                None => {
                    assert!(file == 1 && bit >= header * 8, "bit {bit} of {}", path.display());
                    waiting.guest.client().resume().unwrap();
                    verified(&mut waiting.guest);
                    power_off(waiting.guest);
                    waiting = Waiting::new(&folder);
                    accepted += 1;
                }
            }
        }
        println!("{}: {found} bits found, {accepted} without a meaning", path.display());
        assert!(accepted * 10 < found, "{accepted} of {found}");
    }
    assert_eq!(waiting.refusal(), None);
    waiting.guest.client().resume().unwrap();
    verified(&mut waiting.guest);
    power_off(waiting.guest);
}

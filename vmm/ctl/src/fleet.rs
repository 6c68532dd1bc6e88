//! Many VMs at a time. A VM that is slow or does not answer holds up no other: each is asked by one of several
//! threads, with a short patience.

use std::io::ErrorKind;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use vmm::api::model::{Balloon, InstanceInfo, TagStorage};
use vmm::registry::Vm;

use crate::client::{Client, Error};
use crate::failure::Failure;
use crate::process::Usage;

/// How long each answer of a VM is waited for.
pub const PATIENCE: Duration = Duration::from_millis(500);

/// Threads that ask: so many VMs that do not answer cost the wait for one.
const THREADS: usize = 64;

/// What is asked of each VM.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Depth {
    /// Its state and shape.
    State,
    /// Its balloon and tag storage, too.
    Memory,
}

/// What is known of a VM.
#[derive(Clone, Debug)]
pub struct Sight {
    /// Its entry.
    pub vm: Vm,
    /// What it has answered, or why it has not.
    pub answer: Result<Answer, Silence>,
    /// What its process takes.
    pub usage: Option<Usage>,
}

/// What a VM has answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its state.
    pub instance: InstanceInfo,
    /// vCPUs.
    pub vcpus: Option<u64>,
    /// The guest's memory in MiB.
    pub memory_mib: Option<u64>,
    /// Its balloon, if it has one and was asked.
    pub balloon: Option<Balloon>,
    /// Its tag storage, if it was asked.
    pub tags: Option<TagStorage>,
}

/// Why nothing is known of a VM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Silence {
    /// It was started without `--api-sock`.
    NoSocket,
    /// Its control socket is its user's.
    NoAccess,
    /// It does not answer.
    NoAnswer(String),
}

impl Sight {
    /// The state in a word.
    pub fn state(&self) -> &'static str {
        match &self.answer {
            Ok(answer) => answer.instance.state.as_str(),
            Err(Silence::NoSocket) => "no API",
            Err(Silence::NoAccess) => "no access",
            Err(Silence::NoAnswer(_)) => "no answer",
        }
    }
}

/// Asks all of these VMs. One that has ended since it was listed is left out.
pub fn survey(vms: Vec<Vm>, depth: Depth) -> Vec<Sight> {
    let all = ask_all(&vms, |vm| look(vm, depth));
    vms.into_iter()
        .zip(all)
        .filter(|(vm, answer)| !matches!(answer, Err(Silence::NoAnswer(_))) || vm.lives())
        .map(|(vm, answer)| Sight { usage: Usage::of(&vm.record), vm, answer })
        .collect()
}

/// Does something with each VM, several at a time; the results in the order of the VMs.
pub fn ask_all<T: Send>(vms: &[Vm], ask: impl Fn(&Vm) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(vms.len()));
    std::thread::scope(|scope| {
        for _ in 0..vms.len().min(THREADS) {
            scope.spawn(|| {
                while let Some((at, vm)) = take(vms, &next) {
                    let result = ask(vm);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

fn take<'a>(vms: &'a [Vm], next: &AtomicUsize) -> Option<(usize, &'a Vm)> {
    let at = next.fetch_add(1, Ordering::Relaxed);
    Some((at, vms.get(at)?))
}

/// A connection to the VM of an entry.
///
/// # Errors
/// When it has no socket, or cannot be connected to.
pub fn connect(vm: &Vm) -> Result<Client, Silence> {
    let socket = vm.record.api_sock.as_deref().ok_or(Silence::NoSocket)?;
    Client::connect(socket, PATIENCE).map_err(|error| match error {
        Error::Unreachable { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
            Silence::NoAccess
        }
        error => silent(error),
    })
}

/// What an error of a VM says of it.
pub fn silent(error: Error) -> Silence {
    Silence::NoAnswer(Failure::from(error).message)
}

fn look(vm: &Vm, depth: Depth) -> Result<Answer, Silence> {
    let mut client = connect(vm)?;
    let instance = client.instance().map_err(silent)?;
    // A VM that is not configured yet has no shape.
    let shape = permitted(client.machine_config()).map_err(silent)?.unwrap_or_default();
    let number = |name: &str| shape.get(name).and_then(Value::as_u64);
    let (mut balloon, mut tags) = (None, None);
    if depth == Depth::Memory {
        balloon = permitted(client.balloon()).map_err(silent)?;
        tags = permitted(client.tag_storage()).map_err(silent)?;
    }
    let (vcpus, memory_mib) = (number("vcpu_count"), number("mem_size_mib"));
    Ok(Answer { instance, vcpus, memory_mib, balloon, tags })
}

/// The answer, or `None` where the VM has nothing of the kind.
fn permitted<T>(answer: Result<T, Error>) -> Result<Option<T>, Error> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(Error::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

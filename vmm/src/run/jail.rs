//! `tessera run --jail`: what of the host a VM has in its jail follows from what it was asked to be.

use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use super::entry;
use super::{Error, ExitReason, Request, run_request};
use crate::config::RunArgs;
use crate::folder::folder_of;
use crate::jail::{self, Access, Plan, Side, is_there};
use crate::spec::{NetBackendSpec, PathUse, Spec, TagStorageSpec};
use crate::sys::tap::Tap;

/// How a process ends that has made a jail, or is in one.
pub enum Ended {
    /// The VM's, in the jail.
    Vm(ExitReason),
    /// The one that was started, with the status that the VM has ended with.
    Supervisor(u8),
}

/// Why memory that other VMs share cannot be had: it is given to processes of its holder's user.
const OTHER_USER: &str =
    "what holds it gives it to processes of its own user, and the VM has another";
/// Why what a VM was saved with cannot be recorded.
const OPENED_BEFORE: &str = "its file would be opened before there is a jail, with a way to the host's folders: record it \
                             without a jail";
/// Why a snapshot of the jail's own is not restored.
const READ_BEFORE: &str = "the snapshot says which taps, disks and sockets of the host the VM has, and is read as root. If you \
                           trust it, give its folder and files to root, outside of the jail's folder";
/// Where firmware describes the tag storage of a VM's own pool.
const FIRMWARE: &str = "/sys/firmware/devicetree/base";

/// Runs a guest to its end in the jail that the flags ask for. It returns in two processes.
///
/// # Errors
/// As [`run`](super::run), and when there can be no jail.
pub fn run_in_jail(args: &RunArgs) -> Result<Ended, Error> {
    if cfg!(not(target_arch = "aarch64")) {
        return Err(Error::NotArm64);
    }
    let folder = args.jail.jail.as_deref().unwrap_or(Path::new(""));
    let name = args.id.clone().unwrap_or_else(|| format!("pid.{}", std::process::id()));
    let mut plan = Plan::new(&args.jail, folder, name)?;
    let args = in_jail(args, &mut plan)?;
    let mut request = Request::of(&args)?;
    // Open until the VM's process has copies.
    let taps = show_request(&mut request, &mut plan)?;
    let side = jail::enter(plan, || entry::publish(&request, args.command_line_only()))?;
    match side {
        Side::Outside(status) => Ok(Ended::Supervisor(status)),
        Side::Inside => {
            let ended = run_request(&args, request, |_, _| Ok(None)).map(Ended::Vm);
            drop(taps);
            ended
        }
    }
}

/// The same flags with the paths that they have in the jail.
fn in_jail(args: &RunArgs, plan: &mut Plan) -> Result<RunArgs, Error> {
    for (option, is_given, why) in [
        ("--shared", args.shared, OTHER_USER),
        ("--boot-image", args.boot_image, OTHER_USER),
        ("--record-working-set", args.record_working_set, OPENED_BEFORE),
    ] {
        if is_given {
            return Err(jail::Error::Unsupported { option, why }.into());
        }
    }
    let mut args = args.clone();
    if let Some(socket) = &mut args.api_sock {
        *socket = made(socket, "the control socket", plan)?;
    }
    if let Some(folder) = &mut args.restore {
        *folder = plan.show(folder, Access::Read)?;
        if plan.is_of_its_user(folder) {
            let option = "--restore of a folder in which the jail's user may write";
            return Err(jail::Error::Unsupported { option, why: READ_BEFORE }.into());
        }
    }
    for folder in &mut args.allow {
        *folder = plan.show(folder, Access::Write)?;
    }
    Ok(args)
}

/// Shows in the jail what a VM uses, and has it use that there.
fn show_request(request: &mut Request<'_>, plan: &mut Plan) -> Result<Vec<Tap>, Error> {
    match request {
        Request::Start { spec, .. } | Request::Restore { spec, .. } => show(spec, plan),
        Request::Wait(waiting) => {
            // It is made again of what was given, when a client has changed it.
            let given = paths(waiting.draft.spec_mut());
            let taps = show(waiting.draft.spec_mut(), plan)?;
            let shown = paths(waiting.draft.spec_mut());
            if let Some((path, whole)) = given.into_iter().zip(shown).find(|(a, b)| a != b) {
                return Err(jail::Error::Relative { path, whole }.into());
            }
            match taps.is_empty() {
                true => Ok(taps),
                false => Err(jail::Error::Unsupported {
                    option: "a tap of a VM that waits for its configuration",
                    why: "give it a network namespace with the tap (--jail-netns FILE), or a kernel",
                }
                .into()),
            }
        }
    }
}

fn paths(spec: &mut Spec) -> Vec<PathBuf> {
    spec.paths_mut().into_iter().map(|(_, path)| path.clone()).collect()
}

fn show(spec: &mut Spec, plan: &mut Plan) -> Result<Vec<Tap>, Error> {
    for (path_use, path) in spec.paths_mut() {
        *path = match path_use {
            PathUse::Read => plan.show(path, Access::Read)?,
            PathUse::Write => plan.show(path, Access::Write)?,
            // The folder, in which another process may make the socket anew.
            PathUse::Connect => {
                let folder = plan.show(folder_of(path), Access::Read)?;
                folder.join(path.file_name().unwrap_or_default())
            }
            PathUse::Listen(what) => made(path, what, plan)?,
            PathUse::Make(_) if path.exists() => plan.show(path, Access::Write)?,
            PathUse::Make(what) => made(path, what, plan)?,
        };
    }
    let has_own_pool = |tags: &TagStorageSpec| tags.broker.is_none();
    if spec.tag_storage.as_ref().is_some_and(has_own_pool) && Path::new(FIRMWARE).exists() {
        plan.show(Path::new(FIRMWARE), Access::Read)?;
    }
    if spec.lock_memory {
        plan.lock_memory();
    }
    open_taps(spec, plan)
}

/// The place of what the VM makes, which is in the jail's folder.
fn made(path: &Path, what: &'static str, plan: &Plan) -> Result<PathBuf, Error> {
    let folder = plan.folder();
    let at = is_there(path).ok().filter(|at| at.starts_with(folder) && at != folder);
    at.ok_or_else(|| {
        let (path, folder) = (path.to_owned(), folder.to_owned());
        jail::Error::Outside { what, path, folder }.into()
    })
}

/// Opens the taps of the host: the VM gets descriptors, as there are none where it is. In a network namespace that was
/// named, they are there.
fn open_taps(spec: &mut Spec, plan: &mut Plan) -> Result<Vec<Tap>, Error> {
    let mut taps = Vec::new();
    for net in &mut spec.net {
        match &net.backend {
            NetBackendSpec::User(_) => {
                return Err(jail::Error::Unsupported {
                    option: "--net user",
                    why: "there is no program in a jail: start passt outside, and give --net stream=PATH",
                }
                .into());
            }
            NetBackendSpec::Descriptor(number) => plan.keep(*number),
            NetBackendSpec::Tap(name) if !plan.has_network() => {
                let opened = Tap::open(name);
                let tap =
                    opened.map_err(|source| jail::Error::Tap { name: name.clone(), source })?;
                net.backend = NetBackendSpec::Descriptor(tap.as_fd().as_raw_fd());
                taps.push(tap);
            }
            NetBackendSpec::Tap(_) | NetBackendSpec::Stream(_) => {}
        }
    }
    Ok(taps)
}

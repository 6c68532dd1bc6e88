//! The control group of a VM, version 2.
//!
//! # References
//! Linux Documentation/admin-guide/cgroup-v2.rst

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error as ThisError;

use super::Error;

/// What a group is made in unless another is named.
const DEFAULT_PARENT: &str = "tessera";
/// Tasks that a VM has at most unless another number is given: 512 vCPUs, and a thread a device.
const DEFAULT_TASKS: (&str, &str) = ("pids.max", "1024");

/// A group is empty some moments after its last process was waited for.
const ATTEMPTS: u32 = 200;
const PAUSE: Duration = Duration::from_millis(10);

/// A text that is no setting.
#[derive(Clone, Debug, Eq, PartialEq, ThisError)]
#[error("'{0}' is no setting of a control group: give FILE=VALUE, such as memory.max=1G")]
pub struct ParseSettingError(String);

/// What is written to a file of a control group.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Setting {
    file: String,
    value: String,
}

impl FromStr for Setting {
    type Err = ParseSettingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseSettingError(text.to_owned());
        let (file, value) = text.split_once('=').ok_or_else(refused)?;
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
        let (controller, rest) = file.split_once('.').ok_or_else(refused)?;
        let is_file = !controller.is_empty() && !rest.is_empty() && file.chars().all(is_plain);
        // Files of groups themselves say which processes are in them.
        match is_file && controller != "cgroup" && !value.is_empty() {
            true => Ok(Self { file: file.to_owned(), value: value.to_owned() }),
            false => Err(refused()),
        }
    }
}

impl Setting {
    fn controller(&self) -> &str {
        self.file.split('.').next().unwrap_or_default()
    }
}

/// How long a group is there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Life {
    /// It ends with the VM, and the group in which it is with the last VM.
    WithParent,
    /// It ends with the VM.
    Alone,
    /// It is another's to remove, who may have made it as well.
    Kept,
}

/// A group that is to be made, or that was.
#[derive(Debug)]
pub(super) struct Group {
    /// The hierarchy: found again when this process has another root.
    hierarchy: OwnedFd,
    mounted_at: PathBuf,
    parent: PathBuf,
    life: Life,
    name: String,
    settings: Vec<Setting>,
}

impl Group {
    /// A group of this name in the hierarchy of this host. Nothing is made of it yet.
    ///
    /// # Errors
    /// When the host has no such hierarchy, or lacks a controller.
    pub(super) fn of_a_vm(
        parent: Option<&str>,
        name: String,
        mut settings: Vec<Setting>,
    ) -> Result<Self, Error> {
        let (file, value) = DEFAULT_TASKS;
        if !settings.iter().any(|setting| setting.file == file) {
            settings.push(Setting { file: file.to_owned(), value: value.to_owned() });
        }
        match parent {
            None => Self::new(DEFAULT_PARENT, Life::WithParent, name, settings),
            Some(parent) => Self::new(parent, Life::Alone, name, settings),
        }
    }

    /// One that stays, as Firecracker's jailer makes it, with these settings and no others. One that is there is taken.
    ///
    /// # Errors
    /// As [`of_a_vm`](Self::of_a_vm).
    pub(super) fn that_stays(
        parent: &str,
        name: String,
        settings: Vec<Setting>,
    ) -> Result<Self, Error> {
        Self::new(parent, Life::Kept, name, settings)
    }

    fn new(parent: &str, life: Life, name: String, settings: Vec<Setting>) -> Result<Self, Error> {
        let mounted_at = hierarchy().ok_or(Error::NoCgroups)?;
        Self::in_hierarchy(mounted_at, parent, life, name, settings)
    }

    fn in_hierarchy(
        mounted_at: PathBuf,
        parent: &str,
        life: Life,
        name: String,
        settings: Vec<Setting>,
    ) -> Result<Self, Error> {
        check_parent(parent)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let failed = failed("open", &mounted_at);
        let opened = rustix::fs::open(&mounted_at, flags, Mode::empty());
        let hierarchy = opened.map_err(|errno| failed(errno.into()))?;
        let parent = PathBuf::from(parent);
        let group = Self { hierarchy, mounted_at, parent, life, name, settings };
        group.check_controllers()?;
        Ok(group)
    }

    /// Its folder on the host.
    pub(super) fn folder(&self) -> PathBuf {
        self.mounted_at.join(self.path())
    }

    fn path(&self) -> PathBuf {
        self.parent.join(&self.name)
    }

    fn check_controllers(&self) -> Result<(), Error> {
        let path = Path::new("cgroup.controllers");
        let known = fs::read_to_string(self.mounted_at.join(path));
        let known = known.map_err(failed("read", &self.mounted_at))?;
        let has = |controller| known.split_ascii_whitespace().any(|name| name == controller);
        match self.settings.iter().find(|setting| !has(setting.controller())) {
            None => Ok(()),
            Some(setting) => Err(Error::NoController {
                controller: setting.controller().to_owned(),
                file: setting.file.clone(),
                known: known.trim().to_owned(),
            }),
        }
    }

    /// Makes it, with its settings.
    ///
    /// # Errors
    /// When it is in use, or the kernel refuses. What was made is removed again by [`remove`](Self::remove).
    pub(super) fn make(&self) -> Result<Entrance, Error> {
        self.make_folders()?;
        for setting in &self.settings {
            let path = self.path().join(&setting.file);
            self.write(&path, &setting.value)?;
        }
        self.entrance(&self.path())
    }

    fn make_folders(&self) -> Result<(), Error> {
        let mut made = Err(Errno::NOENT);
        for _ in 0..ATTEMPTS {
            self.make_parents()?;
            made = self.make_group();
            match made {
                // The last VM of the parent may end meanwhile, and remove it.
                Err(Errno::NOENT) => {}
                // A VM whose supervisor was killed is in it a moment longer.
                Err(Errno::BUSY) if self.life != Life::Kept => sleep(PAUSE),
                _ => break,
            }
        }
        match made {
            Err(Errno::BUSY | Errno::NOTEMPTY) => Err(Error::GroupInUse(self.folder())),
            made => made.map_err(|errno| failed("make", &self.folder())(errno.into())),
        }
    }

    /// The groups that it is in, with the controllers that it needs.
    fn make_parents(&self) -> Result<(), Error> {
        let mut path = PathBuf::new();
        for part in self.parent.components() {
            self.pass_on_controllers(&path)?;
            path.push(part);
            match rustix::fs::mkdirat(&self.hierarchy, &path, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => {
                    return Err(failed("make", &self.mounted_at.join(path))(errno.into()));
                }
            }
        }
        self.pass_on_controllers(&path)
    }

    fn make_group(&self) -> Result<(), Errno> {
        let (path, mode) = (self.path(), Mode::from_raw_mode(0o755));
        match rustix::fs::mkdirat(&self.hierarchy, &path, mode) {
            Err(Errno::EXIST) if self.life == Life::Kept => match self.has_processes(&path) {
                true => Err(Errno::BUSY),
                false => Ok(()),
            },
            Err(Errno::EXIST) => {
                // Of a VM whose processes were all killed at once. One that is in use cannot be removed.
                rustix::fs::unlinkat(&self.hierarchy, &path, AtFlags::REMOVEDIR)?;
                rustix::fs::mkdirat(&self.hierarchy, &path, mode)
            }
            made => made,
        }
    }

    /// Whether some process is in a group, or in one below it (Documentation/admin-guide/cgroup-v2.rst, cgroup.events).
    fn has_processes(&self, group: &Path) -> bool {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = group.join("cgroup.events");
        let opened = rustix::fs::openat(&self.hierarchy, file, flags, Mode::empty());
        let text = opened.ok().and_then(|file| io::read_to_string(fs::File::from(file)).ok());
        text.is_some_and(|text| text.lines().any(|line| line == "populated 1"))
    }

    /// Has the groups in a group have controllers.
    fn pass_on_controllers(&self, group: &Path) -> Result<(), Error> {
        let file = group.join("cgroup.subtree_control");
        let has = fs::read_to_string(self.mounted_at.join(&file)).unwrap_or_default();
        let mut missing: Vec<&str> = self.settings.iter().map(Setting::controller).collect();
        missing.sort_unstable();
        missing.dedup();
        missing.retain(|controller| !has.split_ascii_whitespace().any(|name| name == *controller));
        // A write that is not needed fails where the group has processes.
        let added: Vec<_> = missing.iter().map(|controller| format!("+{controller}")).collect();
        match added.is_empty() {
            true => Ok(()),
            false => self.write(&file, &added.join(" ")),
        }
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), Error> {
        let written =
            self.open(path).and_then(|file| Ok(rustix::io::write(file, text.as_bytes())?));
        written.map(drop).map_err(failed("set", &self.mounted_at.join(path)))
    }

    fn open(&self, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.hierarchy, path, flags, Mode::empty())?)
    }

    fn entrance(&self, group: &Path) -> Result<Entrance, Error> {
        let path = group.join("cgroup.procs");
        let opened = self.open(&path);
        opened.map(Entrance).map_err(failed("open", &self.mounted_at.join(path)))
    }

    /// Removes it, if it is there, and the group above it where none was named. No process is in it any more.
    pub(super) fn remove(&self) {
        for _ in 0..ATTEMPTS {
            match rustix::fs::unlinkat(&self.hierarchy, self.path(), AtFlags::REMOVEDIR) {
                Err(Errno::BUSY) => sleep(PAUSE),
                // What is left is empty, and the next VM of this name replaces it.
                _ => break,
            }
        }
        if self.life == Life::WithParent {
            // Others may be in it.
            let _ = rustix::fs::unlinkat(&self.hierarchy, &self.parent, AtFlags::REMOVEDIR);
        }
    }
}

/// The file by which a process enters a group. What may be written to it follows from who has opened it.
#[derive(Debug)]
pub(super) struct Entrance(OwnedFd);

impl Entrance {
    /// That of a group that is there, below the hierarchy's root.
    ///
    /// # Errors
    /// When there is no such hierarchy or group.
    pub(super) fn of_existing(group: &str) -> Result<Self, Error> {
        check_parent(group)?;
        let path = hierarchy().ok_or(Error::NoCgroups)?.join(group).join("cgroup.procs");
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(CWD, &path, flags, Mode::empty());
        opened.map(Self).map_err(|errno| failed("open", &path)(errno.into()))
    }

    /// Moves this process into the group.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(super) fn enter(&self) -> io::Result<()> {
        // The process that writes.
        Ok(rustix::io::write(&self.0, b"0").map(drop)?)
    }
}

/// A group in which others are is below the root of the hierarchy.
fn check_parent(path: &str) -> Result<(), Error> {
    // `Path` leaves out "." but at the start.
    let is_plain = |part: &str| !matches!(part, "" | "." | "..");
    match path.split('/').all(is_plain) {
        true => Ok(()),
        false => Err(Error::Parent(path.to_owned())),
    }
}

/// Where the hierarchy of version 2 is mounted.
fn hierarchy() -> Option<PathBuf> {
    mounted(&fs::read_to_string("/proc/self/mounts").ok()?)
}

/// The same, of a list of mounts: device, place, type and options (proc_pid_mounts(5)).
fn mounted(list: &str) -> Option<PathBuf> {
    list.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind) = (fields.next()?, fields.next()?);
        // A place with a space is written with an escape.
        (kind == "cgroup2" && !place.contains('\\')).then(|| place.into())
    })
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Group { what, path, source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_setting_has_a_file_of_a_controller_and_a_value() {
        for text in
            ["memory.max=1G", "cpu.max=50000 100000", "memory.swap.max=0", "io.max=8:0 rbps=1"]
        {
            let setting: Setting = text.parse().unwrap();
            assert_eq!(format!("{}={}", setting.file, setting.value), text);
        }
        for text in ["", "memory.max", "memory.max=", "memory=1", ".max=1", "memory.=1", "a/b.c=1"]
        {
            assert!(text.parse::<Setting>().is_err(), "{text}");
        }
        assert!("cgroup.procs=1".parse::<Setting>().is_err());
    }

    #[test]
    fn the_hierarchy_is_that_of_version_2() {
        let list = "proc /proc proc rw 0 0\n\
                    cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                    none /a\\040b cgroup2 rw 0 0\n\
                    cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nosuid 0 0\n";

        assert_eq!(mounted(list), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mounted("proc /proc proc rw 0 0\n"), None);
    }

    /// A folder in the place of a hierarchy: files that the kernel would make are there.
    fn hierarchy_of(controllers: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in [("cgroup.controllers", controllers), ("cgroup.subtree_control", "")] {
            fs::write(root.path().join(name), text).unwrap();
        }
        root
    }

    fn group(root: &tempfile::TempDir, parent: &str, settings: &[&str]) -> Result<Group, Error> {
        let settings = settings.iter().map(|text| text.parse().unwrap()).collect();
        Group::in_hierarchy(
            root.path().to_owned(),
            parent,
            Life::WithParent,
            "vm".to_owned(),
            settings,
        )
    }

    #[test]
    fn a_controller_that_the_host_lacks_is_named() {
        let root = hierarchy_of("cpu memory\n");

        let error = group(&root, "a", &["memory.max=1G", "pids.max=5"]).unwrap_err();

        assert!(matches!(&error, Error::NoController { controller, .. } if controller == "pids"));
        assert!(error.to_string().contains("pids.max") && error.to_string().contains("cpu memory"));
        assert!(group(&root, "a", &["memory.max=1G", "cpu.max=max"]).is_ok());
    }

    #[test]
    fn a_parent_is_below_the_hierarchy() {
        let root = hierarchy_of("");
        for parent in ["", "/a", "../a", "a/../b", "./a"] {
            assert!(matches!(group(&root, parent, &[]), Err(Error::Parent(_))), "{parent:?}");
        }
        let folder = group(&root, "a/b", &[]).unwrap().folder();
        assert_eq!(folder, root.path().join("a/b/vm"));
    }

    #[test]
    fn controllers_are_passed_on_from_the_root_down() {
        let root = hierarchy_of("cpu memory pids");
        let group = group(&root, "a", &["memory.max=1G", "memory.high=1G", "pids.max=5"]).unwrap();

        group.pass_on_controllers(Path::new("")).unwrap();

        let written = fs::read_to_string(root.path().join("cgroup.subtree_control")).unwrap();
        assert_eq!(written, "+memory +pids");
        fs::write(root.path().join("cgroup.subtree_control"), "memory pids").unwrap();
        group.pass_on_controllers(Path::new("")).unwrap();
        let kept = fs::read_to_string(root.path().join("cgroup.subtree_control")).unwrap();
        assert_eq!(kept, "memory pids");
    }

    #[test]
    fn a_group_that_stays_is_taken_with_what_is_in_it() {
        let root = hierarchy_of("");
        let made_anew = group(&root, "a", &[]).unwrap();
        let inner = made_anew.folder().join("inner");
        fs::create_dir_all(&inner).unwrap();
        let refused = made_anew.make_folders().unwrap_err();

        let stays = Group { life: Life::Kept, ..made_anew };
        stays.make_folders().unwrap();

        assert!(matches!(refused, Error::GroupInUse(_)), "{refused}");
        assert!(inner.exists());
        let events = stays.folder().join("cgroup.events");
        fs::write(&events, "populated 1\nfrozen 0\n").unwrap();
        assert!(matches!(stays.make_folders(), Err(Error::GroupInUse(_))));
        fs::write(&events, "populated 0\nfrozen 0\n").unwrap();
        stays.make_folders().unwrap();
        fs::remove_file(&events).unwrap();
        fs::remove_dir(&inner).unwrap();
        group(&root, "a", &[]).unwrap().make_folders().unwrap();
    }

    #[test]
    fn a_group_and_its_parent_go_and_may_be_gone() {
        let root = hierarchy_of("");
        let group = group(&root, "a", &[]).unwrap();
        fs::create_dir_all(group.folder()).unwrap();

        group.remove();
        assert!(!root.path().join("a").exists());
        group.remove();

        assert!(root.path().join("cgroup.controllers").exists());
    }
}

#![allow(clippy::unwrap_used)]

use std::os::fd::AsFd;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::SocketType;
use tempfile::TempDir;
use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::memory::{Attributes, TemplateError};
use crate::sys::seqpacket;
use crate::sys::unix_socket::{Kind, Socket};
use crate::template::holder::Holder;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// A kernel of nothing but a header, and an initrd.
struct Files {
    folder: TempDir,
    kernel: PathBuf,
    initrd: PathBuf,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [kernel, initrd] = ["Image", "initrd"].map(|name| folder.path().join(name));
        std::fs::copy(crate::machine::testing::kernel().path(), &kernel).unwrap();
        std::fs::write(&initrd, b"initrd").unwrap();
        Self { folder, kernel, initrd }
    }

    fn made(&self) -> HeldBootImage {
        let files = BootFiles::of(&self.kernel, Some(&self.initrd)).unwrap();
        HeldBootImage { socket: self.folder.path().join("socket"), files }
    }

    fn load(&self) -> Result<([u8; LENGTH], OwnedFd, Bytes), BootError> {
        self.made().load(&self.kernel, Some(&self.initrd))
    }

    /// A VM that comes for the image of these files as they are now.
    fn come(&self) -> Result<SharedBootImage, BootError> {
        let HeldBootImage { socket, files } = self.made();
        SharedBootImage::connect_at(&socket, &files, LONG)
    }
}

/// A holder in a thread.
struct Running {
    thread: Option<JoinHandle<()>>,
    stop: OwnedFd,
}

impl Running {
    fn start(files: &Files) -> Self {
        let mut holder = Holder::with_places(&files.made().socket, 8).unwrap();
        let (message, file, size) = files.load().unwrap();
        assert_eq!(size, Bytes::new(4096 + 6));
        let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let own = stop.try_clone().unwrap();
        let serve = move || {
            holder.serve_until(own, &message, &file, LONG).unwrap();
        };
        Self { thread: Some(std::thread::spawn(serve)), stop }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        rustix::io::write(&self.stop, &1u64.to_ne_bytes()).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

#[test]
fn a_vm_gets_the_boot_image_of_its_files_and_keeps_it_without_the_holder() {
    let files = Files::new();
    let holder = Running::start(&files);
    let image = files.come().unwrap();
    drop(holder);
    let ram = GuestRam::new(Bytes::mib(64), Attributes::default()).unwrap();

    let (loaded, _connection) = image.load(&ram, &files.kernel, Bytes::kib(8)).unwrap();

    let mut initrd = [0; 7];
    ram.read_slice(&mut initrd, loaded.initrd.unwrap().base).unwrap();
    assert_eq!(&initrd, b"initrd\0");
    let mut magic = [0; 4];
    ram.read_slice(&mut magic, GuestAddress(loaded.kernel.base.0 + 56)).unwrap();
    assert_eq!(&magic, b"ARM\x64");
    assert!(matches!(files.come(), Err(BootError::Absent { .. })));
}

#[test]
fn the_image_of_files_that_have_changed_is_refused() {
    let files = Files::new();
    let _holder = Running::start(&files);
    let before = files.made().files.socket().ok();

    std::fs::write(&files.initrd, b"INITRD").unwrap();

    assert!(matches!(files.come(), Err(BootError::Other(_))));
    // One of the new files is elsewhere, where there is a place at all.
    let after = files.made().files.socket().ok();
    assert!(before.is_none() || before != after);
    let without = BootFiles::of(&files.kernel, None).unwrap();
    let refused = SharedBootImage::connect_at(&files.made().socket, &without, LONG);
    assert!(matches!(refused, Err(BootError::Other(_))));
}

#[test]
fn files_that_change_while_they_are_read_make_no_boot_image() {
    let files = Files::new();
    let made = files.made();
    std::fs::write(&files.initrd, b"INITRD").unwrap();

    let refused = made.load(&files.kernel, Some(&files.initrd)).unwrap_err();

    assert!(matches!(refused, BootError::Changed));
}

/// What a client says of a holder that answers so.
fn meets(files: &Files, message: &[u8], file: Option<&OwnedFd>) -> BootError {
    let HeldBootImage { socket, .. } = files.made();
    let kind = Kind { socket_type: SocketType::SEQPACKET, ..Kind::PRIVATE_STREAM };
    let listener = Socket::bind_as(&socket, kind).unwrap();
    std::thread::scope(|scope| {
        let client = scope.spawn(|| files.come().unwrap_err());
        let connection = loop {
            match listener.accept() {
                Ok(connection) => break connection,
                Err(_) => std::thread::yield_now(),
            }
        };
        match file {
            Some(file) => seqpacket::send_fd(&connection, message, file.as_fd()).unwrap(),
            None => seqpacket::send(&connection, message).unwrap(),
        }
        drop(connection);
        client.join().unwrap()
    })
}

#[test]
fn a_holder_that_lies_is_refused_by_name() {
    let files = Files::new();
    let (message, file, _) = files.load().unwrap();

    for malformed in [&message[..127], &[0; 128], &[&message[..], &[0]].concat(), &[9; 4000]] {
        assert!(matches!(
            meets(&files, malformed, Some(&file)),
            BootError::Holder { source: HolderError::Malformed, .. }
        ));
    }
    assert!(matches!(
        meets(&files, &message, None),
        BootError::Holder { source: HolderError::Malformed, .. }
    ));
    let mut parts = message;
    // The kernel's length.
    parts[31] = 0xff;
    assert!(matches!(
        meets(&files, &parts, Some(&file)),
        BootError::Holder { source: HolderError::File(TemplateError::Parts), .. }
    ));
    let null = std::fs::File::open("/dev/null").unwrap().into();
    assert!(matches!(
        meets(&files, &message, Some(&null)),
        BootError::Holder { source: HolderError::File(TemplateError::Kind), .. }
    ));
    let writable = std::fs::File::options().read(true).write(true).open(&files.kernel).unwrap();
    assert!(matches!(
        meets(&files, &message, Some(&writable.into())),
        BootError::Holder { source: HolderError::File(TemplateError::Writable), .. }
    ));
}

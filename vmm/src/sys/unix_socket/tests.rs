//! What may lie at the socket's path, and what becomes of it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;

use tempfile::tempdir;

use super::*;

#[test]
fn socket_is_for_its_owner_only_and_is_not_inherited() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("api");

    let socket = Socket::bind(&path).unwrap();

    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let flags = rustix::io::fcntl_getfd(socket.listener.as_fd()).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn where_the_kernel_does_not_listen_no_file_is_left() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("api");
    // listen(2): EOPNOTSUPP.
    let kind = Kind { socket_type: SocketType::DGRAM, ..Kind::PRIVATE_STREAM };

    let error = Socket::bind_as(&path, kind).unwrap_err();

    assert!(matches!(error, Error::Create { .. }), "{error}");
    assert!(!path.exists());
}

#[test]
fn socket_of_a_dead_process_is_replaced() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("api");
    drop(UnixListener::bind(&path).unwrap());

    let _socket = Socket::bind(&path).unwrap();

    UnixStream::connect(&path).unwrap();
}

#[test]
fn socket_of_a_live_process_is_left_alone() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("api");
    let _live = UnixListener::bind(&path).unwrap();

    let error = Socket::bind(&path).unwrap_err();

    assert!(matches!(error, Error::InUse(_)));
    UnixStream::connect(&path).unwrap();
}

#[test]
fn anything_else_at_the_path_is_left_alone() {
    let directory = tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "precious").unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(directory.path().join("nowhere"), &link).unwrap();
    let datagram = directory.path().join("datagram");
    let _datagram = UnixDatagram::bind(&datagram).unwrap();

    for path in [directory.path(), &file, &link, &datagram] {
        let error = Socket::bind(path).unwrap_err();
        assert!(matches!(error, Error::Occupied(_)), "{path:?}: {error}");
        assert!(fs::symlink_metadata(path).is_ok());
    }
    assert_eq!(fs::read(&file).unwrap(), b"precious");
}

#[test]
fn impossible_paths_are_named() {
    let directory = tempdir().unwrap();
    let long = directory.path().join("x".repeat(MAX_PATH));
    let nowhere = directory.path().join("none").join("api");

    assert!(matches!(
        Socket::bind(&long),
        Err(Error::TooLong { length, .. }) if length > MAX_PATH
    ));
    for path in [nowhere.as_path(), Path::new(""), Path::new("a\0b")] {
        assert!(matches!(Socket::bind(path), Err(Error::Create { .. })));
    }
}

#[test]
fn longest_path_is_accepted() {
    let directory = tempdir().unwrap();
    let prefix = directory.path().as_os_str().len() + 1;
    let path = directory.path().join("x".repeat(MAX_PATH - prefix));

    let _socket = Socket::bind(&path).unwrap();

    UnixStream::connect(&path).unwrap();
}

#[test]
fn file_goes_with_the_socket() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("api");

    drop(Socket::bind(&path).unwrap());

    assert!(!path.exists());
}

#[test]
fn file_that_is_left_stays_for_the_next_socket_to_replace() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let mut socket = Socket::bind(&path).unwrap();
    socket.leave_file();

    drop(socket);

    assert!(path.exists());
    assert!(Socket::bind(&path).unwrap().has_replaced());
}

#[test]
fn file_of_a_successor_stays() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("api");
    let first = Socket::bind(&path).unwrap();
    // Held by a second name: else the file system may give the successor the same inode number.
    fs::hard_link(&path, directory.path().join("held")).unwrap();
    fs::remove_file(&path).unwrap();
    let _second = Socket::bind(&path).unwrap();

    drop(first);

    UnixStream::connect(&path).unwrap();
}

#[test]
fn of_a_folder_the_sockets_of_dead_processes_alone_are_removed() {
    let directory = tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let kind = Kind { socket_type: SocketType::SEQPACKET, ..Kind::PRIVATE_STREAM };
    for dead in ["dead", "gone"] {
        Socket::bind_as(&at(dead), kind).unwrap().leave_file();
    }
    let _live = Socket::bind_as(&at("live"), kind).unwrap();
    // It listens as well, in another way.
    let _stream = Socket::bind(&at("stream")).unwrap();
    fs::write(at("file"), "").unwrap();
    fs::create_dir(at("folder")).unwrap();

    remove_stale_in(directory.path(), SocketType::SEQPACKET);

    let names = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, ["file", "folder", "live", "stream"]);
}

//! Reads and writes between a file descriptor and pieces of guest memory, in one call and without a copy.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// Most pieces that one call takes (UIO_MAXIOV, Linux `include/uapi/linux/uio.h`).
pub const MOST_PIECES: usize = 1024;

/// How many pieces fit on the stack: a request of Linux has 128 segments at most by default, and a frame 17.
const FEW: usize = 32;

/// Reads into the pieces in turn, at most [`MOST_PIECES`] less one of them, and then into `rest`. Returns how many
/// bytes it was.
///
/// # Errors
/// The system's. Nothing has been read then.
pub fn readv_then<B: BitmapSlice>(
    from: impl AsFd,
    into: &[VolatileSlice<'_, B>],
    rest: &mut [u8],
) -> io::Result<usize> {
    let file = from.as_fd().as_raw_fd();
    let last = libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
    // SAFETY: see `with_pieces`; `rest` is borrowed for the call, and writable.
    let read = with_pieces(None, into, Some(last), |pieces, count| unsafe {
        libc::readv(file, pieces, count)
    });
    marked(into, read)
}

/// Writes `first` and then the pieces in turn, at most [`MOST_PIECES`] less one of them. Returns how many bytes it
/// was.
///
/// # Errors
/// The system's. Nothing has been written then.
pub fn writev_after<B: BitmapSlice>(
    to: impl AsFd,
    first: &[u8],
    from: &[VolatileSlice<'_, B>],
) -> io::Result<usize> {
    let file = to.as_fd().as_raw_fd();
    let head = libc::iovec { iov_base: first.as_ptr().cast_mut().cast(), iov_len: first.len() };
    // SAFETY: see `with_pieces`; `first` is borrowed for the call, and the kernel only reads it.
    with_pieces(Some(head), from, None, |pieces, count| unsafe {
        libc::writev(file, pieces, count)
    })
}

/// Reads into the pieces in turn, at most [`MOST_PIECES`] of them. Returns how many bytes it was.
///
/// # Errors
/// The system's. Nothing has been read then.
pub fn readv<B: BitmapSlice>(from: impl AsFd, into: &[VolatileSlice<'_, B>]) -> io::Result<usize> {
    let file = from.as_fd().as_raw_fd();
    // SAFETY: see `with_pieces`; the kernel writes to the pieces, as the guest may at any time.
    let read =
        with_pieces(None, into, None, |pieces, count| unsafe { libc::readv(file, pieces, count) });
    marked(into, read)
}

/// Writes the pieces in turn, at most [`MOST_PIECES`] of them. Returns how many bytes it was.
///
/// # Errors
/// The system's. Nothing has been written then.
pub fn writev<B: BitmapSlice>(to: impl AsFd, from: &[VolatileSlice<'_, B>]) -> io::Result<usize> {
    let file = to.as_fd().as_raw_fd();
    // SAFETY: see `with_pieces`; the kernel only reads them.
    with_pieces(None, from, None, |pieces, count| unsafe { libc::writev(file, pieces, count) })
}

/// As [`readv`], from this offset of a file in bytes.
///
/// # Errors
/// As for [`readv`], and an offset beyond 2^63.
pub fn preadv<B: BitmapSlice>(
    from: impl AsFd,
    into: &[VolatileSlice<'_, B>],
    offset: u64,
) -> io::Result<usize> {
    let (file, offset) = (from.as_fd().as_raw_fd(), file_offset(offset)?);
    // SAFETY: as for `readv`.
    let read = with_pieces(None, into, None, |pieces, count| unsafe {
        libc::preadv(file, pieces, count, offset)
    });
    // A read past the page cache that ends early may have written more than it says.
    mark(into, usize::MAX);
    read
}

/// As [`writev`], at this offset of a file in bytes.
///
/// # Errors
/// As for [`writev`], and an offset beyond 2^63.
pub fn pwritev<B: BitmapSlice>(
    to: impl AsFd,
    from: &[VolatileSlice<'_, B>],
    offset: u64,
) -> io::Result<usize> {
    let (file, offset) = (to.as_fd().as_raw_fd(), file_offset(offset)?);
    // SAFETY: as for `writev`.
    with_pieces(None, from, None, |pieces, count| unsafe {
        libc::pwritev(file, pieces, count, offset)
    })
}

/// Marks what a read has written, or may have if it failed.
fn marked<B: BitmapSlice>(
    into: &[VolatileSlice<'_, B>],
    read: io::Result<usize>,
) -> io::Result<usize> {
    match &read {
        Ok(done) => mark(into, *done),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(_) => mark(into, usize::MAX),
    }
    read
}

/// Marks the first bytes of these pieces as written to, which the kernel does not.
fn mark<B: BitmapSlice>(pieces: &[VolatileSlice<'_, B>], mut bytes: usize) {
    for piece in pieces {
        if bytes == 0 {
            return;
        }
        piece.bitmap().mark_dirty(0, piece.len().min(bytes));
        bytes = bytes.saturating_sub(piece.len());
    }
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Calls with the addresses and lengths of the pieces, and of what is before and after them. They stay valid for
/// the call: each slice borrows the mapping that it lies in, and the slices are borrowed meanwhile.
fn with_pieces<B: BitmapSlice>(
    before: Option<libc::iovec>,
    slices: &[VolatileSlice<'_, B>],
    after: Option<libc::iovec>,
    call: impl Fn(*const libc::iovec, libc::c_int) -> libc::ssize_t,
) -> io::Result<usize> {
    let others = usize::from(before.is_some()) + usize::from(after.is_some());
    let slices = &slices[..slices.len().min(MOST_PIECES - others)];
    let piece = |slice: &VolatileSlice<'_, B>| libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    };
    let all = before.into_iter().chain(slices.iter().map(piece)).chain(after);
    let mut few = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; FEW];
    let many: Vec<_>;
    let pieces = match few.get_mut(..slices.len() + others) {
        Some(few) => {
            few.iter_mut().zip(all).for_each(|(place, piece)| *place = piece);
            &*few
        }
        None => {
            many = all.collect();
            &many
        }
    };
    loop {
        // At most MOST_PIECES.
        let done = call(pieces.as_ptr(), pieces.len() as libc::c_int);
        if let Ok(done) = usize::try_from(done) {
            return Ok(done);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::{Read, Seek, Write};

    use super::*;

    fn slices(bytes: &mut [u8], size: usize) -> Vec<VolatileSlice<'_>> {
        bytes.chunks_mut(size).map(VolatileSlice::from).collect()
    }

    #[test]
    fn bytes_go_through_any_number_of_pieces() {
        for size in [1, 7, 100, 4000] {
            let mut file = tempfile::tempfile().unwrap();
            let mut bytes: Vec<u8> = (0..4000u32).map(|at| at as u8).collect();
            let expected = bytes.clone();
            let whole = 4000.min(size * MOST_PIECES);

            assert_eq!(pwritev(&file, &slices(&mut bytes, size), 10).unwrap(), whole);
            let mut read = vec![0; 4000];
            assert_eq!(preadv(&file, &slices(&mut read, size), 10).unwrap(), whole);

            assert_eq!(read[..whole], expected[..whole]);
            let mut text = Vec::new();
            file.read_to_end(&mut text).unwrap();
            assert_eq!((text.len(), &text[..10]), (10 + whole, &[0; 10][..]));
        }
    }

    #[test]
    fn a_file_goes_on_where_it_was() {
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(writev(&file, &slices(&mut b"abcdef".to_vec(), 4)).unwrap(), 6);
        file.write_all(b"g").unwrap();
        file.rewind().unwrap();
        let mut read = [0; 8];

        assert_eq!(readv(&file, &slices(&mut read, 3)).unwrap(), 7);

        assert_eq!(&read, b"abcdefg\0");
    }

    #[test]
    fn bytes_before_and_after_the_pieces_are_part_of_one_call() {
        for size in [1, 7, 100] {
            let mut file = tempfile::tempfile().unwrap();
            let mut bytes: Vec<u8> = (0..200u8).collect();
            assert_eq!(writev_after(&file, b"head", &slices(&mut bytes, size)).unwrap(), 204);
            file.rewind().unwrap();
            let (mut read, mut rest) = (vec![0; 150], vec![0; 100]);

            let length = readv_then(&file, &slices(&mut read, size), &mut rest).unwrap();

            assert_eq!(length, 204);
            assert_eq!((&read[..4], &read[4..]), (&b"head"[..], &bytes[..146]));
            assert_eq!((&rest[..54], &rest[54..]), (&bytes[146..], &[0; 46][..]));
        }
    }

    #[test]
    fn an_offset_that_no_file_has_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        let error = preadv(&file, &slices(&mut [0], 1), u64::MAX).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}

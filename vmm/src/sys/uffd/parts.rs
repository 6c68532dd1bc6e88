//! Calls of userfaultfd on a range, of which the kernel does a part at a time.

use std::io;
use std::ops::Range;

use rustix::io::Errno;

/// How often a call may do nothing, as mappings of the process change or a page migrates. Nothing here changes them so.
const TRIES: u32 = 100;

/// Makes a call, which says how much it has done, for what is left of a range until nothing is.
///
/// # Errors
/// The first that is not over at once: EAGAIN is as mappings change, EBUSY as a page is under migration.
pub(super) fn by_parts(
    range: &Range<u64>,
    call: impl FnMut(&Range<u64>) -> Result<u64, Errno>,
) -> io::Result<()> {
    Ok(all_of(range, call)?)
}

fn all_of(
    range: &Range<u64>,
    mut call: impl FnMut(&Range<u64>) -> Result<u64, Errno>,
) -> Result<(), Errno> {
    let (mut left, mut tries) = (range.clone(), 0);
    while !left.is_empty() {
        match call(&left) {
            Ok(done) => left.start = left.start.saturating_add(done),
            Err(Errno::AGAIN | Errno::BUSY) if tries < TRIES => tries += 1,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// As [`by_parts`], for whatever of a range is armed. It passes over a page of `page` bytes that is there, and one that is
/// not armed.
///
/// The kernel wants a part to lie in one mapping, and that to be armed: else it answers ENOENT and has done nothing
/// (mm/userfaultfd.c, `find_dst_vma`). A part for which it does is tried again by halves.
///
/// # Errors
/// As for [`by_parts`].
pub(super) fn where_armed(
    range: &Range<u64>,
    page: u64,
    mut call: impl FnMut(&Range<u64>) -> Result<u64, Errno>,
) -> io::Result<()> {
    let mut parts = vec![range.clone()];
    while let Some(part) = parts.pop() {
        let done = all_of(&part, |left| match call(left) {
            Err(Errno::EXIST) => Ok(page),
            done => done,
        });
        match done {
            Err(Errno::NOENT) => {
                let pages = (part.end - part.start) / page;
                let middle = part.start + pages / 2 * page;
                if pages > 1 {
                    parts.extend([middle..part.end, part.start..middle]);
                }
            }
            done => done?,
        }
    }
    Ok(())
}

/// How much of `length` a call has done: all of it, or what it says with EAGAIN, which is otherwise an error number.
pub(super) fn part(answer: Result<(), Errno>, length: u64, done: i64) -> Result<u64, Errno> {
    match (answer, u64::try_from(done)) {
        (Ok(()), _) => Ok(length),
        (Err(Errno::AGAIN), Ok(done)) if done > 0 => Ok(done),
        (Err(errno), _) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// What a call on parts is asked for, with these answers, and how it ends.
    fn parts(answers: &[Result<u64, Errno>]) -> (Vec<u64>, io::Result<()>) {
        let (mut asked, mut answers) = (Vec::new(), answers.iter());
        let ended = by_parts(&(100..110), |left| {
            asked.push(left.start);
            assert_eq!(left.end, 110);
            *answers.next().unwrap()
        });
        (asked, ended)
    }

    #[test]
    fn what_is_left_of_a_range_is_asked_for_until_nothing_is() {
        let (asked, ended) =
            parts(&[Ok(3), Err(Errno::AGAIN), Ok(6), Err(Errno::BUSY), Err(Errno::AGAIN), Ok(1)]);

        assert_eq!(asked, [100, 103, 103, 109, 109, 109]);
        ended.unwrap();
    }

    #[test]
    fn an_error_or_a_standstill_ends_it() {
        let (asked, ended) = parts(&[Ok(3), Err(Errno::NOMEM)]);
        assert_eq!(asked, [100, 103]);
        assert_eq!(ended.unwrap_err().raw_os_error(), Some(libc::ENOMEM));

        let (asked, ended) = parts(&[Err(Errno::AGAIN); TRIES as usize + 1]);
        assert_eq!(asked.len(), TRIES as usize + 1);
        assert_eq!(ended.unwrap_err().raw_os_error(), Some(libc::EAGAIN));
    }

    #[test]
    fn a_part_is_what_the_kernel_says_that_it_has_done() {
        assert_eq!(part(Ok(()), 8, 8), Ok(8));
        assert_eq!(part(Err(Errno::AGAIN), 8, 4), Ok(4));
        for nothing in [0, -i64::from(libc::EAGAIN)] {
            assert_eq!(part(Err(Errno::AGAIN), 8, nothing), Err(Errno::AGAIN));
        }
        assert_eq!(part(Err(Errno::EXIST), 8, 4), Err(Errno::EXIST));
    }

    #[test]
    fn what_does_not_lie_in_one_armed_mapping_is_asked_for_by_halves() {
        let mut done = Vec::new();

        // Two mappings, and a page between them that is not armed.
        where_armed(&(0..80), 10, |left| {
            let lies_in =
                |mapping: Range<u64>| mapping.start <= left.start && left.end <= mapping.end;
            if !lies_in(0..30) && !lies_in(40..80) {
                return Err(Errno::NOENT);
            }
            // It is there.
            if left.start == 50 {
                return Err(Errno::EXIST);
            }
            done.push(left.start);
            Ok(10)
        })
        .unwrap();

        assert_eq!(done, [0, 10, 20, 40, 60, 70]);
    }

    #[test]
    fn an_error_ends_what_is_asked_for_by_halves() {
        let mut asked = Vec::new();

        let ended = where_armed(&(0..40), 10, |left| {
            asked.push(left.clone());
            Err(if left.end == 40 { Errno::NOENT } else { Errno::NOMEM })
        });

        assert_eq!(ended.unwrap_err().raw_os_error(), Some(libc::ENOMEM));
        assert_eq!(asked, [0..40, 0..20]);
    }
}

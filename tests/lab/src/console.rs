//! What the nested host's kernel log says: the lab's own marks, and the rest.

use std::collections::VecDeque;

/// The word before the token in each mark; host-init.sh writes it.
const WORD: &str = "tessera-lab";
/// Lines of the log kept for the report of a crash.
const TAIL: usize = 60;
/// The longest line kept; the kernel's own limit is 1 KiB a record.
const MAX_LINE: usize = 4096;

/// A mark of the nested host's init.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// The payload starts; the host's clock in ns.
    Start(u64),
    /// The payload has ended.
    End {
        /// Its exit status.
        status: u8,
        /// The host's clock when it started and ended, in ns.
        clock: (u64, u64),
    },
}

/// Reads the log as it comes.
#[derive(Debug)]
pub(crate) struct Log {
    /// The word and the token of this boot.
    prefix: String,
    line: Vec<u8>,
    tail: VecDeque<String>,
}

impl Log {
    /// A log whose marks carry `token`.
    pub(crate) fn new(token: &str) -> Self {
        Self { prefix: format!("{WORD} {token} "), line: Vec::new(), tail: VecDeque::new() }
    }

    /// Takes the next bytes of the console, and returns the lines they complete, with the mark of each
    /// that is one.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Vec<(String, Option<Mark>)> {
        let mut lines = Vec::new();
        for byte in bytes {
            match byte {
                b'\n' => lines.push(self.complete()),
                // A line without end must not take all memory.
                _ if self.line.len() < MAX_LINE => self.line.push(*byte),
                _ => {}
            }
        }
        lines
    }

    /// The last lines, without marks.
    pub(crate) fn tail(mut self) -> Vec<String> {
        if !self.line.is_empty() {
            self.complete();
        }
        self.tail.into()
    }

    fn complete(&mut self) -> (String, Option<Mark>) {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.line))
            .trim_end_matches('\r')
            .to_owned();
        let mark = self.mark(&line);
        if mark.is_none() {
            if self.tail.len() == TAIL {
                self.tail.pop_front();
            }
            self.tail.push_back(line.clone());
        }
        (line, mark)
    }

    /// The log puts a time before the text: `[    1.042670] tessera-lab 1f2e start 1041139731`.
    fn mark(&self, line: &str) -> Option<Mark> {
        let text = match line.strip_prefix('[') {
            Some(stamped) => stamped.split_once("] ")?.1,
            None => line,
        };
        let words: Vec<&str> = text.strip_prefix(&self.prefix)?.split(' ').collect();
        match words[..] {
            ["start", clock] => Some(Mark::Start(clock.parse().ok()?)),
            ["end", status, start, end] => Some(Mark::End {
                status: status.parse().ok()?,
                clock: (start.parse().ok()?, end.parse().ok()?),
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const TOKEN: &str = "00112233445566778899aabbccddeeff";

    fn marks(text: &str) -> Vec<Mark> {
        let mut log = Log::new(TOKEN);
        log.feed(text.as_bytes()).into_iter().filter_map(|(_, mark)| mark).collect()
    }

    #[test]
    fn marks_are_read_with_and_without_a_time_stamp() {
        let text = format!(
            "[    1.04] tessera-lab {TOKEN} start 1041139731\r\ntessera-lab {TOKEN} end 7 1041139731 1131385549\r\n"
        );

        assert_eq!(
            marks(&text),
            [
                Mark::Start(1_041_139_731),
                Mark::End { status: 7, clock: (1_041_139_731, 1_131_385_549) }
            ]
        );
    }

    #[test]
    fn marks_without_this_boots_token_are_ordinary_lines() {
        let text = "tessera-lab 1234 end 0 1 2\ntessera-lab end 0 1 2\nend 0 1 2\n[ 1.0] tessera-lab  end 0 1 2\n";

        assert!(marks(text).is_empty());
    }

    #[test]
    fn a_token_inside_a_line_or_with_odd_words_is_no_mark() {
        let hostile = format!(
            "script says: tessera-lab {TOKEN} end 0 1 2\n[ 1.0] x] tessera-lab {TOKEN} end 0 1 2\n\
             tessera-lab {TOKEN} end 0 1\ntessera-lab {TOKEN} end -1 1 2\ntessera-lab {TOKEN} end 256 1 2\n\
             tessera-lab {TOKEN} end 0 1 2 3\ntessera-lab {TOKEN} end 0 1 99999999999999999999\n"
        );

        assert!(marks(&hostile).is_empty());
    }

    #[test]
    fn a_mark_cut_into_single_bytes_is_read() {
        let mut log = Log::new(TOKEN);
        let text = format!("tessera-lab {TOKEN} start 5\n");

        let found: Vec<_> = text.bytes().flat_map(|byte| log.feed(&[byte])).collect();

        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1, Some(Mark::Start(5)));
    }

    #[test]
    fn the_tail_is_bounded_and_ends_with_the_broken_line() {
        let mut log = Log::new(TOKEN);
        for number in 0..1000 {
            log.feed(format!("line {number}\n").as_bytes());
        }
        log.feed(b"Kernel panic");

        let tail = log.tail();
        assert_eq!(tail.len(), TAIL);
        assert_eq!(tail.last().unwrap(), "Kernel panic");
    }

    #[test]
    fn endless_lines_take_bounded_memory() {
        let mut log = Log::new(TOKEN);
        log.feed(&vec![b'x'; 10 * MAX_LINE]);

        assert_eq!(log.tail()[0].len(), MAX_LINE);
    }

    proptest! {
        #[test]
        fn no_bytes_without_the_token_make_a_mark(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut log = Log::new(TOKEN);
            prop_assert!(log.feed(&bytes).iter().all(|(_, mark)| mark.is_none()));
        }
    }
}

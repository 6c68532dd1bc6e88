//! What a host that serves says between the outputs of its programs.

/// A mark with its verdict is not longer than this; a longer line is output.
const MAX_MARK: usize = 96;

/// A part of what the line from the host carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// A program's output.
    Output(Vec<u8>),
    /// The host takes requests from now on.
    Ready,
    /// The program of the last request has ended.
    End {
        /// Its exit status.
        status: u8,
        /// The host is as it came up.
        whole: bool,
    },
}

/// Tells the host's marks from output. A mark is a NUL, the token of the boot and a verdict, up to the end of
/// the line; host-init.sh writes it.
#[derive(Debug)]
pub(crate) struct Trailers {
    mark: Vec<u8>,
    held: Vec<u8>,
}

impl Trailers {
    /// Marks that carry `token`.
    pub(crate) fn new(token: &str) -> Self {
        Self { mark: format!("\0{token} ").into_bytes(), held: Vec::new() }
    }

    /// Takes the next bytes. What may become a mark is held until it is known.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Vec<Piece> {
        self.held.extend_from_slice(bytes);
        let held = std::mem::take(&mut self.held);
        let mut pieces = Vec::new();
        let (mut output, mut rest) = (Vec::new(), held.as_slice());
        while let Some(at) = rest.iter().position(|byte| *byte == 0) {
            let (before, from) = rest.split_at(at);
            output.extend_from_slice(before);
            match self.read(from) {
                Found::Mark(piece, length) => {
                    flush(&mut output, &mut pieces);
                    pieces.push(piece);
                    rest = from.get(length..).unwrap_or_default();
                }
                Found::Nothing => {
                    let (nul, after) = from.split_at(1);
                    output.extend_from_slice(nul);
                    rest = after;
                }
                Found::Start => {
                    self.held = from.to_vec();
                    rest = &[];
                }
            }
        }
        output.extend_from_slice(rest);
        flush(&mut output, &mut pieces);
        pieces
    }

    /// What the bytes from a NUL on are.
    fn read(&self, from: &[u8]) -> Found {
        let Some(verdict) = from.strip_prefix(self.mark.as_slice()) else {
            return if self.mark.starts_with(from) { Found::Start } else { Found::Nothing };
        };
        let Some(end) = verdict.iter().position(|byte| *byte == b'\n') else {
            return if from.len() < MAX_MARK { Found::Start } else { Found::Nothing };
        };
        let words = verdict.get(..end).and_then(|line| std::str::from_utf8(line).ok());
        let words: Vec<&str> =
            words.unwrap_or_default().trim_end_matches('\r').split(' ').collect();
        let length = self.mark.len() + end + 1;
        match words[..] {
            ["ready"] => Found::Mark(Piece::Ready, length),
            ["end", status, whole @ ("0" | "1")] => {
                status.parse().map_or(Found::Nothing, |status| {
                    Found::Mark(Piece::End { status, whole: whole == "1" }, length)
                })
            }
            _ => Found::Nothing,
        }
    }
}

enum Found {
    /// A mark of so many bytes.
    Mark(Piece, usize),
    /// What may become one.
    Start,
    Nothing,
}

fn flush(output: &mut Vec<u8>, pieces: &mut Vec<Piece>) {
    if !output.is_empty() {
        pieces.push(Piece::Output(std::mem::take(output)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOKEN: &str = "00112233445566778899aabbccddeeff";

    fn output(text: &[u8]) -> Piece {
        Piece::Output(text.to_vec())
    }

    #[test]
    fn marks_are_told_from_output_without_a_line_of_their_own() {
        let mut trailers = Trailers::new(TOKEN);
        let text = format!("\0{TOKEN} ready\nno line\0{TOKEN} end 7 1\nnext\n\0{TOKEN} end 0 0\n");

        assert_eq!(
            trailers.feed(text.as_bytes()),
            [
                Piece::Ready,
                output(b"no line"),
                Piece::End { status: 7, whole: true },
                output(b"next\n"),
                Piece::End { status: 0, whole: false },
            ]
        );
    }

    #[test]
    fn a_mark_cut_into_single_bytes_is_read_and_output_before_it_is_not_held() {
        let mut trailers = Trailers::new(TOKEN);
        let text = format!("x\0{TOKEN} end 3 1\n");

        let pieces: Vec<_> = text.bytes().flat_map(|byte| trailers.feed(&[byte])).collect();

        assert_eq!(pieces, [output(b"x"), Piece::End { status: 3, whole: true }]);
    }

    #[test]
    fn other_tokens_odd_verdicts_and_endless_ones_are_output() {
        for text in [
            format!("\0{TOKEN}x end 0 1\n"),
            format!("\0{TOKEN} end 256 1\n"),
            format!("\0{TOKEN} end 0\n"),
            format!("\0{TOKEN} end 0 2\n"),
            format!("\0{TOKEN} {}", "x".repeat(MAX_MARK)),
            "\0\0\0x".to_owned(),
        ] {
            let mut trailers = Trailers::new(TOKEN);

            assert_eq!(trailers.feed(text.as_bytes()), [output(text.as_bytes())], "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn all_output_comes_through_in_order(parts in prop::collection::vec(prop::collection::vec(0u8..3, 0..20), 0..20)) {
            let mut trailers = Trailers::new("\u{1}\u{2}\u{1}\u{2}\u{1}\u{2}\u{1}\u{2}\u{1}\u{2}\u{1}\u{2}");
            let mut seen = Vec::new();
            for piece in parts.iter().chain([&b"end".to_vec()]).flat_map(|part| trailers.feed(part)) {
                match piece {
                    Piece::Output(bytes) => seen.extend(bytes),
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            prop_assert_eq!(seen, [parts.concat(), b"end".to_vec()].concat());
        }
    }
}

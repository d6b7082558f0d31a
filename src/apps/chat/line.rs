//! Splits input into lines that end in LF or CRLF, with a length limit, and drops telnet negotiation.
//!
//! A telnet command (RFC 854) begins with the byte IAC. The server supports no options and never replies to
//! negotiation. LF always ends the line, even inside a telnet command: bytes that merely look like telnet must not
//! swallow the following text.

/// Interpret As Command.
const IAC: u8 = 255;
/// The commands that are followed by an option code: WILL, WONT, DO, DONT.
const OPTION_COMMANDS: std::ops::RangeInclusive<u8> = 251..=254;
const SUBNEGOTIATION: u8 = 250;
const SUBNEGOTIATION_END: u8 = 240;

/// Maximum length of a subnegotiation in bytes; any excess is treated as text. Real ones have a few dozen bytes.
const SUBNEGOTIATION_MAX: u16 = 512;

/// Maximum length of a line in bytes, without its line ending.
pub(super) const LINE_BYTES_MAX: usize = 2000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum TelnetState {
    #[default]
    Text,
    Command,
    Option,
    /// Inside a subnegotiation, with the number of bytes received.
    Subnegotiation(u16),
    /// After an IAC inside a subnegotiation, with the number of bytes received.
    SubnegotiationIac(u16),
}

/// An event returned by [`LineReader::next`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LineEvent {
    /// A line without its line ending.
    Line(Vec<u8>),
    /// The current line is longer than [`LINE_BYTES_MAX`]. Returned once per line; the rest of the line is skipped.
    TooLong,
}

/// Assembles lines from arbitrary chunks of input.
#[derive(Debug, Default)]
pub(super) struct LineReader {
    line: Vec<u8>,
    /// True while the rest of a line that is too long is skipped.
    skipping: bool,
    telnet: TelnetState,
}

impl LineReader {
    /// Consumes `input` up to the next event and returns the event. Returns `None` once all input has been consumed.
    pub(super) fn next(&mut self, input: &mut &[u8]) -> Option<LineEvent> {
        while let Some(&byte) = input.first() {
            if self.telnet == TelnetState::Text {
                let event = self.read_text(input);
                if event.is_some() {
                    return event;
                }
            } else if self.read_command(byte) {
                *input = &input[1..];
            }
        }
        None
    }

    /// Consumes text up to a line ending or a telnet command.
    fn read_text(&mut self, input: &mut &[u8]) -> Option<LineEvent> {
        let stop = memchr::memchr2(b'\n', IAC, input).unwrap_or(input.len());
        if stop > 0 {
            let piece = &input[..stop];
            *input = &input[stop..];
            return self.append(piece);
        }
        let byte = input[0];
        *input = &input[1..];
        if byte == IAC {
            self.telnet = TelnetState::Command;
            return None;
        }
        let mut line = std::mem::take(&mut self.line);
        if std::mem::take(&mut self.skipping) {
            return None;
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Some(if line.len() > LINE_BYTES_MAX { LineEvent::TooLong } else { LineEvent::Line(line) })
    }

    fn append(&mut self, piece: &[u8]) -> Option<LineEvent> {
        if self.skipping {
            return None;
        }
        // One more byte may be the CR of the line ending.
        let len = self.line.len() + piece.len();
        if len > LINE_BYTES_MAX + 1 || (len > LINE_BYTES_MAX && piece.last() != Some(&b'\r')) {
            self.line = Vec::new();
            self.skipping = true;
            return Some(LineEvent::TooLong);
        }
        self.line.extend_from_slice(piece);
        None
    }

    /// Advances the telnet state machine by one byte. Returns whether the byte is part of the command.
    #[allow(clippy::match_same_arms, reason = "the order of the arms matters")]
    fn read_command(&mut self, byte: u8) -> bool {
        if byte == b'\n' {
            self.telnet = TelnetState::Text;
            return false;
        }
        let (next, taken) = match (self.telnet, byte) {
            // The escaped byte 255, which never occurs in valid UTF-8.
            (TelnetState::Command, IAC) => {
                self.telnet = TelnetState::Text;
                // If this makes the line too long, that is detected with the next piece or at the line ending.
                if !self.skipping && self.line.len() <= LINE_BYTES_MAX + 1 {
                    self.line.push(IAC);
                }
                return true;
            }
            (TelnetState::Command, SUBNEGOTIATION) => (TelnetState::Subnegotiation(0), true),
            (TelnetState::Command, byte) if OPTION_COMMANDS.contains(&byte) => (TelnetState::Option, true),
            // Not a command: drop the IAC, treat the byte as text.
            (TelnetState::Command, ..SUBNEGOTIATION_END) => (TelnetState::Text, false),
            (TelnetState::SubnegotiationIac(_), SUBNEGOTIATION_END) => (TelnetState::Text, true),
            (TelnetState::Subnegotiation(count) | TelnetState::SubnegotiationIac(count), _)
                if count >= SUBNEGOTIATION_MAX =>
            {
                (TelnetState::Text, false)
            }
            (TelnetState::Subnegotiation(count), IAC) => (TelnetState::SubnegotiationIac(count), true),
            (TelnetState::Subnegotiation(count) | TelnetState::SubnegotiationIac(count), _) => {
                (TelnetState::Subnegotiation(count + 1), true)
            }
            // A two-byte command, or the last byte of a three-byte command.
            (TelnetState::Command | TelnetState::Option | TelnetState::Text, _) => (TelnetState::Text, true),
        };
        self.telnet = next;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an input in chunks of `chunk_len` bytes.
    fn lines_in_chunks(input: &[u8], chunk_len: usize) -> Vec<LineEvent> {
        let (mut reader, mut lines) = (LineReader::default(), Vec::new());
        for mut piece in input.chunks(chunk_len) {
            while let Some(event) = reader.next(&mut piece) {
                lines.push(event);
            }
            assert!(piece.is_empty());
            assert!(reader.line.len() <= LINE_BYTES_MAX + 2);
        }
        lines
    }

    /// Reads an input, and asserts that the result does not depend on the chunk size.
    fn lines(input: &[u8]) -> Vec<LineEvent> {
        let whole = lines_in_chunks(input, input.len());
        for chunk_len in [1, 2, 3, 7, 1999, 2001] {
            assert_eq!(lines_in_chunks(input, chunk_len), whole, "in chunks of {chunk_len}");
        }
        whole
    }

    fn line(bytes: &[u8]) -> LineEvent {
        LineEvent::Line(bytes.to_vec())
    }

    #[test]
    fn lf_and_crlf_end_a_line_and_an_unterminated_line_is_not_returned() {
        assert_eq!(lines(b"a\nb\r\n\nc\rd\n\r\nrest"), [line(b"a"), line(b"b"), line(b""), line(b"c\rd"), line(b"")]);
        assert_eq!(lines("gr\u{fc}\u{df}e \u{1f600}\n".as_bytes()), [line("gr\u{fc}\u{df}e \u{1f600}".as_bytes())]);
    }

    #[test]
    fn a_line_of_2000_bytes_is_accepted_and_a_longer_one_is_reported_once_and_skipped() {
        let longest = vec![b'x'; LINE_BYTES_MAX];
        for end in ["\n", "\r\n"] {
            let input = [&longest, end.as_bytes(), b"next\n"].concat();
            assert_eq!(lines(&input), [line(&longest), line(b"next")]);
            let input = [&longest, &b"y"[..], end.as_bytes(), b"next\n"].concat();
            assert_eq!(lines(&input), [LineEvent::TooLong, line(b"next")]);
        }
        assert_eq!(lines(&[&longest, &b"\rx\nnext\n"[..]].concat()), [LineEvent::TooLong, line(b"next")]);
        for tail in [&b"\xff\xff"[..], b"\r\xff\xff", b"\r\xff\xff\r"] {
            assert_eq!(lines(&[&longest, tail, b"\nnext\n"].concat()), [LineEvent::TooLong, line(b"next")]);
        }
        assert_eq!(lines(&vec![b'x'; 100_000]), [LineEvent::TooLong]);
    }

    proptest::proptest! {
        #[test]
        fn every_lf_ends_a_line_whatever_precedes_it(
            input in proptest::collection::vec(proptest::sample::select(vec![IAC, 250, 240, 251, 241, 0, b'a', b'\r', b'\n']), 1..400),
        ) {
            let events = lines(&input);
            let ends = memchr::memchr_iter(b'\n', &input).count();
            assert_eq!(events.len(), ends);
            assert!(events.iter().all(|event| matches!(event, LineEvent::Line(line) if !line.contains(&b'\n'))));
        }
    }

    #[test]
    fn telnet_negotiation_is_dropped() {
        assert_eq!(lines(b"a\xff\xfb\x01b\xff\xfd\xffc\xff\xf1d\n"), [line(b"abcd")]);
        assert_eq!(lines(b"a\xff\xfa\x18\x00xterm\xff\xffx\xff\xf0b\n"), [line(b"ab")]);
        assert_eq!(lines(b"a\xff\xffb\n"), [line(b"a\xffb")]);
        assert_eq!(lines(b"a\xff b\n"), [line(b"a b")]);
    }

    #[test]
    fn telnet_commands_never_swallow_a_line_ending_and_subnegotiations_are_bounded() {
        for command in [&b"\xff"[..], b"\xff\xfb", b"\xff\xfa", b"\xff\xfa\x1f\x00", b"\xff\xfa\x1f\xff"] {
            let input = [b"a", command, b"\nb\n"].concat();
            assert_eq!(lines(&input), [line(b"a"), line(b"b")], "{command:?}");
        }
        let endless = [&b"\xff\xfa"[..], &[b'x'; 600], b"\n"].concat();
        assert_eq!(lines(&endless), [line(&[b'x'; 600 - SUBNEGOTIATION_MAX as usize])]);
    }
}

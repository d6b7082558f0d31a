//! From bytes to lines: LF or CRLF ends one, telnet negotiation is dropped, and no line grows without end.
//!
//! Telnet (RFC 854) begins a command with the octet IAC. Nobody here asks for any option, so whatever is offered needs
//! no answer. A line end ends the line wherever it stands, within a command too: what only looks like telnet must not
//! swallow what a person wrote.

/// Interpret As Command.
const IAC: u8 = 255;
/// The commands with an option behind them: WILL, WONT, DO, DONT.
const OPTION_COMMANDS: std::ops::RangeInclusive<u8> = 251..=254;
const SUBNEGOTIATION: u8 = 250;
const SUBNEGOTIATION_END: u8 = 240;

/// Octets of a subnegotiation that are dropped before it is taken for text again; the longest in use have some dozens.
const SUBNEGOTIATION_MAX: u16 = 512;

/// Octets of a line, without its end.
pub(super) const LINE_BYTES_MAX: usize = 2000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Telnet {
    #[default]
    Text,
    Command,
    Option,
    /// Within a subnegotiation, of which so many octets came.
    Sub(u16),
    /// After an IAC in it.
    SubCommand(u16),
}

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// A line without its end.
    Line(Vec<u8>),
    /// The line at hand is longer than [`LINE_BYTES_MAX`]; told once, the rest of it is skipped.
    TooLong,
}

/// Puts lines together from whatever pieces they come in.
#[derive(Debug, Default)]
pub(super) struct LineReader {
    line: Vec<u8>,
    skipping: bool,
    telnet: Telnet,
}

impl LineReader {
    /// Reads on until something is to be told, and leaves the rest in `input`. `None`: all is read.
    pub(super) fn next(&mut self, input: &mut &[u8]) -> Option<Reading> {
        while let Some(&byte) = input.first() {
            if self.telnet == Telnet::Text {
                let told = self.text(input);
                if told.is_some() {
                    return told;
                }
            } else if self.command(byte) {
                *input = &input[1..];
            }
        }
        None
    }

    /// Takes text up to a line end or a command.
    fn text(&mut self, input: &mut &[u8]) -> Option<Reading> {
        let stop = memchr::memchr2(b'\n', IAC, input).unwrap_or(input.len());
        if stop > 0 {
            let piece = &input[..stop];
            *input = &input[stop..];
            return self.append(piece);
        }
        let byte = input[0];
        *input = &input[1..];
        if byte == IAC {
            self.telnet = Telnet::Command;
            return None;
        }
        let mut line = std::mem::take(&mut self.line);
        if std::mem::take(&mut self.skipping) {
            return None;
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Some(if line.len() > LINE_BYTES_MAX { Reading::TooLong } else { Reading::Line(line) })
    }

    fn append(&mut self, piece: &[u8]) -> Option<Reading> {
        if self.skipping {
            return None;
        }
        // One octet more may be the CR of the line end.
        let len = self.line.len() + piece.len();
        if len > LINE_BYTES_MAX + 1 || (len > LINE_BYTES_MAX && piece.last() != Some(&b'\r')) {
            self.line = Vec::new();
            self.skipping = true;
            return Some(Reading::TooLong);
        }
        self.line.extend_from_slice(piece);
        None
    }

    /// One octet of a command; says whether it belongs to it.
    #[allow(clippy::match_same_arms, reason = "the order of the arms tells them apart")]
    fn command(&mut self, byte: u8) -> bool {
        if byte == b'\n' {
            self.telnet = Telnet::Text;
            return false;
        }
        let (next, taken) = match (self.telnet, byte) {
            // The octet 255 itself, which no UTF-8 text has.
            (Telnet::Command, IAC) => {
                self.telnet = Telnet::Text;
                // A line that it makes too long is noticed with the next piece, or at its end.
                if !self.skipping && self.line.len() <= LINE_BYTES_MAX + 1 {
                    self.line.push(IAC);
                }
                return true;
            }
            (Telnet::Command, SUBNEGOTIATION) => (Telnet::Sub(0), true),
            (Telnet::Command, byte) if OPTION_COMMANDS.contains(&byte) => (Telnet::Option, true),
            // No command at all: the IAC is dropped, what follows is text.
            (Telnet::Command, ..SUBNEGOTIATION_END) => (Telnet::Text, false),
            (Telnet::SubCommand(_), SUBNEGOTIATION_END) => (Telnet::Text, true),
            (Telnet::Sub(count) | Telnet::SubCommand(count), _) if count >= SUBNEGOTIATION_MAX => (Telnet::Text, false),
            (Telnet::Sub(count), IAC) => (Telnet::SubCommand(count), true),
            (Telnet::Sub(count) | Telnet::SubCommand(count), _) => (Telnet::Sub(count + 1), true),
            // A command of two octets, or the end of one of three.
            (Telnet::Command | Telnet::Option | Telnet::Text, _) => (Telnet::Text, true),
        };
        self.telnet = next;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of an input that comes in pieces of `step` octets.
    fn lines_by(input: &[u8], step: usize) -> Vec<Reading> {
        let (mut reader, mut lines) = (LineReader::default(), Vec::new());
        for mut piece in input.chunks(step) {
            while let Some(reading) = reader.next(&mut piece) {
                lines.push(reading);
            }
            assert!(piece.is_empty());
            assert!(reader.line.len() <= LINE_BYTES_MAX + 2);
        }
        lines
    }

    /// The same however the input is cut.
    fn lines(input: &[u8]) -> Vec<Reading> {
        let whole = lines_by(input, input.len());
        for step in [1, 2, 3, 7, 1999, 2001] {
            assert_eq!(lines_by(input, step), whole, "in pieces of {step}");
        }
        whole
    }

    fn line(bytes: &[u8]) -> Reading {
        Reading::Line(bytes.to_vec())
    }

    #[test]
    fn lf_and_crlf_end_a_line_and_what_has_no_end_is_none() {
        assert_eq!(lines(b"a\nb\r\n\nc\rd\n\r\nrest"), [line(b"a"), line(b"b"), line(b""), line(b"c\rd"), line(b"")]);
        assert_eq!(lines("gr\u{fc}\u{df}e \u{1f600}\n".as_bytes()), [line("gr\u{fc}\u{df}e \u{1f600}".as_bytes())]);
    }

    #[test]
    fn a_line_of_2000_octets_passes_and_a_longer_one_is_told_once_and_skipped() {
        let longest = vec![b'x'; LINE_BYTES_MAX];
        for end in ["\n", "\r\n"] {
            let input = [&longest, end.as_bytes(), b"next\n"].concat();
            assert_eq!(lines(&input), [line(&longest), line(b"next")]);
            let input = [&longest, &b"y"[..], end.as_bytes(), b"next\n"].concat();
            assert_eq!(lines(&input), [Reading::TooLong, line(b"next")]);
        }
        assert_eq!(lines(&[&longest, &b"\rx\nnext\n"[..]].concat()), [Reading::TooLong, line(b"next")]);
        for tail in [&b"\xff\xff"[..], b"\r\xff\xff", b"\r\xff\xff\r"] {
            assert_eq!(lines(&[&longest, tail, b"\nnext\n"].concat()), [Reading::TooLong, line(b"next")]);
        }
        assert_eq!(lines(&vec![b'x'; 100_000]), [Reading::TooLong]);
    }

    proptest::proptest! {
        #[test]
        fn every_line_end_ends_a_line_whatever_stands_before_it(
            input in proptest::collection::vec(proptest::sample::select(vec![IAC, 250, 240, 251, 241, 0, b'a', b'\r', b'\n']), 1..400),
        ) {
            let told = lines(&input);
            let ends = memchr::memchr_iter(b'\n', &input).count();
            assert_eq!(told.len(), ends);
            assert!(told.iter().all(|reading| matches!(reading, Reading::Line(line) if !line.contains(&b'\n'))));
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
    fn telnet_never_eats_a_line_end_and_its_subnegotiation_is_bounded() {
        for command in [&b"\xff"[..], b"\xff\xfb", b"\xff\xfa", b"\xff\xfa\x1f\x00", b"\xff\xfa\x1f\xff"] {
            let input = [b"a", command, b"\nb\n"].concat();
            assert_eq!(lines(&input), [line(b"a"), line(b"b")], "{command:?}");
        }
        let endless = [&b"\xff\xfa"[..], &[b'x'; 600], b"\n"].concat();
        assert_eq!(lines(&endless), [line(&[b'x'; 600 - SUBNEGOTIATION_MAX as usize])]);
    }
}

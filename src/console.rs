//! Standard output of the commands that print what came from elsewhere.
//!
//! A file, a pipe and a terminal of Unix take octets, and get what came. A console of Windows takes text, and refuses
//! what is not UTF-8 as an error; there a replacement character stands for it, and a character that came in two pieces
//! is shown as one.

use std::io::{self, IsTerminal, StdoutLock, Write};
use std::mem;

/// Standard output, for octets of any kind.
pub enum Output {
    /// Takes octets.
    Octets(StdoutLock<'static>),
    /// Takes text.
    Text(Text<StdoutLock<'static>>),
}

impl Output {
    /// Locks standard output and finds out what it takes.
    pub fn stdout() -> Self {
        let stdout = io::stdout().lock();
        if cfg!(windows) && stdout.is_terminal() { Output::Text(Text::new(stdout)) } else { Output::Octets(stdout) }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Output::Octets(out) => out.write(bytes),
            Output::Text(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Output::Octets(out) => out.flush(),
            Output::Text(out) => out.flush(),
        }
    }
}

/// Makes UTF-8 of all that is written: what is not becomes U+FFFD, one for each maximal subpart (the Unicode Standard,
/// section 3.9). The first octets of a character wait for the others, at most three; where those never come, they are
/// replaced when this is dropped.
///
/// # Examples
/// ```
/// use std::io::Write;
/// let mut shown = Vec::new();
/// let mut text = serverd::console::Text::new(&mut shown);
/// text.write_all(b"caf\xc3")?;
/// text.write_all(b"\xa9 \xff")?;
/// drop(text);
/// assert_eq!(shown, "caf\u{e9} \u{fffd}".as_bytes());
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Text<W: Write> {
    out: W,
    decoder: Decoder,
}

impl<W: Write> Text<W> {
    /// Text for `out`.
    pub fn new(out: W) -> Self {
        Text { out, decoder: Decoder::default() }
    }
}

impl<W: Write> Write for Text<W> {
    /// Takes all, or fails.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = self.decoder.push(bytes);
        self.out.write_all(text.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl<W: Write> Drop for Text<W> {
    fn drop(&mut self) {
        let rest = self.decoder.finish();
        if !rest.is_empty() {
            // Who looks at a console sees whether something comes there.
            let _ = self.out.write_all(rest.as_bytes()).and_then(|()| self.out.flush());
        }
    }
}

/// Octets to text, in pieces.
#[derive(Default)]
struct Decoder {
    /// The beginning of a character.
    begun: Vec<u8>,
}

impl Decoder {
    fn push(&mut self, bytes: &[u8]) -> String {
        let mut octets = mem::take(&mut self.begun);
        octets.extend_from_slice(bytes);
        let mut text = String::with_capacity(octets.len());
        let mut left = octets.len();
        for chunk in octets.utf8_chunks() {
            text.push_str(chunk.valid());
            left -= chunk.valid().len() + chunk.invalid().len();
            if left == 0 && is_beginning(chunk.invalid()) {
                self.begun = chunk.invalid().to_vec();
            } else if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text
    }

    fn finish(&mut self) -> String {
        String::from_utf8_lossy(&mem::take(&mut self.begun)).into_owned()
    }
}

/// Whether more octets can make a character of these.
fn is_beginning(octets: &[u8]) -> bool {
    std::str::from_utf8(octets).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXED: &[u8] =
        b"a\xc3\xbc\xe6\xbc\xa2\xf0\x9f\xa6\x80\xff\xe6\xbc.\xf0\x9f\xa6\xc3\xbc\xed\xa0\x80\xc0\xaf\xe6";

    fn shown(pieces: &[&[u8]]) -> String {
        let mut shown = Vec::new();
        let mut text = Text::new(&mut shown);
        for piece in pieces {
            text.write_all(piece).expect("a vector takes all");
        }
        drop(text);
        String::from_utf8(shown).expect("text")
    }

    #[test]
    fn what_is_no_text_is_replaced_and_what_is_stays() {
        assert_eq!(shown(&[MIXED]), String::from_utf8_lossy(MIXED));
        let text = "a\u{fc}\u{6f22}\u{1f980}\r\n\u{0}\u{1b}[31m";
        assert_eq!(shown(&[text.as_bytes()]), text);
        assert_eq!(shown(&[]), "");
    }

    #[test]
    fn text_is_the_same_wherever_it_was_cut() {
        let whole = String::from_utf8_lossy(MIXED);
        for first in 0..=MIXED.len() {
            for second in first..=MIXED.len() {
                let seen = shown(&[&MIXED[..first], &MIXED[first..second], &MIXED[second..]]);
                assert_eq!(seen, whole, "{first}, {second}");
            }
        }
        let octets: Vec<&[u8]> = MIXED.chunks(1).collect();
        assert_eq!(shown(&octets), whole);
    }

    #[test]
    fn what_can_be_shown_does_not_wait() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.push(b"a\xe6\xbc"), "a");
        assert_eq!(decoder.push(b"\xa2b\xff"), "\u{6f22}b\u{fffd}");
        assert_eq!(decoder.push(b"\xf0"), "");
        assert_eq!(decoder.push(b"\xf0"), "\u{fffd}");
        assert_eq!((decoder.finish(), decoder.finish()), ("\u{fffd}".into(), String::new()));
    }

    #[test]
    fn what_is_not_taken_is_told() {
        let mut room = [0; 2];
        let mut full = Text::new(&mut room[..]);
        assert_eq!(full.write(b"ab").expect("there is room"), 2);
        assert_eq!(full.write(b"c").expect_err("there is none").kind(), io::ErrorKind::WriteZero);
    }
}

//! The client commands of the `serverd` binary, built on [`http1`](crate::http1), and their standard output.
//!
//! Files, pipes and Unix terminals accept arbitrary bytes, so data received from the network is written to them unchanged.
//! The Windows console accepts only text, and writing invalid UTF-8 to it fails; there, invalid bytes are replaced by
//! U+FFFD, and characters that are split over several writes are reassembled.

use std::error::Error;
use std::io::{self, BufRead, IsTerminal, StdoutLock, Write};
use std::mem;

use self::cert::Cert;
use self::check::Check;
use self::connect::Connect;

pub mod cert;
pub mod check;
pub mod connect;
mod stream;
pub mod tls_options;

/// The maximum length of a password: bcrypt ignores any further bytes.
const PASSWORD_BYTES_MAX: usize = 72;

/// A client command with its options.
#[derive(Clone, Debug)]
pub enum Client {
    /// Check another server.
    Check(Check),
    /// Connect to another server.
    Connect(Connect),
    /// Hash a password for `--auth`.
    Hash(Hash),
    /// Create a certificate, signed by a local authority.
    Cert(Cert),
}

impl Client {
    /// Runs the command with the standard streams of the process.
    ///
    /// # Errors
    /// Returns the error of the command, preceded by the server that it concerns.
    pub fn run(&self) -> Result<(), Box<dyn Error>> {
        match self {
            Client::Check(check) => {
                check.run(&mut Output::stdout()).map_err(|error| format!("{}: {error}", check.target))?;
            }
            Client::Connect(connect) => {
                let outcome = connect.run(io::stdin(), &mut Output::stdout());
                outcome.map_err(|error| format!("{}: {error}", connect.authority))?;
            }
            Client::Hash(hash) => hash.run(&mut io::stdout().lock())?,
            Client::Cert(cert) => cert.run(&mut io::stdout().lock())?,
        }
        Ok(())
    }
}

/// Options of `serverd hash`, which hashes a password for `serverd files --auth`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hash {
    /// The user name.
    pub name: String,
    /// The bcrypt cost: the base-2 logarithm of the number of rounds.
    pub cost: u32,
}

impl Hash {
    /// Reads a password and writes the line `NAME:HASH` to `out`. If standard input is a terminal, prompts for the
    /// password without echoing it; otherwise reads it from the first line.
    ///
    /// # Errors
    /// Returns a message for the user if the password cannot be read or is not valid, or if writing fails.
    pub fn run(&self, out: &mut impl Write) -> Result<(), String> {
        let password = if io::stdin().is_terminal() { prompt()? } else { first_line(&mut io::stdin().lock())? };
        let line = self.line(&password)?;
        out.write_all(line.as_bytes()).and_then(|()| out.flush()).map_err(|error| format!("cannot write: {error}"))
    }

    fn line(&self, password: &str) -> Result<String, String> {
        if password.is_empty() {
            return Err("no password given; type one, or pipe it in as one line".into());
        }
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(format!("the password is longer than {PASSWORD_BYTES_MAX} bytes, the limit of bcrypt"));
        }
        let hash = bcrypt::hash(password, self.cost).map_err(|error| format!("cannot hash the password: {error}"))?;
        Ok(format!("{}:{hash}\n", self.name))
    }
}

fn prompt() -> Result<String, String> {
    let read =
        |text: &str| rpassword::prompt_password(text).map_err(|error| format!("cannot read the password: {error}"));
    let password = read("Password: ")?;
    if read("Repeat password: ")? == password {
        Ok(password)
    } else {
        Err("the passwords do not match; try again".into())
    }
}

fn first_line(input: &mut impl BufRead) -> Result<String, String> {
    let mut line = String::new();
    input.read_line(&mut line).map_err(|error| format!("cannot read the password: {error}"))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Standard output that accepts arbitrary bytes.
pub enum Output {
    /// A file, a pipe, or a Unix terminal.
    Bytes(StdoutLock<'static>),
    /// A Windows console.
    Text(Text<StdoutLock<'static>>),
}

impl Output {
    /// Locks standard output and detects its kind.
    pub fn stdout() -> Self {
        let stdout = io::stdout().lock();
        if cfg!(windows) && stdout.is_terminal() { Output::Text(Text::new(stdout)) } else { Output::Bytes(stdout) }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Output::Bytes(out) => out.write(bytes),
            Output::Text(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Output::Bytes(out) => out.flush(),
            Output::Text(out) => out.flush(),
        }
    }
}

/// A writer that converts its input to valid UTF-8.
///
/// Each maximal subpart of an invalid sequence becomes U+FFFD (Unicode Standard, section 3.9). An incomplete character
/// at the end of a write, at most three bytes, is held back until the rest of it is written; if it is still incomplete
/// when the writer is dropped, it is replaced.
///
/// # Examples
/// ```
/// use std::io::Write;
/// let mut shown = Vec::new();
/// let mut text = serverd::client::Text::new(&mut shown);
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
    /// Creates a writer that writes text to `out`.
    pub fn new(out: W) -> Self {
        Text { out, decoder: Decoder::default() }
    }
}

impl<W: Write> Write for Text<W> {
    /// Writes all of `bytes`, or fails.
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
            // `drop` cannot report errors.
            let _ = self.out.write_all(rest.as_bytes()).and_then(|()| self.out.flush());
        }
    }
}

/// An incremental, lossy UTF-8 decoder.
#[derive(Default)]
struct Decoder {
    /// The first bytes of an incomplete character.
    partial: Vec<u8>,
}

impl Decoder {
    fn push(&mut self, bytes: &[u8]) -> String {
        let mut pending = mem::take(&mut self.partial);
        pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(pending.len());
        let mut bytes_left = pending.len();
        for chunk in pending.utf8_chunks() {
            text.push_str(chunk.valid());
            bytes_left -= chunk.valid().len() + chunk.invalid().len();
            if bytes_left == 0 && is_incomplete(chunk.invalid()) {
                self.partial = chunk.invalid().to_vec();
            } else if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text
    }

    fn finish(&mut self) -> String {
        String::from_utf8_lossy(&mem::take(&mut self.partial)).into_owned()
    }
}

/// Returns whether `bytes` is the beginning of a valid UTF-8 sequence.
fn is_incomplete(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hashed_password_verifies() {
        let hash = Hash { name: "alice".into(), cost: 4 };
        let line = hash.line("wonder land ").unwrap();
        let hashed = line.strip_prefix("alice:").and_then(|rest| rest.strip_suffix('\n')).unwrap();
        assert!(bcrypt::verify("wonder land ", hashed).unwrap());
        assert!(hash.line("").unwrap_err().contains("no password given"));
        assert!(hash.line(&"x".repeat(73)).unwrap_err().contains("72 bytes"));
        assert_eq!(first_line(&mut &b"a b \r\nc"[..]).unwrap(), "a b ");
    }

    const MIXED: &[u8] =
        b"a\xc3\xbc\xe6\xbc\xa2\xf0\x9f\xa6\x80\xff\xe6\xbc.\xf0\x9f\xa6\xc3\xbc\xed\xa0\x80\xc0\xaf\xe6";

    fn shown(pieces: &[&[u8]]) -> String {
        let mut shown = Vec::new();
        let mut text = Text::new(&mut shown);
        for piece in pieces {
            text.write_all(piece).expect("writing to a vector succeeds");
        }
        drop(text);
        String::from_utf8(shown).expect("valid UTF-8")
    }

    #[test]
    fn invalid_bytes_are_replaced_and_text_is_unchanged() {
        assert_eq!(shown(&[MIXED]), String::from_utf8_lossy(MIXED));
        let text = "a\u{fc}\u{6f22}\u{1f980}\r\n\u{0}\u{1b}[31m";
        assert_eq!(shown(&[text.as_bytes()]), text);
        assert_eq!(shown(&[]), "");
    }

    #[test]
    fn output_does_not_depend_on_how_the_input_is_split() {
        let whole = String::from_utf8_lossy(MIXED);
        for first in 0..=MIXED.len() {
            for second in first..=MIXED.len() {
                let text = shown(&[&MIXED[..first], &MIXED[first..second], &MIXED[second..]]);
                assert_eq!(text, whole, "{first}, {second}");
            }
        }
        let single_bytes: Vec<&[u8]> = MIXED.chunks(1).collect();
        assert_eq!(shown(&single_bytes), whole);
    }

    #[test]
    fn complete_characters_are_not_held_back() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.push(b"a\xe6\xbc"), "a");
        assert_eq!(decoder.push(b"\xa2b\xff"), "\u{6f22}b\u{fffd}");
        assert_eq!(decoder.push(b"\xf0"), "");
        assert_eq!(decoder.push(b"\xf0"), "\u{fffd}");
        assert_eq!((decoder.finish(), decoder.finish()), ("\u{fffd}".into(), String::new()));
    }

    #[test]
    fn write_errors_are_returned() {
        let mut buffer = [0; 2];
        let mut text = Text::new(&mut buffer[..]);
        assert_eq!(text.write(b"ab").expect("two bytes fit"), 2);
        assert_eq!(text.write(b"c").expect_err("the buffer is full").kind(), io::ErrorKind::WriteZero);
    }
}

//! `serverd check`: asks a server once, as a health check does, and says why it is not well.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::ops::RangeInclusive;
use std::thread;
use std::time::Duration;

use crate::dial::{Authority, Deadline, DialError};
use crate::http1::{Limits, ResponseEvent, ResponseFault, ResponseReader};

/// Where a check goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `http://HOST:PORT/PATH`: a GET must be answered.
    Http {
        /// Whom to ask.
        authority: Authority,
        /// The Host field: the authority as the target has it.
        host: String,
        /// Path and query.
        path: String,
    },
    /// `tcp://HOST:PORT`: a connection must be accepted.
    Tcp(Authority),
}

impl Target {
    /// Reads a target.
    ///
    /// # Errors
    /// One sentence that says what is expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let split = text.split_once("://").map(|(scheme, rest)| (scheme.to_ascii_lowercase(), rest));
        match split {
            Some((scheme, rest)) if scheme == "http" => Self::parse_http(rest),
            Some((scheme, rest)) if scheme == "tcp" => {
                Authority::parse(rest.strip_suffix('/').unwrap_or(rest), None).map(Target::Tcp)
            }
            Some((scheme, _)) if scheme == "https" => {
                Err("https is not spoken here; check the http port, or tcp://HOST:PORT".into())
            }
            _ => Err("a target is http://HOST:PORT/PATH or tcp://HOST:PORT".into()),
        }
    }

    fn parse_http(rest: &str) -> Result<Self, String> {
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (host, path) = rest.split_at(end);
        if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("write spaces and other letters in a path as %20 and so on".into());
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Target::Http { authority: Authority::parse(host, Some(80))?, host: host.to_owned(), path })
    }

    fn authority(&self) -> &Authority {
        match self {
            Target::Http { authority, .. } | Target::Tcp(authority) => authority,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Http { host, path, .. } => write!(formatter, "http://{host}{path}"),
            Target::Tcp(authority) => write!(formatter, "tcp://{authority}"),
        }
    }
}

/// What of the response is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Print {
    /// The status line.
    Status,
    /// The whole head.
    Head,
    /// The body.
    Body,
    /// Head and body.
    All,
}

/// The statuses that are well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect(Vec<RangeInclusive<u16>>);

impl Default for Expect {
    fn default() -> Self {
        Expect(vec![200..=299])
    }
}

impl Expect {
    /// Reads a list such as `200-299,404`.
    ///
    /// # Errors
    /// One sentence that says what is expected.
    ///
    /// # Examples
    /// ```
    /// use serverd::check::Expect;
    /// let expect = Expect::parse("200-299,404")?;
    /// assert!(expect.holds(204) && expect.holds(404) && !expect.holds(500));
    /// # Ok::<(), String>(())
    /// ```
    pub fn parse(text: &str) -> Result<Self, String> {
        let status = |word: &str| match word.parse() {
            Ok(status @ 200..=999) if word.len() == 3 => Ok(status),
            _ => Err(format!("{word:?} is not a status, 200 to 999; write 200-299,404")),
        };
        text.split(',')
            .map(|word| match word.trim().split_once('-') {
                None => status(word.trim()).map(|only| only..=only),
                Some((first, last)) => Ok(status(first)?..=status(last)?),
            })
            .map(|range| match range {
                Ok(range) if range.is_empty() => Err(format!("nothing is in {}-{}", range.start(), range.end())),
                other => other,
            })
            .collect::<Result<_, _>>()
            .map(Expect)
    }

    /// Whether this status is well.
    pub fn holds(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

/// A check and how long it is tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Where it goes.
    pub target: Target,
    /// What is printed.
    pub print: Print,
    /// The statuses that are well.
    pub expect: Expect,
    /// What one try may take, from finding the host to the last byte.
    pub wait: Duration,
    /// Further tries after the first failed.
    pub retry: u32,
    /// The rest before each of them.
    pub every: Duration,
}

/// Why a check failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum CheckError {
    /// Not reached, or lost.
    Dial(DialError),
    /// What answered does not speak HTTP as it should.
    Response(ResponseFault),
    /// The status is not as expected.
    Status(u16),
    /// Standard output does not take what is to be printed.
    Output(io::Error),
}

impl fmt::Display for CheckError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckError::Dial(error) => write!(formatter, "{error}"),
            CheckError::Response(ResponseFault::Truncated) => write!(formatter, "{}", ResponseFault::Truncated),
            CheckError::Response(fault) => write!(formatter, "the answer is not HTTP: {fault}"),
            CheckError::Status(status) => write!(formatter, "the status is {status}, which is not expected"),
            CheckError::Output(error) => write!(formatter, "cannot print the answer: {error}"),
        }
    }
}

impl std::error::Error for CheckError {}

impl Check {
    /// Tries until it succeeds or has been tried often enough, and prints to `out` what the last try brought.
    ///
    /// # Errors
    /// Why the last try failed.
    pub fn run(&self, out: &mut impl Write) -> Result<(), CheckError> {
        let mut left = self.retry;
        loop {
            let mut printed = Printed { out, print: self.print, started: false };
            match self.try_once(left == 0, &mut printed) {
                // What was printed cannot be taken back.
                Err(error) if left == 0 || printed.started => return Err(error),
                Err(_) => thread::sleep(self.every),
                Ok(()) => return Ok(()),
            }
            left -= 1;
        }
    }

    fn try_once(&self, last: bool, printed: &mut Printed<'_, impl Write>) -> Result<(), CheckError> {
        let deadline = Deadline::after(self.wait);
        let mut stream = self.target.authority().dial(deadline).map_err(CheckError::Dial)?;
        match &self.target {
            Target::Tcp(authority) => printed.say(format!("connected to {authority}\n").as_bytes()),
            Target::Http { host, path, .. } => {
                ask(&mut stream, host, path, deadline).map_err(CheckError::Dial)?;
                self.hear(&mut stream, deadline, last, printed)
            }
        }
    }

    /// Reads the response to its end, printing it where it is as expected or the last.
    fn hear(
        &self,
        stream: &mut TcpStream,
        deadline: Deadline,
        last: bool,
        printed: &mut Printed<'_, impl Write>,
    ) -> Result<(), CheckError> {
        let mut reader = ResponseReader::new(Limits::default());
        let (mut buffer, mut start, mut end) = (vec![0; 128 * 1024], 0, 0);
        let (mut status, mut shown) = (0, false);
        loop {
            let (used, event) = reader.receive(&buffer[start..end]).map_err(CheckError::Response)?;
            match event {
                ResponseEvent::Head { status: seen, line, head } => {
                    status = seen;
                    shown = last || self.expect.holds(status);
                    if shown {
                        printed.head(line, head)?;
                    }
                }
                ResponseEvent::Body(bytes) if shown => printed.body(bytes)?,
                ResponseEvent::Body(_) => {}
                ResponseEvent::End => break,
                ResponseEvent::NeedMore => {
                    // A head is the most that is left, and it fits twice.
                    buffer.copy_within(start + used..end, 0);
                    (start, end) = (0, end - start - used);
                    let count = read(stream, &mut buffer[end..], deadline).map_err(CheckError::Dial)?;
                    if count == 0 {
                        reader.finish().map_err(CheckError::Response)?;
                        break;
                    }
                    end += count;
                    continue;
                }
            }
            start += used;
        }
        if self.expect.holds(status) { Ok(()) } else { Err(CheckError::Status(status)) }
    }
}

fn ask(stream: &mut TcpStream, host: &str, path: &str, deadline: Deadline) -> Result<(), DialError> {
    let version = env!("CARGO_PKG_VERSION");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: serverd/{version}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.set_write_timeout(Some(deadline.left()?)).map_err(DialError::Io)?;
    stream.write_all(request.as_bytes()).map_err(|error| deadline.explain(error))
}

fn read(stream: &mut TcpStream, buffer: &mut [u8], deadline: Deadline) -> Result<usize, DialError> {
    loop {
        stream.set_read_timeout(Some(deadline.left()?)).map_err(DialError::Io)?;
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome.map_err(|error| deadline.explain(error)),
        }
    }
}

/// Standard output, and whether anything went there.
struct Printed<'a, W> {
    out: &'a mut W,
    print: Print,
    started: bool,
}

impl<W: Write> Printed<'_, W> {
    fn head(&mut self, line: &[u8], head: &[u8]) -> Result<(), CheckError> {
        match self.print {
            Print::Status => self.say(&[line, b"\n"].concat()),
            Print::Head | Print::All => self.say(head),
            Print::Body => Ok(()),
        }
    }

    fn body(&mut self, bytes: &[u8]) -> Result<(), CheckError> {
        if matches!(self.print, Print::Body | Print::All) { self.say(bytes) } else { Ok(()) }
    }

    /// Who does not want to read the answer still gets the exit code.
    fn say(&mut self, bytes: &[u8]) -> Result<(), CheckError> {
        self.started = true;
        match self.out.write_all(bytes).and_then(|()| self.out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CheckError::Output(error)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_have_defaults_and_refuse_what_is_not_spoken() {
        let http = |text| match Target::parse(text) {
            Ok(Target::Http { authority, host, path }) => (authority.to_string(), host, path),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(http("http://a"), ("a:80".into(), "a".into(), "/".into()));
        assert_eq!(http("HTTP://a:81?x#y"), ("a:81".into(), "a:81".into(), "/?x".into()));
        assert_eq!(http("http://[::1]:82/p/q?r=s"), ("[::1]:82".into(), "[::1]:82".into(), "/p/q?r=s".into()));
        assert!(matches!(Target::parse("tcp://a:1"), Ok(Target::Tcp(_))));
        for (text, complaint) in [
            ("https://a/", "https is not spoken"),
            ("a:80", "a target is"),
            ("ftp://a", "a target is"),
            ("tcp://a", "give a port"),
            ("tcp://a:1/x", "not a port"),
            ("http://u:p@a/", "before @"),
            ("http:///x", "not a host"),
            ("http://a/b c", "%20"),
            ("http://a/\u{e9}", "%20"),
        ] {
            let error = Target::parse(text).unwrap_err();
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }

    #[test]
    fn expectations_are_lists_of_statuses_and_ranges() {
        let expect = Expect::parse("200-204, 301,500-599").unwrap();
        let held: Vec<u16> =
            [200, 204, 205, 301, 302, 503].into_iter().filter(|&status| expect.holds(status)).collect();
        assert_eq!(held, [200, 204, 301, 503]);
        for text in ["", "2xx", "99", "1000", "404-400", "200-", "100"] {
            assert!(Expect::parse(text).is_err(), "{text}");
        }
    }
}

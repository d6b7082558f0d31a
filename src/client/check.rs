//! `serverd check`: a health check of an HTTP or TCP server.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::ops::RangeInclusive;
use std::thread;
use std::time::Duration;

use super::connect::{Authority, Deadline, DialError};
use super::stream::{Connection, TimedSocket};
use super::tls_options::TlsOptions;
use crate::http1::{Limits, ResponseError, ResponseEvent, ResponseReader};
use crate::tls::{ClientStream, Expiry};

/// The server to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `http://HOST:PORT/PATH` or `https://HOST:PORT/PATH`: the status code of the response to a GET request decides.
    Http {
        /// The server to connect to.
        authority: Authority,
        /// The value of the Host header: the authority as written in the URL.
        host: String,
        /// The path and query.
        path: String,
        /// Uses TLS.
        is_secure: bool,
    },
    /// `tcp://HOST:PORT`: the server must accept a connection.
    Tcp(Authority),
    /// `tls://HOST:PORT`: the server must complete a TLS handshake.
    Tls(Authority),
}

impl Target {
    /// Parses a URL with the scheme `http`, `https`, `tcp` or `tls`, or `HOST:PORT`, which means `tcp`. The port of an
    /// `http` URL defaults to 80, and that of an `https` URL to 443.
    ///
    /// # Errors
    /// Returns a message for the user if the URL is not valid.
    pub fn parse(text: &str) -> Result<Self, String> {
        let split = text.split_once("://").map(|(scheme, rest)| (scheme.to_ascii_lowercase(), rest));
        match split {
            Some((scheme, rest)) if scheme == "http" || scheme == "https" => Self::parse_http(rest, scheme == "https"),
            Some((scheme, rest)) if scheme == "tcp" || scheme == "tls" => {
                let authority = Authority::parse(rest.strip_suffix('/').unwrap_or(rest), None)?;
                Ok(if scheme == "tls" { Target::Tls(authority) } else { Target::Tcp(authority) })
            }
            None if !text.contains('/') && text.contains(':') => Authority::parse(text, None).map(Target::Tcp),
            _ => Err("must be http[s]://HOST:PORT/PATH, tcp://HOST:PORT, tls://HOST:PORT or HOST:PORT".into()),
        }
    }

    fn parse_http(rest: &str, is_secure: bool) -> Result<Self, String> {
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (host, path) = rest.split_at(end);
        if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("percent-encode spaces (%20) and non-ASCII characters in the path".into());
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let authority = Authority::parse(host, Some(if is_secure { 443 } else { 80 }))?;
        Ok(Target::Http { authority, host: host.to_owned(), path, is_secure })
    }

    /// Returns whether the connection uses TLS.
    pub fn is_secure(&self) -> bool {
        matches!(self, Target::Tls(_) | Target::Http { is_secure: true, .. })
    }

    fn authority(&self) -> &Authority {
        match self {
            Target::Http { authority, .. } | Target::Tcp(authority) | Target::Tls(authority) => authority,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Http { host, path, is_secure, .. } => {
                write!(formatter, "http{}://{host}{path}", if *is_secure { "s" } else { "" })
            }
            Target::Tcp(authority) => write!(formatter, "tcp://{authority}"),
            Target::Tls(authority) => write!(formatter, "tls://{authority}"),
        }
    }
}

/// The part of the response to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Print {
    /// The status line.
    Status,
    /// The status line and headers.
    Head,
    /// The body.
    Body,
    /// Status line, headers and body.
    All,
}

/// A set of acceptable status codes; 200 to 299 by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect(Vec<RangeInclusive<u16>>);

impl Default for Expect {
    fn default() -> Self {
        Expect(vec![200..=299])
    }
}

impl Expect {
    /// Parses a list of status codes and ranges, such as `200-299,404`.
    ///
    /// # Errors
    /// Returns a message for the user if the list is not valid.
    ///
    /// # Examples
    /// ```
    /// use serverd::client::check::Expect;
    /// let expect = Expect::parse("200-299,404")?;
    /// assert!(expect.contains(204) && expect.contains(404) && !expect.contains(500));
    /// # Ok::<(), String>(())
    /// ```
    pub fn parse(text: &str) -> Result<Self, String> {
        let status = |word: &str| match word.parse() {
            Ok(status @ 200..=999) if word.len() == 3 => Ok(status),
            _ => Err(format!("{word:?} is not a status code from 200 to 999; write e.g. 200-299,404")),
        };
        text.split(',')
            .map(|word| match word.trim().split_once('-') {
                None => status(word.trim()).map(|only| only..=only),
                Some((first, last)) => Ok(status(first)?..=status(last)?),
            })
            .map(|range| match range {
                Ok(range) if range.is_empty() => Err(format!("the range {}-{} is empty", range.start(), range.end())),
                other => other,
            })
            .collect::<Result<_, _>>()
            .map(Expect)
    }

    /// Returns whether `status` is acceptable.
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

/// A health check with its timeout and retries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The server to check.
    pub target: Target,
    /// The part of the response to print.
    pub print: Print,
    /// The acceptable status codes.
    pub expect: Expect,
    /// The timeout of one attempt, from name resolution to the last byte of the response.
    pub timeout: Duration,
    /// The maximum number of retries.
    pub retry: u32,
    /// The delay between attempts.
    pub interval: Duration,
    /// The accepted certificates and the client's own, with TLS.
    pub tls: TlsOptions,
    /// Fails if the certificate expires in fewer days, or is not valid yet.
    pub days_min: Option<u16>,
}

/// The reason a check failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum CheckError {
    /// The connection could not be established, or was lost.
    Dial(DialError),
    /// The response is not valid HTTP.
    Response(ResponseError),
    /// The status code is not acceptable.
    Status(u16),
    /// The certificate of the server expires too soon, or is not valid yet. Contains a sentence.
    Expiry(String),
    /// Writing to standard output failed.
    Output(io::Error),
}

impl fmt::Display for CheckError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckError::Dial(error) => write!(formatter, "{error}"),
            CheckError::Response(ResponseError::Truncated) => write!(formatter, "{}", ResponseError::Truncated),
            CheckError::Response(error) => write!(formatter, "invalid HTTP response: {error}"),
            CheckError::Status(status) => write!(formatter, "unexpected status code {status}"),
            CheckError::Expiry(sentence) => formatter.write_str(sentence),
            CheckError::Output(error) => write!(formatter, "cannot print the response: {error}"),
        }
    }
}

impl std::error::Error for CheckError {}

impl Check {
    /// Runs the check until it succeeds or no attempts are left. Prints the response of the successful or last attempt
    /// to `out`.
    ///
    /// # Errors
    /// Returns the error of the last attempt.
    pub fn run(&self, out: &mut impl Write) -> Result<(), CheckError> {
        let mut retries_left = self.retry;
        loop {
            let mut printer = Printer { out, print: self.print, started: false };
            match self.try_once(retries_left == 0, &mut printer) {
                // Printed output cannot be undone, so there is no retry after it.
                Err(error) if retries_left == 0 || printer.started => return Err(error),
                Err(_) => thread::sleep(self.interval),
                Ok(()) => return Ok(()),
            }
            retries_left -= 1;
        }
    }

    fn try_once(&self, is_last: bool, printer: &mut Printer<'_, impl Write>) -> Result<(), CheckError> {
        let deadline = Deadline::after(self.timeout);
        let socket = self.target.authority().dial(deadline).map_err(CheckError::Dial)?;
        let (mut stream, expiry) = self.secure(socket, deadline)?;
        if let Some(expiry) = &expiry {
            self.check_expiry(expiry)?;
        }
        match (&self.target, expiry) {
            (Target::Http { host, path, .. }, _) => {
                send_request(&mut stream, host, path, deadline).map_err(CheckError::Dial)?;
                self.read_response(&mut stream, deadline, is_last, printer)
            }
            (Target::Tls(authority) | Target::Tcp(authority), Some(Expiry { date, .. })) => {
                stream.confirm().map_err(|error| CheckError::Dial(DialError::Io(error)))?;
                printer.write(format!("connected to {authority}, whose certificate expires on {date}\n").as_bytes())
            }
            (Target::Tls(authority) | Target::Tcp(authority), None) => {
                printer.write(format!("connected to {authority}\n").as_bytes())
            }
        }
    }

    /// Completes a TLS handshake if the target needs one, and returns the expiry of the server's certificate.
    fn secure(&self, socket: TcpStream, deadline: Deadline) -> Result<(Connection, Option<Expiry>), CheckError> {
        let mut socket = TimedSocket { socket, deadline: deadline.end() };
        if !self.target.is_secure() {
            return Ok((Connection::Plain(socket), None));
        }
        let protocols: &[&str] = if matches!(self.target, Target::Http { .. }) { &["http/1.1"] } else { &[] };
        let host = &self.target.authority().host;
        let session = (self.tls.open(&mut socket, host, protocols))
            .map_err(|error| CheckError::Dial(deadline.dial_error(error)))?;
        let expiry = session.expiry();
        Ok((Connection::Secure(Box::new(ClientStream { session, socket })), expiry))
    }

    fn check_expiry(&self, Expiry { date, days, valid_from }: &Expiry) -> Result<(), CheckError> {
        let Some(days_min) = self.days_min else { return Ok(()) };
        if let Some(date) = valid_from {
            return Err(CheckError::Expiry(format!("the certificate is not valid before {date}")));
        }
        if *days >= i64::from(days_min) {
            return Ok(());
        }
        Err(CheckError::Expiry(if *days < 0 {
            format!("the certificate has expired on {date}")
        } else {
            format!("the certificate expires on {date}, in {days} days, which is fewer than {days_min}")
        }))
    }

    /// Reads the whole response. Prints it if its status code is acceptable or this is the last attempt.
    fn read_response(
        &self,
        stream: &mut Connection,
        deadline: Deadline,
        is_last: bool,
        printer: &mut Printer<'_, impl Write>,
    ) -> Result<(), CheckError> {
        let mut reader = ResponseReader::new(Limits::default());
        let (mut buffer, mut start, mut end) = (vec![0; 128 * 1024], 0, 0);
        let (mut status, mut should_print) = (0, false);
        loop {
            let (used, event) = reader.receive(&buffer[start..end]).map_err(CheckError::Response)?;
            match event {
                ResponseEvent::Head { status: received, line, head } => {
                    status = received;
                    should_print = is_last || self.expect.contains(status);
                    if should_print {
                        printer.head(line, head)?;
                    }
                }
                ResponseEvent::Body(bytes) if should_print => printer.body(bytes)?,
                ResponseEvent::Body(_) => {}
                ResponseEvent::End => break,
                ResponseEvent::NeedMore => {
                    // At most an incomplete response head is left over, and the buffer holds two heads of maximum size.
                    buffer.copy_within(start + used..end, 0);
                    (start, end) = (0, end - start - used);
                    let count = match stream.read(&mut buffer[end..]) {
                        // Without an end of the TLS session: it is complete only if its length says so.
                        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                            return Err(CheckError::Response(ResponseError::Truncated));
                        }
                        outcome => outcome.map_err(|error| CheckError::Dial(deadline.dial_error(error)))?,
                    };
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
        if self.expect.contains(status) { Ok(()) } else { Err(CheckError::Status(status)) }
    }
}

fn send_request(stream: &mut Connection, host: &str, path: &str, deadline: Deadline) -> Result<(), DialError> {
    let version = env!("CARGO_PKG_VERSION");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: serverd/{version}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).map_err(|error| deadline.dial_error(error))
}

/// Prints the requested part of a response.
struct Printer<'a, W> {
    out: &'a mut W,
    print: Print,
    /// Set once anything has been printed.
    started: bool,
}

impl<W: Write> Printer<'_, W> {
    fn head(&mut self, line: &[u8], head: &[u8]) -> Result<(), CheckError> {
        match self.print {
            Print::Status => self.write(&[line, b"\n"].concat()),
            Print::Head | Print::All => self.write(head),
            Print::Body => Ok(()),
        }
    }

    fn body(&mut self, bytes: &[u8]) -> Result<(), CheckError> {
        if matches!(self.print, Print::Body | Print::All) { self.write(bytes) } else { Ok(()) }
    }

    /// Writes and flushes. A closed pipe is not an error, since the exit code is still useful.
    fn write(&mut self, bytes: &[u8]) -> Result<(), CheckError> {
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
    fn targets_have_defaults_and_reject_unsupported_schemes() {
        let http = |text| match Target::parse(text) {
            Ok(Target::Http { authority, host, path, .. }) => (authority.to_string(), host, path),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(http("http://a"), ("a:80".into(), "a".into(), "/".into()));
        assert_eq!(http("HTTP://a:81?x#y"), ("a:81".into(), "a:81".into(), "/?x".into()));
        assert_eq!(http("http://[::1]:82/p/q?r=s"), ("[::1]:82".into(), "[::1]:82".into(), "/p/q?r=s".into()));
        assert_eq!(http("https://a/b"), ("a:443".into(), "a".into(), "/b".into()));
        for (text, is_secure) in [("https://a", true), ("TLS://a:1", true), ("http://a", false), ("a:1", false)] {
            assert_eq!(Target::parse(text).unwrap().is_secure(), is_secure, "{text}");
        }
        for text in ["tcp://a:1", "a:1", "[::1]:1"] {
            assert!(matches!(Target::parse(text), Ok(Target::Tcp(Authority { port: 1, .. }))), "{text}");
        }
        for (text, message) in [
            ("a", "must be http[s]://"),
            ("a:80/x", "must be http[s]://"),
            ("::1", "in brackets"),
            ("ftp://a", "must be http[s]://"),
            ("tls://a", "missing port"),
            ("tcp://a", "missing port"),
            ("tcp://a:1/x", "not a port number"),
            ("http://u:p@a/", "credentials"),
            ("http:///x", "not a valid host"),
            ("http://a/b c", "%20"),
            ("http://a/\u{e9}", "%20"),
        ] {
            let error = Target::parse(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn expect_is_a_list_of_status_codes_and_ranges() {
        let expect = Expect::parse("200-204, 301,500-599").unwrap();
        let accepted: Vec<u16> =
            [200, 204, 205, 301, 302, 503].into_iter().filter(|&status| expect.contains(status)).collect();
        assert_eq!(accepted, [200, 204, 301, 503]);
        for text in ["", "2xx", "99", "1000", "404-400", "200-", "100"] {
            assert!(Expect::parse(text).is_err(), "{text}");
        }
    }
}

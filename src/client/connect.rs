//! `serverd connect`: copies standard input to a TCP connection, and the data received from it to standard output. Also
//! resolves names and establishes connections, with a deadline, for the other client commands.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::stream::{Outgoing, TimedSocket, split};
use super::tls_options::TlsOptions;

/// The size of the buffer for each direction.
const BUFFER_BYTES: usize = 128 * 1024;

/// Options of `serverd connect`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// The server to connect to.
    pub authority: Authority,
    /// The timeout for establishing the connection. There is no timeout afterwards.
    pub timeout: Duration,
    /// Uses TLS with this configuration; `None` for plain TCP.
    pub tls: Option<TlsOptions>,
}

/// The reason a connection failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectError {
    /// The connection could not be established, or was lost.
    Dial(DialError),
    /// Writing to standard output failed.
    Output(io::Error),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Dial(error) => write!(formatter, "{error}"),
            ConnectError::Output(error) => write!(formatter, "cannot write to standard output: {error}"),
        }
    }
}

impl std::error::Error for ConnectError {}

impl Connect {
    /// Copies data in both directions until the server closes the connection. At the end of `input`, shuts down the
    /// sending side (half-close) and continues to receive. With TLS, the session is ended in that direction first.
    ///
    /// Reads input on a separate thread, because not every platform can wait for a socket and a pipe at the same time.
    /// If the server closes first, this thread is abandoned.
    ///
    /// # Errors
    /// Returns an error if the connection cannot be established or is reset, or if writing to `output` fails. A closed
    /// output pipe (`BrokenPipe`) is not an error.
    pub fn run(&self, input: impl Read + Send + 'static, output: &mut impl Write) -> Result<(), ConnectError> {
        let deadline = Deadline::after(self.timeout);
        let stream = self.authority.dial(deadline).map_err(ConnectError::Dial)?;
        // Disable Nagle's algorithm, so that typed lines are sent immediately.
        stream.set_nodelay(true).map_err(connection_error)?;
        let Some(tls) = &self.tls else {
            let writer = stream.try_clone().map_err(connection_error)?;
            return copy(input, writer, stream, output);
        };
        let mut socket = TimedSocket { socket: stream, deadline: deadline.end() };
        let session = (tls.open(&mut socket, &self.authority.host, &[]))
            .map_err(|error| ConnectError::Dial(deadline.dial_error(error)))?;
        let (reader, writer) = split(session, socket.socket).map_err(connection_error)?;
        copy(input, writer, reader, output)
    }
}

fn connection_error(error: io::Error) -> ConnectError {
    ConnectError::Dial(DialError::Io(error))
}

/// Copies in both directions.
fn copy(
    input: impl Read + Send + 'static,
    writer: impl Outgoing + Send + 'static,
    reader: impl Read,
    output: &mut impl Write,
) -> Result<(), ConnectError> {
    thread::Builder::new().name("input".into()).spawn(move || send(input, writer)).map_err(connection_error)?;
    receive(reader, output)
}

/// Sends all of the input, then shuts down the sending side. Write errors are not reported here, since the receiving
/// side fails, too, and reports them.
fn send(mut input: impl Read, mut stream: impl Outgoing) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                if stream.write_all(&buffer[..count]).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                log::error!("cannot read standard input: {error}");
                break;
            }
        }
    }
    stream.end();
}

fn receive(mut stream: impl Read, output: &mut impl Write) -> Result<(), ConnectError> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(connection_error(error)),
        };
        match output.write_all(&buffer[..count]).and_then(|()| output.flush()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(ConnectError::Output(error)),
        }
    }
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// The host name or IP address; an IPv6 address has no brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Authority {
    /// Parses `HOST:PORT` or `[IPV6]:PORT`. The port is optional if there is a default.
    ///
    /// # Errors
    /// Returns a message for the user if `text` is not valid.
    ///
    /// # Examples
    /// ```
    /// use serverd::client::connect::Authority;
    /// let authority = Authority::parse("[::1]:8888", None)?;
    /// assert_eq!((authority.host.as_str(), authority.port), ("::1", 8888));
    /// assert!(Authority::parse("localhost", None).is_err());
    /// # Ok::<(), String>(())
    /// ```
    pub fn parse(text: &str, default_port: Option<u16>) -> Result<Self, String> {
        if text.contains("://") {
            return Err("must be HOST:PORT, without a scheme such as http://".into());
        }
        if text.contains('@') {
            return Err("credentials in the URL are not supported".into());
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or("missing ] after the IPv6 address")?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| format!("{host:?} is not an IPv6 address"))?;
                (host, after)
            }
            None => text.find(':').map_or((text, ""), |colon| text.split_at(colon)),
        };
        if port.matches(':').count() > 1 {
            return Err(format!("write an IPv6 address in brackets: [{text}]:PORT"));
        }
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:%".contains(&byte);
        if host.is_empty() || !host.bytes().all(is_name) {
            return Err(format!("{host:?} is not a valid host"));
        }
        let port = match (port.strip_prefix(':'), default_port) {
            (Some(digits), _) => match digits.parse() {
                Ok(port) if port != 0 && digits.bytes().all(|byte| byte.is_ascii_digit()) => port,
                _ => return Err(format!("{digits:?} is not a port number (1 to 65535)")),
            },
            (None, Some(default_port)) if port.is_empty() => default_port,
            _ => return Err("missing port; use HOST:PORT".into()),
        };
        Ok(Authority { host: host.to_owned(), port })
    }

    /// Connects to the first address of the host that accepts a connection before `deadline`. The remaining time is
    /// divided evenly among the addresses that have not been tried.
    ///
    /// # Errors
    /// Returns the error of the last address if no connection can be established.
    pub fn dial(&self, deadline: Deadline) -> Result<TcpStream, DialError> {
        let mut outcome = Err(DialError::NoAddress(self.host.clone()));
        let addresses = self.resolve(deadline)?;
        for (tried, address) in addresses.iter().enumerate() {
            let share = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            match TcpStream::connect_timeout(address, deadline.remaining()? / share) {
                Ok(stream) => return Ok(stream),
                Err(error) => outcome = Err(deadline.dial_error(error)),
            }
        }
        outcome
    }

    /// Resolves the host name. The system's resolver has no timeout, so it runs on a thread that is abandoned if it
    /// takes too long.
    fn resolve(&self, deadline: Deadline) -> Result<Vec<SocketAddr>, DialError> {
        if let Ok(address) = self.host.parse() {
            return Ok(vec![SocketAddr::new(address, self.port)]);
        }
        let (send, receive) = mpsc::channel();
        let (host, port) = (self.host.clone(), self.port);
        let resolve = move || send.send((host.as_str(), port).to_socket_addrs().map(Iterator::collect));
        thread::Builder::new().name("resolver".into()).spawn(resolve).map_err(DialError::Io)?;
        match receive.recv_timeout(deadline.remaining()?) {
            Ok(Ok(addresses)) => Ok(addresses),
            Ok(Err(_)) => Err(DialError::NoAddress(self.host.clone())),
            Err(_) => Err(DialError::TimedOut(deadline.timeout)),
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(formatter, "[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "{}:{}", self.host, self.port)
        }
    }
}

/// The time by which an operation must complete.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    end: Instant,
    timeout: Duration,
}

impl Deadline {
    /// Creates a deadline that expires after `timeout`.
    pub fn after(timeout: Duration) -> Self {
        Deadline { end: Instant::now() + timeout, timeout }
    }

    /// Returns the time at which the deadline expires.
    pub(super) fn end(self) -> Instant {
        self.end
    }

    /// Returns the remaining time.
    ///
    /// # Errors
    /// Returns [`DialError::TimedOut`] if the deadline has passed.
    pub fn remaining(self) -> Result<Duration, DialError> {
        let remaining = self.end.saturating_duration_since(Instant::now());
        if remaining.is_zero() { Err(DialError::TimedOut(self.timeout)) } else { Ok(remaining) }
    }

    /// Converts the I/O error of an operation whose timeout was [`Deadline::remaining`]; a timeout becomes
    /// [`DialError::TimedOut`].
    pub fn dial_error(self, error: io::Error) -> DialError {
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => DialError::TimedOut(self.timeout),
            _ => DialError::Io(error),
        }
    }
}

/// The reason a connection could not be established or was lost.
#[derive(Debug)]
#[non_exhaustive]
pub enum DialError {
    /// The host name could not be resolved.
    NoAddress(String),
    /// The timeout expired. Contains its duration.
    TimedOut(Duration),
    /// A system call failed.
    Io(io::Error),
}

impl fmt::Display for DialError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DialError::NoAddress(host) => write!(formatter, "cannot resolve host {host:?}"),
            DialError::TimedOut(timeout) => write!(formatter, "timed out after {timeout:?}"),
            DialError::Io(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => {
                    formatter.write_str("connection refused; no server is listening there")
                }
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                    formatter.write_str("connection reset by the server")
                }
                _ => write!(formatter, "{error}"),
            },
        }
    }
}

impl std::error::Error for DialError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_parsed_strictly() {
        let parsed = |text| Authority::parse(text, Some(80)).map(|authority| authority.to_string());
        assert_eq!(parsed("localhost"), Ok("localhost:80".into()));
        assert_eq!(parsed("127.0.0.1:8888"), Ok("127.0.0.1:8888".into()));
        assert_eq!(parsed("[::1]"), Ok("[::1]:80".into()));
        for (text, message) in [
            ("a:b@c", "credentials"),
            ("", "not a valid host"),
            (":80", "not a valid host"),
            ("a b", "not a valid host"),
            ("a:", "not a port number"),
            ("a:0", "not a port number"),
            ("a:+1", "not a port number"),
            ("a:65536", "not a port number"),
            ("::1", "in brackets"),
            ("[::1", "missing ]"),
            ("[x]:1", "not an IPv6"),
            ("[::1]x", "missing port"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}

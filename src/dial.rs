//! Finding and reaching a server within a time, for the commands that are clients.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// A name or an address; an IPv6 address without its brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Authority {
    /// Reads `HOST:PORT` or `[IPV6]:PORT`; the port may be left out where there is a `default`.
    ///
    /// # Errors
    /// One sentence that says what is expected.
    ///
    /// # Examples
    /// ```
    /// use serverd::dial::Authority;
    /// let authority = Authority::parse("[::1]:8888", None)?;
    /// assert_eq!((authority.host.as_str(), authority.port), ("::1", 8888));
    /// assert!(Authority::parse("localhost", None).is_err());
    /// # Ok::<(), String>(())
    /// ```
    pub fn parse(text: &str, default: Option<u16>) -> Result<Self, String> {
        if text.contains('@') {
            return Err("names and passwords before @ are not taken".into());
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or("an IPv6 address ends in ]")?;
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
            return Err(format!("{host:?} is not a host"));
        }
        let port = match (port.strip_prefix(':'), default) {
            (Some(digits), _) => match digits.parse() {
                Ok(port) if port != 0 && digits.bytes().all(|byte| byte.is_ascii_digit()) => port,
                _ => return Err(format!("{digits:?} is not a port, 1 to 65535")),
            },
            (None, Some(default)) if port.is_empty() => default,
            _ => return Err("give a port: HOST:PORT".into()),
        };
        Ok(Authority { host: host.to_owned(), port })
    }

    /// Connects to the first address that answers before `deadline`, each of them having its share of the time.
    ///
    /// # Errors
    /// Why none did.
    pub fn dial(&self, deadline: Deadline) -> Result<TcpStream, DialError> {
        let mut outcome = Err(DialError::NoAddress(self.host.clone()));
        let addresses = self.resolve(deadline)?;
        for (tried, address) in addresses.iter().enumerate() {
            let share = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            match TcpStream::connect_timeout(address, deadline.left()? / share) {
                Ok(stream) => return Ok(stream),
                Err(error) => outcome = Err(deadline.explain(error)),
            }
        }
        outcome
    }

    /// The system's resolver cannot be given a time, so it is left behind when it takes too long.
    fn resolve(&self, deadline: Deadline) -> Result<Vec<SocketAddr>, DialError> {
        if let Ok(address) = self.host.parse() {
            return Ok(vec![SocketAddr::new(address, self.port)]);
        }
        let (send, receive) = mpsc::channel();
        let (host, port) = (self.host.clone(), self.port);
        let search = move || send.send((host.as_str(), port).to_socket_addrs().map(Iterator::collect));
        thread::Builder::new().name("resolver".into()).spawn(search).map_err(DialError::Io)?;
        match receive.recv_timeout(deadline.left()?) {
            Ok(Ok(addresses)) => Ok(addresses),
            Ok(Err(_)) => Err(DialError::NoAddress(self.host.clone())),
            Err(_) => Err(DialError::TimedOut(deadline.wait)),
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

/// When to give up.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    end: Instant,
    wait: Duration,
}

impl Deadline {
    /// So long from now.
    pub fn after(wait: Duration) -> Self {
        Deadline { end: Instant::now() + wait, wait }
    }

    /// How much time is left.
    ///
    /// # Errors
    /// [`DialError::TimedOut`] when none is.
    pub fn left(self) -> Result<Duration, DialError> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(DialError::TimedOut(self.wait)) } else { Ok(left) }
    }

    /// What an error of a call that was bounded by [`Deadline::left`] means.
    pub fn explain(self, error: io::Error) -> DialError {
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => DialError::TimedOut(self.wait),
            _ => DialError::Io(error),
        }
    }
}

/// Why a server was not reached, or was lost.
#[derive(Debug)]
#[non_exhaustive]
pub enum DialError {
    /// The name has no address.
    NoAddress(String),
    /// The time was up.
    TimedOut(Duration),
    /// A system call failed.
    Io(io::Error),
}

impl fmt::Display for DialError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DialError::NoAddress(host) => write!(formatter, "cannot find the host {host:?}"),
            DialError::TimedOut(wait) => write!(formatter, "timed out after {wait:?}"),
            DialError::Io(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => formatter.write_str("connection refused; nobody listens there"),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                    formatter.write_str("the connection was reset by the server")
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
    fn authorities_are_read_strictly() {
        let parsed = |text| Authority::parse(text, Some(80)).map(|authority| authority.to_string());
        assert_eq!(parsed("localhost"), Ok("localhost:80".into()));
        assert_eq!(parsed("127.0.0.1:8888"), Ok("127.0.0.1:8888".into()));
        assert_eq!(parsed("[::1]"), Ok("[::1]:80".into()));
        for (text, complaint) in [
            ("a:b@c", "before @"),
            ("", "not a host"),
            (":80", "not a host"),
            ("a b", "not a host"),
            ("a:", "not a port"),
            ("a:0", "not a port"),
            ("a:+1", "not a port"),
            ("a:65536", "not a port"),
            ("::1", "in brackets"),
            ("[::1", "ends in ]"),
            ("[x]:1", "not an IPv6"),
            ("[::1]x", "give a port"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }
}

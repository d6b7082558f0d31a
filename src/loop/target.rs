//! The destinations of outgoing connections.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// The destination of an outgoing connection.
///
/// # Examples
/// ```
/// use serverd::Target;
///
/// let target: Target = "[::1]:80".parse()?;
/// assert_eq!(target, Target::Address("[::1]:80".parse()?));
/// assert_eq!("example.com:443".parse(), Ok(Target::Name("example.com".into(), 443)));
/// assert!("example.com".parse::<Target>().is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Target {
    /// An IP address and a port.
    Address(SocketAddr),
    /// Several addresses of one server, which are tried in this order, up to 8.
    Addresses(Vec<SocketAddr>),
    /// A host name and a port. The first 8 addresses of the name are tried in order.
    Name(String, u16),
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Target::Address(address)
    }
}

impl From<(&str, u16)> for Target {
    /// Creates a target from an IP address or a host name.
    fn from((host, port): (&str, u16)) -> Self {
        match host.parse::<IpAddr>() {
            Ok(address) => Target::Address((address, port).into()),
            Err(_) => Target::Name(host.to_owned(), port),
        }
    }
}

/// The error of a [`Target`] that is not written as `host:port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TargetError;

impl std::fmt::Display for TargetError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("expected host:port or [address]:port")
    }
}

impl std::error::Error for TargetError {}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        if let Ok(address) = text.parse() {
            return Ok(Target::Address(address));
        }
        let (host, port) = text.rsplit_once(':').ok_or(TargetError)?;
        if host.is_empty() || host.contains(':') || !host.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TargetError);
        }
        Ok(Target::Name(host.to_owned(), port.parse().map_err(|_| TargetError)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_written_as_host_and_port() {
        for text in ["", ":80", "host", "host:", "host:65536", "::1:80", "a b:80", "host:-1"] {
            assert_eq!(text.parse::<Target>(), Err(TargetError), "{text}");
        }
        assert_eq!("127.0.0.1:80".parse(), Ok(Target::from(("127.0.0.1", 80))));
        assert_eq!(Target::from(("::1", 80)), Target::Address("[::1]:80".parse().unwrap()));
    }
}

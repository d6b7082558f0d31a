//! The other end of a connection, and sets of IP networks that it may be in, such as those of trusted proxies.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The other end of a connection: an address, or a Unix socket.
///
/// # Examples
/// ```
/// use serverd::{HttpServer, Peer, Request};
///
/// let server = HttpServer::new(|request: &Request<'_>| match request.peer() {
///     Some(Peer::Tcp(address)) => format!("hello {}\n", address.ip()),
///     Some(Peer::Unix) => "hello neighbour\n".to_owned(),
///     _ => "hello\n".to_owned(),
/// });
/// # drop(server);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Peer {
    /// A TCP connection to this address.
    Tcp(SocketAddr),
    /// A connection over a Unix socket, from a process of this machine.
    Unix,
}

impl Peer {
    /// Returns the address of a TCP connection.
    pub fn addr(self) -> Option<SocketAddr> {
        match self {
            Peer::Tcp(address) => Some(address),
            Peer::Unix => None,
        }
    }

    /// Returns the IP address of a TCP connection.
    pub fn ip(self) -> Option<IpAddr> {
        self.addr().map(|address| address.ip())
    }

    /// Returns whether this is a connection over a Unix socket.
    pub fn is_unix(self) -> bool {
        matches!(self, Peer::Unix)
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        Peer::Tcp(address)
    }
}

/// Formats an address with its port, and a Unix socket as `unix`.
impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(address) => address.fmt(formatter),
            Peer::Unix => formatter.write_str("unix"),
        }
    }
}

/// A set of IP networks, and optionally the peers of Unix sockets.
///
/// It is parsed from a list that is separated by commas: addresses, networks in CIDR notation, and the names `loopback`
/// (`127.0.0.0/8` and `::1`), `private` (`10.0.0.0/8`, `172.16.0.0/12`, `192.168.0.0/16` and `fc00::/7`) and `unix`
/// (any peer of a Unix socket). IPv4-mapped IPv6 addresses are IPv4 addresses. The default is the empty set.
///
/// # Examples
/// ```
/// use serverd::Networks;
///
/// let proxies: Networks = "loopback, 10.1.0.0/16, 2001:db8::/32".parse()?;
/// assert!(proxies.contains("10.1.2.3".parse()?) && proxies.contains("::ffff:127.0.0.1".parse()?));
/// assert!(!proxies.contains("10.2.0.1".parse()?));
/// assert!("10.1.0.1/16".parse::<Networks>().is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    /// First and last addresses, sorted and disjoint. A range has only addresses of one family.
    ranges: Vec<(IpAddr, IpAddr)>,
    unix: bool,
}

/// The error for a text that is not a list of networks. The message says how to fix it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworksError(String);

impl fmt::Display for NetworksError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for NetworksError {}

const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1"];
const PRIVATE: [&str; 4] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"];

impl Networks {
    /// Returns whether the set contains an address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let after = self.ranges.partition_point(|(first, _)| *first <= address);
        after > 0 && address <= self.ranges[after - 1].1
    }

    /// Returns whether the set contains a peer.
    pub fn contains_peer(&self, peer: Peer) -> bool {
        peer.ip().map_or(self.unix, |address| self.contains(address))
    }

    /// Returns whether the set contains the peers of Unix sockets.
    pub fn contains_unix(&self) -> bool {
        self.unix
    }

    /// Returns whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty() && !self.unix
    }

    /// Returns the union of two sets.
    #[must_use]
    pub fn union(mut self, other: &Networks) -> Self {
        self.ranges.extend_from_slice(&other.ranges);
        self.unix |= other.unix;
        self.merge();
        self
    }

    fn add(&mut self, entry: &str) -> Result<(), NetworksError> {
        match entry {
            "loopback" => LOOPBACK.iter().try_for_each(|entry| self.add(entry))?,
            "private" => PRIVATE.iter().try_for_each(|entry| self.add(entry))?,
            "unix" => self.unix = true,
            _ => self.ranges.push(parse_range(entry)?),
        }
        Ok(())
    }

    /// Sorts the ranges and joins those that overlap.
    fn merge(&mut self) {
        self.ranges.sort_unstable();
        self.ranges.dedup_by(|next, previous| {
            let overlaps = next.0 <= previous.1;
            if overlaps {
                previous.1 = previous.1.max(next.1);
            }
            overlaps
        });
    }
}

impl FromStr for Networks {
    type Err = NetworksError;

    fn from_str(text: &str) -> Result<Self, NetworksError> {
        let mut networks = Networks::default();
        for entry in text.split(',') {
            networks.add(entry.trim())?;
        }
        networks.merge();
        Ok(networks)
    }
}

/// Returns the first and the last address of a network in CIDR notation.
fn parse_range(text: &str) -> Result<(IpAddr, IpAddr), NetworksError> {
    let invalid = || {
        NetworksError(format!(
            "{text:?} is not a network; use addresses or networks such as 10.0.0.0/8, or loopback, private or unix"
        ))
    };
    let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let address: IpAddr = address.parse().map_err(|_| invalid())?;
    let bits_max = if address.is_ipv4() { 32 } else { 128 };
    let bits = match prefix {
        None => bits_max,
        Some(prefix) if prefix.bytes().all(|byte| byte.is_ascii_digit()) => prefix.parse().map_err(|_| invalid())?,
        Some(_) => return Err(invalid()),
    };
    if bits > bits_max {
        return Err(NetworksError(format!("the prefix of {text} is longer than {bits_max} bits")));
    }
    let (first, last) = match address {
        IpAddr::V4(address) => {
            let hosts = u32::MAX.checked_shr(bits).unwrap_or(0);
            let first = address.to_bits() & !hosts;
            (Ipv4Addr::from_bits(first).into(), Ipv4Addr::from_bits(first | hosts).into())
        }
        IpAddr::V6(address) => {
            let hosts = u128::MAX.checked_shr(bits).unwrap_or(0);
            let first = address.to_bits() & !hosts;
            (IpAddr::from(Ipv6Addr::from_bits(first)), IpAddr::from(Ipv6Addr::from_bits(first | hosts)))
        }
    };
    if first != address {
        return Err(NetworksError(format!("{text} has bits after its prefix; use {first}/{bits}")));
    }
    // A network of IPv4-mapped addresses is an IPv4 network.
    match (first.to_canonical(), last.to_canonical()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => Ok((first.into(), last.into())),
        _ => Ok((first, last)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It is returned with every accepted connection.
    #[test]
    fn a_peer_is_as_small_as_an_address() {
        assert_eq!(size_of::<Option<Peer>>(), size_of::<SocketAddr>());
    }

    #[test]
    fn an_address_is_in_a_network() {
        for (networks, address, expected) in [
            ("10.0.0.0/8", "10.255.255.255", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.0/8", "9.255.255.255", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("::ffff:10.0.0.0/104", "10.1.2.3", true),
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "10.0.0.1", false),
            ("2001:db8::/33", "2001:db8:7fff::1", true),
            ("2001:db8::/33", "2001:db8:8000::", false),
            ("loopback", "127.3.2.1", true),
            ("loopback", "::1", true),
            ("private", "172.31.0.1", true),
            ("private", "172.32.0.1", false),
            ("private", "fd00::1", true),
            ("private,loopback", "127.0.0.1", true),
            ("10.0.0.0/8,10.1.0.0/16,9.0.0.0/8", "10.200.0.1", true),
            ("unix", "127.0.0.1", false),
        ] {
            let networks: Networks = networks.parse().unwrap();
            assert_eq!(networks.contains(address.parse().unwrap()), expected, "{networks:?} {address}");
        }
        assert!("unix".parse::<Networks>().unwrap().contains_unix());
        assert!(!"loopback".parse::<Networks>().unwrap().contains_unix());
    }

    #[test]
    fn a_union_contains_what_both_sets_contain() {
        let parse = |text: &str| text.parse::<Networks>().unwrap();
        assert_eq!(parse("10.0.0.0/8").union(&parse("unix,10.0.0.0/7")), parse("10.0.0.0/7,unix"));
        assert!(Networks::default().is_empty() && !parse("unix").is_empty() && !parse("::1").is_empty());
    }

    #[test]
    fn an_error_says_how_to_fix_the_text() {
        for (text, message) in [
            ("", "not a network"),
            ("10.0.0.0/8,", "not a network"),
            ("proxy.example", "not a network"),
            ("10.0.0.0/+8", "not a network"),
            ("10.0.0.0/", "not a network"),
            ("10.0.0.0/33", "longer than 32"),
            ("::/129", "longer than 128"),
            ("10.1.2.3/8", "use 10.0.0.0/8"),
            ("2001:db8::1/32", "use 2001:db8::/32"),
        ] {
            let error = text.parse::<Networks>().unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}

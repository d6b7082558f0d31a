//! The syslog protocol (RFC 5424), one datagram per line, over a Unix socket or UDP (RFC 5426).

use std::fmt;
use std::io::{self, Write};
use std::net::{ToSocketAddrs, UdpSocket};
#[cfg(unix)]
use std::os::unix::net::UnixDatagram;
#[cfg(unix)]
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use super::log_format::Date;

/// Facility local7 and severity informational (RFC 5424 section 6.2.1), as in nginx.
const PRIORITY: u8 = 23 * 8 + 6;

/// Maximum length of a message; longer ones are truncated. It fits into a UDP datagram, and is the usual limit of
/// receivers.
const MESSAGE_BYTES_MAX: usize = 8192;

/// The socket of the local syslog service.
#[cfg(unix)]
const LOCAL_SOCKET: &str = "/dev/log";

/// The address of a syslog service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyslogAddress {
    /// The path of a Unix datagram socket.
    #[cfg(unix)]
    Unix(PathBuf),
    /// A host name or an address, with a port.
    Udp(String),
}

impl FromStr for SyslogAddress {
    type Err = String;

    /// Parses `unix:PATH`, `udp:HOST:PORT`, or an empty text for the local service.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            #[cfg(unix)]
            None if text.is_empty() => Ok(SyslogAddress::Unix(LOCAL_SOCKET.into())),
            #[cfg(unix)]
            Some(("unix", path)) if !path.is_empty() => Ok(SyslogAddress::Unix(path.into())),
            Some(("udp", address)) if is_host_and_port(address) => Ok(SyslogAddress::Udp(address.into())),
            _ => Err("must be syslog, syslog:unix:PATH or syslog:udp:HOST:PORT, e.g. syslog:udp:127.0.0.1:514".into()),
        }
    }
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

impl fmt::Display for SyslogAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(unix)]
            SyslogAddress::Unix(path) => write!(formatter, "{}", path.display()),
            SyslogAddress::Udp(address) => write!(formatter, "udp:{address}"),
        }
    }
}

enum Socket {
    #[cfg(unix)]
    Unix(UnixDatagram),
    Udp(UdpSocket),
}

impl Socket {
    fn connect(address: &SyslogAddress) -> io::Result<Self> {
        match address {
            #[cfg(unix)]
            SyslogAddress::Unix(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path)?;
                Ok(Socket::Unix(socket))
            }
            SyslogAddress::Udp(address) => {
                let unknown = || io::Error::new(io::ErrorKind::NotFound, "the host has no address");
                let address = address.to_socket_addrs()?.next().ok_or_else(unknown)?;
                let local = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(local)?;
                socket.connect(address)?;
                Ok(Socket::Udp(socket))
            }
        }
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        match self {
            #[cfg(unix)]
            Socket::Unix(socket) => socket.send(message).map(drop),
            Socket::Udp(socket) => socket.send(message).map(drop),
        }
    }
}

/// Sends each line that is written to it as a message.
pub(crate) struct Syslog {
    address: SyslogAddress,
    socket: Socket,
    /// The fields after the time: host, program, process id, message id, and no structured data.
    origin: String,
    date: Date,
    message: Vec<u8>,
}

impl Syslog {
    /// Connects to a service. `hostname` is the name of this machine.
    ///
    /// # Errors
    /// Returns an error if there is no socket at the path, or the host name cannot be resolved.
    pub(crate) fn connect(address: &SyslogAddress, hostname: &str) -> io::Result<Self> {
        let socket = Socket::connect(address)?;
        let is_valid = !hostname.is_empty() && hostname.len() <= 255 && hostname.bytes().all(|b| b.is_ascii_graphic());
        let hostname = if is_valid { hostname } else { "-" };
        let origin = format!(" {hostname} serverd {} access - ", std::process::id());
        Ok(Syslog { address: address.clone(), socket, origin, date: Date::default(), message: Vec::new() })
    }

    /// Sends a message; connects again if the service has been restarted.
    fn send(&mut self) -> io::Result<()> {
        let Err(error) = self.socket.send(&self.message) else { return Ok(()) };
        if error.kind() == io::ErrorKind::Interrupted {
            return Err(error);
        }
        self.socket = Socket::connect(&self.address)?;
        self.socket.send(&self.message)
    }
}

impl Write for Syslog {
    /// Sends the first line.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.date.set(now.as_secs());
        self.message.clear();
        let (time, millis, origin) = (self.date.rfc3339(), now.subsec_millis(), &self.origin);
        write!(self.message, "<{PRIORITY}>1 {time}.{millis:03}Z{origin}")?;
        self.message.extend_from_slice(&bytes[..length]);
        self.message.truncate(MESSAGE_BYTES_MAX);
        if length > 0 {
            self.send()?;
        }
        Ok((length + 1).min(bytes.len()))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_address_is_a_path_or_a_host_with_a_port() {
        for (text, shown) in [
            ("udp:127.0.0.1:514", Some("udp:127.0.0.1:514")),
            ("udp:[::1]:514", Some("udp:[::1]:514")),
            ("udp:127.0.0.1", None),
            ("udp::514", None),
            ("udp:x:0", None),
            ("tcp:127.0.0.1:514", None),
            ("unix:", None),
        ] {
            let address = text.parse::<SyslogAddress>();
            assert_eq!(address.ok().map(|address| address.to_string()).as_deref(), shown, "{text}");
        }
        #[cfg(unix)]
        assert_eq!(
            ["", "unix:/run/log"].map(|text| text.parse::<SyslogAddress>().unwrap().to_string()),
            ["/dev/log", "/run/log"]
        );
    }

    #[test]
    fn each_line_is_a_message() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let address = SyslogAddress::Udp(receiver.local_addr().unwrap().to_string());
        let mut syslog = Syslog::connect(&address, "host name").unwrap();
        let long = "x".repeat(2 * MESSAGE_BYTES_MAX);
        syslog.write_all(format!("one\n{long}\n\nlast").as_bytes()).unwrap();
        let receive = || {
            let mut buffer = vec![0; 65_536];
            let length = receiver.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        let first = receive();
        let (time, rest) = first.strip_prefix("<190>1 ").unwrap().split_once(' ').unwrap();
        assert!(time.len() == 24 && time.ends_with('Z'), "{time}");
        assert_eq!(rest, format!("- serverd {} access - one", std::process::id()));
        assert_eq!(receive().len(), MESSAGE_BYTES_MAX);
        assert!(receive().ends_with(" access - last"));
    }

    #[cfg(unix)]
    #[test]
    fn a_service_that_was_restarted_is_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let address = SyslogAddress::Unix(path.clone());
        assert!(Syslog::connect(&address, "host").is_err());
        let first = UnixDatagram::bind(&path).unwrap();
        let mut syslog = Syslog::connect(&address, "host").unwrap();
        syslog.write_all(b"one\n").unwrap();
        drop(first);
        std::fs::remove_file(&path).unwrap();
        assert!(syslog.write_all(b"lost\n").is_err());
        let second = UnixDatagram::bind(&path).unwrap();
        syslog.write_all(b"two\n").unwrap();
        let mut buffer = [0; 200];
        let length = second.recv(&mut buffer).unwrap();
        assert!(buffer[..length].ends_with(b" access - two"));
    }
}

//! The configuration of TLS on a listener: certificates, versions and protocols.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::ServerConfig;
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::certificate::{Certificate, TlsError, provider};
use super::client_auth::{self, ClientAuth};
use super::trust::Trust;

/// A version of TLS. Older versions are insecure and not supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    Tls12,
    /// TLS 1.3 (RFC 8446).
    Tls13,
}

/// TLS on a listener. Clones share the certificates, which can be replaced while connections are open.
///
/// Clients that send a server name get the certificate with that name, or else one with a matching wildcard, or else the
/// first.
///
/// # Examples
/// ```
/// use serverd::tls::{Certificate, Tls};
///
/// let tls = Tls::self_signed(["localhost"])?;
/// tls.replace_certificates(vec![Certificate::self_signed(["localhost", "example.org"])?])?;
/// # Ok::<(), serverd::tls::TlsError>(())
/// ```
#[derive(Clone)]
pub struct Tls {
    shared: Arc<Shared>,
}

struct Shared {
    options: Options,
    /// Replaced as a whole. Sessions keep the configuration that they began with.
    current: Mutex<Current>,
}

struct Current {
    config: Arc<ServerConfig>,
    /// That of `config`.
    resolver: Arc<Resolver>,
    /// The authorities of the certificates of clients; `None` if clients are not asked for one.
    authorities: Option<Arc<Trust>>,
}

/// The part of the configuration that does not change.
#[derive(Clone)]
struct Options {
    version_min: TlsVersion,
    alpn_protocols: Vec<Vec<u8>>,
    client_auth: ClientAuth,
}

/// The part of the configuration that can be replaced.
struct Parts {
    resolver: Arc<Resolver>,
    authorities: Option<Arc<Trust>>,
    /// Encrypts the tickets of all workers, with keys that change every six hours. A ticket contains the identity of the
    /// client, which is not verified again, so each set of authorities has its own ticketer.
    ticketer: Arc<dyn ProducesTickets>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Tls").field("version_min", &self.shared.options.version_min).finish_non_exhaustive()
    }
}

impl Tls {
    /// Creates a configuration for one or more certificates. Clients get the certificate with the server name that they
    /// send; those that match none get the first. TLS 1.2 and 1.3 are accepted, and no application protocol is
    /// negotiated.
    ///
    /// # Errors
    /// Returns an error if there is no certificate, or the system's random number generator fails.
    pub fn new(certificates: Vec<Certificate>) -> Result<Self, TlsError> {
        let resolver = Arc::new(Resolver::new(certificates)?);
        let parts = Parts { resolver, authorities: None, ticketer: new_ticketer()? };
        let client_auth = ClientAuth::default();
        let options = Options { version_min: TlsVersion::Tls12, alpn_protocols: Vec::new(), client_auth };
        Ok(Self::with_options(options, parts))
    }

    /// Creates a configuration with a self-signed certificate; see [`Certificate::self_signed`].
    ///
    /// # Errors
    /// Returns the errors of [`Certificate::self_signed`].
    pub fn self_signed(names: impl IntoIterator<Item = impl Into<String>>) -> Result<Self, TlsError> {
        Self::new(vec![Certificate::self_signed(names)?])
    }

    /// Creates a configuration from a certificate chain and its private key in PEM; see [`Certificate::from_pem`].
    ///
    /// # Errors
    /// Returns the errors of [`Certificate::from_pem`].
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        Self::new(vec![Certificate::from_pem(chain, key)?])
    }

    fn with_options(options: Options, parts: Parts) -> Self {
        let current = Mutex::new(options.configure(parts));
        Tls { shared: Arc::new(Shared { options, current }) }
    }

    /// Sets the oldest accepted version. Returns a separate configuration with the same certificates.
    #[must_use]
    pub fn version_min(&self, version: TlsVersion) -> Self {
        self.with(|options| options.version_min = version)
    }

    /// Sets the application protocols to negotiate (ALPN), the most preferred first. Clients that offer protocols, but none
    /// of these, are refused. Returns a separate configuration with the same certificates.
    #[must_use]
    pub fn alpn_protocols(&self, protocols: &[&str]) -> Self {
        self.with(|options| options.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect())
    }

    /// Asks clients for a certificate that one of the authorities in `pem` has issued (mutual TLS), or that is one of the
    /// self-signed certificates there. It must be valid, and usable for clients if it is limited to some purposes. An
    /// authority is used only while its own certificate is valid; otherwise a warning is logged here and at each change.
    /// See [`TlsInfo::client_certificate`](super::TlsInfo) for the identity of a client. Returns a separate configuration
    /// with the same certificates of the server.
    ///
    /// Revocation lists are not supported: a certificate is accepted until it expires or its authority is removed.
    ///
    /// # Errors
    /// Returns an error if there is no certificate, or one is damaged or neither that of an authority nor self-signed.
    ///
    /// # Examples
    /// ```
    /// use serverd::tls::{ClientAuth, Tls};
    ///
    /// let authority = std::fs::read("tests/tls/a.pem")?;
    /// let tls = Tls::self_signed(["localhost"])?.client_ca(&authority, ClientAuth::Required)?;
    /// tls.replace_client_ca(&authority)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn client_ca(&self, pem: &[u8], auth: ClientAuth) -> Result<Self, TlsError> {
        let authorities = Some(Arc::new(client_auth::parse_authorities(pem)?));
        let options = Options { client_auth: auth, ..self.shared.options.clone() };
        let resolver = Arc::clone(&self.lock().resolver);
        Ok(Self::with_options(options, Parts { resolver, authorities, ticketer: new_ticketer()? }))
    }

    fn with(&self, change: impl FnOnce(&mut Options)) -> Self {
        let mut options = self.shared.options.clone();
        change(&mut options);
        let parts = self.lock().parts();
        Self::with_options(options, parts)
    }

    /// Atomically replaces all certificates of the server for new connections. Open connections are not affected.
    ///
    /// # Errors
    /// Returns an error if there is no certificate; the previous ones stay in use.
    pub fn replace_certificates(&self, certificates: Vec<Certificate>) -> Result<(), TlsError> {
        self.update(Some(certificates), None)
    }

    /// Atomically replaces the authorities of [`Tls::client_ca`] for new connections. If they differ from the previous
    /// ones, existing sessions can no longer be resumed. Open connections are not affected.
    ///
    /// # Errors
    /// Returns an error if there is no certificate, one is damaged, or clients are not asked for certificates; the previous
    /// authorities stay in use.
    pub fn replace_client_ca(&self, pem: &[u8]) -> Result<(), TlsError> {
        self.update(None, Some(pem))
    }

    /// Atomically replaces certificates, authorities of clients or both.
    pub(crate) fn update(
        &self,
        certificates: Option<Vec<Certificate>>,
        client_ca: Option<&[u8]>,
    ) -> Result<(), TlsError> {
        let resolver = certificates.map(Resolver::new).transpose()?;
        let authorities = client_ca.map(client_auth::parse_authorities).transpose()?;
        let mut current = self.lock();
        let mut parts = current.parts();
        if let Some(resolver) = resolver {
            parts.resolver = Arc::new(resolver);
        }
        if let Some(authorities) = authorities {
            let previous = parts.authorities.as_ref();
            let previous = previous.ok_or_else(|| TlsError::new("clients are not asked for certificates"))?;
            if **previous != authorities {
                parts.authorities = Some(Arc::new(authorities));
                parts.ticketer = new_ticketer()?;
            }
        }
        *current = self.shared.options.configure(parts);
        Ok(())
    }

    /// Returns the SHA-256 fingerprint of the first certificate; see [`Certificate::fingerprint`].
    pub fn fingerprint(&self) -> String {
        let resolver = Arc::clone(&self.lock().resolver);
        resolver.find(None).fingerprint()
    }

    /// Returns the certificates that new connections use, in the order in which they were passed.
    pub(crate) fn certificates(&self) -> Vec<Certificate> {
        self.lock().resolver.certificates.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.shared.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether HTTP/1.1 is one of the application protocols.
    pub(crate) fn serves_http(&self) -> bool {
        self.shared.options.alpn_protocols.iter().any(|protocol| protocol == b"http/1.1")
    }

    /// Returns the configuration for a new session.
    pub(super) fn current(&self) -> SessionConfig {
        let current = self.lock();
        let has_several = current.resolver.certificates.len() > 1;
        SessionConfig {
            config: Arc::clone(&current.config),
            certificates: has_several.then(|| Arc::clone(&current.resolver)),
            authorities: current.authorities.clone(),
        }
    }
}

/// The configuration of a session.
pub(super) struct SessionConfig {
    pub(super) config: Arc<ServerConfig>,
    /// The certificates of the server, if there are several.
    pub(super) certificates: Option<Arc<Resolver>>,
    /// The authorities of the certificates of clients.
    pub(super) authorities: Option<Arc<Trust>>,
}

impl Current {
    fn parts(&self) -> Parts {
        Parts {
            resolver: Arc::clone(&self.resolver),
            authorities: self.authorities.clone(),
            ticketer: Arc::clone(&self.config.ticketer),
        }
    }
}

fn new_ticketer() -> Result<Arc<dyn ProducesTickets>, TlsError> {
    rustls::crypto::ring::Ticketer::new()
        .map_err(|error| TlsError::new(format!("cannot create keys for session tickets: {error}")))
}

impl Options {
    fn configure(&self, parts: Parts) -> Current {
        let versions: &[_] = match self.version_min {
            TlsVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            TlsVersion::Tls13 => &[&rustls::version::TLS13],
        };
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .expect("ring has cipher suites for both versions")
            .with_client_cert_verifier(client_auth::verifier(parts.authorities.as_ref(), self.client_auth))
            .with_cert_resolver(Arc::clone(&parts.resolver) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols.clone_from(&self.alpn_protocols);
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = parts.ticketer;
        config.send_tls13_tickets = 1;
        Current { config: Arc::new(config), resolver: parts.resolver, authorities: parts.authorities }
    }
}

/// Chooses the certificate of a session.
#[derive(Debug)]
pub(super) struct Resolver {
    certificates: Vec<Certificate>,
    /// The first certificate with each name.
    by_name: HashMap<String, usize>,
}

impl Resolver {
    fn new(certificates: Vec<Certificate>) -> Result<Self, TlsError> {
        if certificates.is_empty() {
            return Err(TlsError::new("TLS needs a certificate"));
        }
        let mut by_name = HashMap::new();
        for (index, certificate) in certificates.iter().enumerate() {
            for name in certificate.dns_names() {
                by_name.entry(name.clone()).or_insert(index);
            }
        }
        Ok(Resolver { certificates, by_name })
    }

    /// Returns the certificate for a server name: one with exactly that name, or else one with a wildcard in place of the
    /// first label (RFC 6125 section 6.4.3), or else the first.
    fn find(&self, server_name: Option<&str>) -> &Certificate {
        &self.certificates[server_name.and_then(|name| self.index(name)).unwrap_or(0)]
    }

    fn index(&self, name: &str) -> Option<usize> {
        let name = name.to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        let wildcard = || self.by_name.get(&format!("*.{}", name.split_once('.')?.1));
        self.by_name.get(name).or_else(wildcard).copied()
    }

    /// Returns whether requests for `host` may use a connection to `server_name`: it has the same certificate, or none.
    pub(super) fn may_share(&self, server_name: &str, host: &str) -> bool {
        self.index(host).is_none_or(|index| index == self.index(server_name).unwrap_or(0))
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.find(hello.server_name()).key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_found_by_exact_name_then_wildcard_then_order() {
        let certificate = |names: &[&str]| Certificate::self_signed(names.iter().copied()).unwrap();
        let certificates = [
            certificate(&["default.example"]),
            certificate(&["*.example.org", "example.org"]),
            certificate(&["WWW.example.org", "example.org"]),
        ];
        let prints = certificates.each_ref().map(Certificate::fingerprint);
        let resolver = Resolver::new(certificates.to_vec()).unwrap();
        for (name, expected) in [
            (None, 0),
            (Some("unknown.example"), 0),
            (Some("default.example"), 0),
            (Some("example.org"), 1),
            (Some("a.example.org"), 1),
            (Some("A.Example.Org."), 1),
            (Some("www.example.org"), 2),
            (Some("a.b.example.org"), 0),
            (Some("org"), 0),
            (Some(""), 0),
        ] {
            assert_eq!(resolver.find(name).fingerprint(), prints[expected], "{name:?}");
        }
        for (server_name, host, expected) in [
            ("example.org", "a.example.org", true),
            ("example.org", "www.example.org", false),
            ("www.example.org", "WWW.example.org.", true),
            ("unknown.example", "default.example", true),
            ("unknown.example", "example.org", false),
            ("example.org", "unknown.example", true),
        ] {
            assert_eq!(resolver.may_share(server_name, host), expected, "{server_name} {host}");
        }
        assert!(Resolver::new(Vec::new()).is_err());
    }

    #[test]
    fn certificates_are_replaced_in_clones_and_tickets_stay_valid() {
        let tls = Tls::self_signed(["a"]).unwrap().alpn_protocols(&["http/1.1"]);
        let clone = tls.clone();
        let before = tls.current().config;
        clone.replace_certificates(vec![Certificate::self_signed(["b"]).unwrap()]).unwrap();
        let after = tls.current().config;
        assert!(!Arc::ptr_eq(&before.cert_resolver, &after.cert_resolver));
        assert!(Arc::ptr_eq(&before.ticketer, &after.ticketer));
        assert_eq!(after.alpn_protocols, [b"http/1.1"]);
        let names: Vec<Certificate> = tls.certificates();
        assert_eq!(names.iter().map(Certificate::dns_names).collect::<Vec<_>>(), [["b"]]);
        assert_eq!(clone.replace_certificates(Vec::new()).unwrap_err().to_string(), "TLS needs a certificate");
        assert!(Arc::ptr_eq(&after, &tls.current().config));
    }

    #[test]
    fn tickets_do_not_outlive_the_authorities_of_clients() {
        let [first, second] = ["a.pem", "b.pem"].map(|name| std::fs::read(format!("tests/tls/{name}")).unwrap());
        let plain = Tls::self_signed(["a"]).unwrap();
        assert_eq!(plain.replace_client_ca(&first).unwrap_err().to_string(), "clients are not asked for certificates");
        let tls = plain.client_ca(&first, ClientAuth::Required).unwrap();
        let ticketer = |tls: &Tls| Arc::clone(&tls.current().config.ticketer);
        let before = ticketer(&tls);
        assert!(!Arc::ptr_eq(&before, &ticketer(&plain)), "tickets of clients without a certificate are not accepted");
        assert!(Arc::ptr_eq(&before, &ticketer(&tls.version_min(TlsVersion::Tls13))));
        tls.replace_certificates(vec![Certificate::self_signed(["b"]).unwrap()]).unwrap();
        tls.replace_client_ca(&first).unwrap();
        assert!(Arc::ptr_eq(&before, &ticketer(&tls)), "the authorities are the same");
        assert_eq!(tls.replace_client_ca(b"").unwrap_err().to_string(), "no certificate found; PEM is expected");
        assert!(Arc::ptr_eq(&before, &ticketer(&tls)));
        tls.replace_client_ca(&second).unwrap();
        assert!(!Arc::ptr_eq(&before, &ticketer(&tls)));
        let optional = tls.client_ca(&second, ClientAuth::Optional).unwrap();
        assert!(!Arc::ptr_eq(&ticketer(&optional), &ticketer(&tls)));
    }
}

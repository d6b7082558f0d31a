//! The configuration of TLS for outgoing connections.

use std::fmt;
use std::sync::Arc;
#[cfg(feature = "cli")]
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};

use super::certificate::{Certificate, TlsError, provider};
use super::failure::Role;
use super::trust::Trust;
use super::verifier::{AnyServer, TrustedServers};

/// TLS for outgoing connections: the servers that are trusted, and the certificate that is presented to those that ask for
/// one. TLS 1.2 and 1.3 are accepted. Clones share the memory of earlier sessions, which are resumed.
///
/// # Examples
/// ```
/// use serverd::{Client, tls::ClientTls};
///
/// let authority = std::fs::read("tests/tls/a.pem")?;
/// let client = Client::new().tls(&ClientTls::with_roots(&authority)?);
/// # drop(client);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    /// The authorities are those of [`ClientTls::with_roots`], rather than those of the system.
    has_own_roots: bool,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Trusts servers whose certificate is signed by an authority that the system trusts. Reads these certificates, which
    /// takes some milliseconds, so call it at the start of a program. An authority is trusted only while its own certificate
    /// is valid.
    ///
    /// # Errors
    /// Returns an error if the system has no such certificates.
    #[cfg(feature = "system-roots")]
    pub fn system_roots() -> Result<Self, TlsError> {
        Trust::from_system(rustls_native_certs::load_native_certs().certs).map(Self::with_trust)
    }

    /// Trusts servers whose certificate is signed by one of the authorities in `pem`, or is one of the certificates there,
    /// of whatever kind. Certificates in `pem` are trusted only while they are valid. In any case, the certificate of a
    /// server must be valid for its name.
    ///
    /// # Errors
    /// Returns an error if there is no certificate, or one is damaged.
    pub fn with_roots(pem: &[u8]) -> Result<Self, TlsError> {
        let tls = Trust::from_pem(Role::Server, pem).map(Self::with_trust)?;
        Ok(ClientTls { has_own_roots: true, ..tls })
    }

    /// Accepts all certificates. The connection is then not protected against an attacker between client and server.
    /// Still, the server must have the private key of its certificate, and an RSA key of at least 2,048 bits.
    pub fn insecure() -> Self {
        Self::with_verifier(Arc::new(AnyServer::new(&provider())))
    }

    fn with_trust(trust: Trust) -> Self {
        Self::with_verifier(Arc::new(TrustedServers::new(trust)))
    }

    fn with_verifier(verifier: Arc<dyn ServerCertVerifier>) -> Self {
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.expect("ring has cipher suites for both versions").dangerous();
        let config = builder.with_custom_certificate_verifier(verifier).with_no_client_auth();
        ClientTls { config: Arc::new(config), has_own_roots: false }
    }

    /// Returns a separate configuration, with this in place of that of rustls.
    fn with_config(&self, config: ClientConfig) -> Self {
        ClientTls { config: Arc::new(config), has_own_roots: self.has_own_roots }
    }

    #[cfg(feature = "cli")]
    pub(super) fn has_own_roots(&self) -> bool {
        self.has_own_roots
    }

    /// Presents a certificate to servers that ask for one (mutual TLS). Returns a separate configuration, which does not
    /// resume earlier sessions.
    #[must_use]
    pub fn certificate(&self, certificate: &Certificate) -> Self {
        let mut config = self.config();
        config.client_auth_cert_resolver = Arc::new(Identity(Arc::clone(&certificate.key)));
        config.resumption = Resumption::default();
        self.with_config(config)
    }

    /// Sets the application protocols to negotiate (ALPN).
    pub(crate) fn alpn_protocols(&self, protocols: &[&str]) -> Self {
        let mut config = self.config();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        self.with_config(config)
    }

    /// Returns a separate configuration, which notes whether a server asks for a certificate.
    #[cfg(feature = "cli")]
    pub(super) fn observe_requests(&self) -> (Self, Arc<CertificateRequests>) {
        let mut config = self.config();
        let inner = Arc::clone(&config.client_auth_cert_resolver);
        let requests = Arc::new(CertificateRequests { inner, has_any: AtomicBool::new(false) });
        config.client_auth_cert_resolver = Arc::<CertificateRequests>::clone(&requests);
        (self.with_config(config), requests)
    }

    /// Returns a copy of the configuration, to be changed.
    fn config(&self) -> ClientConfig {
        ClientConfig::clone(&self.config)
    }

    /// Returns the configuration for a new session.
    pub(super) fn current(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }
}

/// The certificate of a client.
#[derive(Debug)]
struct Identity(Arc<CertifiedKey>);

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Notes whether the server asks for a certificate of the client.
#[cfg(feature = "cli")]
#[derive(Debug)]
pub(super) struct CertificateRequests {
    inner: Arc<dyn ResolvesClientCert>,
    has_any: AtomicBool,
}

#[cfg(feature = "cli")]
impl CertificateRequests {
    pub(super) fn has_any(&self) -> bool {
        self.has_any.load(Ordering::Relaxed)
    }
}

#[cfg(feature = "cli")]
impl ResolvesClientCert for CertificateRequests {
    fn resolve(&self, authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.has_any.store(true, Ordering::Relaxed);
        self.inner.resolve(authorities, schemes)
    }

    fn has_certs(&self) -> bool {
        self.inner.has_certs()
    }
}

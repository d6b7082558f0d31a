//! The configuration of TLS for outgoing connections.

use std::fmt;
use std::sync::Arc;
#[cfg(feature = "cli")]
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ConfigBuilder, WantsVerifier};
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::certificate::{Certificate, TlsError, provider};
use super::client_auth::parse_authorities;

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
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

fn builder() -> ConfigBuilder<ClientConfig, WantsVerifier> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    builder.expect("ring has cipher suites for both versions")
}

impl ClientTls {
    /// Trusts servers whose certificate is signed by an authority that the system trusts. Reads these certificates, which
    /// takes some milliseconds, so call it at the start of a program.
    ///
    /// # Errors
    /// Returns an error if the system has no such certificates.
    #[cfg(feature = "system-roots")]
    pub fn system_roots() -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(TlsError::new("this system has no certificates of trusted authorities"));
        }
        Ok(Self::with_store(roots))
    }

    /// Trusts servers whose certificate is signed by one of the certificates in `pem`, or is one of these.
    ///
    /// # Errors
    /// Returns an error if there is no certificate, or one is damaged.
    pub fn with_roots(pem: &[u8]) -> Result<Self, TlsError> {
        parse_authorities(pem).map(Self::with_store)
    }

    /// Accepts all certificates. The connection is then not protected against an attacker between client and server.
    pub fn insecure() -> Self {
        let verifier = Arc::new(AcceptAny(provider()));
        Self::new(builder().dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
    }

    fn with_store(roots: RootCertStore) -> Self {
        Self::new(builder().with_root_certificates(roots).with_no_client_auth())
    }

    fn new(config: ClientConfig) -> Self {
        ClientTls { config: Arc::new(config) }
    }

    /// Presents a certificate to servers that ask for one (mutual TLS). Returns a separate configuration, which does not
    /// resume earlier sessions.
    #[must_use]
    pub fn certificate(&self, certificate: &Certificate) -> Self {
        let mut config = self.config();
        config.client_auth_cert_resolver = Arc::new(Identity(Arc::clone(&certificate.key)));
        config.resumption = Resumption::default();
        Self::new(config)
    }

    /// Sets the application protocols to negotiate (ALPN).
    pub(crate) fn alpn_protocols(&self, protocols: &[&str]) -> Self {
        let mut config = self.config();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Self::new(config)
    }

    /// Returns a separate configuration, which notes whether a server asks for a certificate.
    #[cfg(feature = "cli")]
    pub(super) fn observe_requests(&self) -> (Self, Arc<CertificateRequests>) {
        let mut config = self.config();
        let inner = Arc::clone(&config.client_auth_cert_resolver);
        let requests = Arc::new(CertificateRequests { inner, has_any: AtomicBool::new(false) });
        config.client_auth_cert_resolver = Arc::<CertificateRequests>::clone(&requests);
        (Self::new(config), requests)
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

/// Accepts every certificate, but only with a valid signature by its key.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

//! The client's end of a TLS connection over a blocking socket, for the client commands.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error};
use rustls::{InvalidMessage, RootCertStore, SignatureScheme};

use super::certificate::{self, Certificate, Expiry, provider};
use super::client_auth::parse_authorities;
use super::error::TlsError;

/// The server certificates that a client accepts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trust {
    /// Certificates signed by an authority that the system trusts.
    #[default]
    System,
    /// Certificates signed by one of the certificates in this PEM file, and these themselves.
    File(PathBuf),
    /// All certificates. The connection is then not protected against an attacker between client and server.
    Any,
}

/// TLS of a client: the servers that it trusts, and the certificate that it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientTls {
    /// The accepted certificates of servers.
    pub trust: Trust,
    /// The certificate chain of the client and its private key (PEM files), for servers that ask for one.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

impl From<Trust> for ClientTls {
    /// Creates the configuration of a client without a certificate.
    fn from(trust: Trust) -> Self {
        ClientTls { trust, certificate: None }
    }
}

impl ClientTls {
    fn configure(&self, identity: Arc<Identity>) -> Result<ClientConfig, TlsError> {
        let provider = provider();
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("ring has cipher suites for both versions");
        let roots = match &self.trust {
            Trust::System => system_roots()?,
            Trust::File(path) => roots_of(path)?,
            Trust::Any => {
                let verifier = Arc::new(AcceptAny(provider));
                let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
                return Ok(builder.with_client_cert_resolver(identity));
            }
        };
        Ok(builder.with_root_certificates(roots).with_client_cert_resolver(identity))
    }

    fn identity(&self) -> Result<Identity, TlsError> {
        let certificate = self.certificate.as_ref().map(|(chain, key)| Certificate::from_pem_files(chain, key));
        Ok(Identity { key: certificate.transpose()?.map(|certificate| certificate.key), is_requested: false.into() })
    }
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(TlsError::new("this system has no certificates of trusted authorities; use --ca FILE"));
    }
    Ok(roots)
}

fn roots_of(path: &Path) -> Result<RootCertStore, TlsError> {
    let failed = |error: TlsError| TlsError::new(format!("{}: {error}", path.display()));
    parse_authorities(&certificate::read(path)?).map_err(failed)
}

/// The certificate of a client, if it has one.
#[derive(Debug)]
struct Identity {
    key: Option<Arc<CertifiedKey>>,
    /// Whether the server has asked for a certificate.
    is_requested: AtomicBool,
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.is_requested.store(true, Ordering::Relaxed);
        self.key.clone()
    }

    fn has_certs(&self) -> bool {
        self.key.is_some()
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

/// A session with a server, after the handshake.
pub(crate) struct ClientSession {
    connection: ClientConnection,
    identity: Arc<Identity>,
}

impl ClientSession {
    /// Completes a handshake with the server `host`, a name or an IP address.
    ///
    /// # Errors
    /// Returns the errors of the socket, and a [`TlsError`] in an error of the kind `InvalidData` if the server is not
    /// trusted or does not speak TLS.
    pub(crate) fn open(
        socket: &mut (impl Read + Write),
        host: &str,
        tls: &ClientTls,
        protocols: &[&str],
    ) -> io::Result<Self> {
        let failed = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let identity = Arc::new(tls.identity().map_err(failed)?);
        let mut config = tls.configure(Arc::clone(&identity)).map_err(failed)?;
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        // The zone of an IPv6 address is not part of the name.
        let name = ServerName::try_from(host.split('%').next().unwrap_or(host).to_owned())
            .map_err(|_| failed(TlsError::new(format!("{host} is not a valid server name"))))?;
        let mut connection =
            ClientConnection::new(Arc::new(config), name).map_err(|error| failed(explain(&error, host)))?;
        connection.set_buffer_limit(None);
        match connection.complete_io(socket) {
            Ok(_) => Ok(ClientSession { connection, identity }),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(failed(TlsError::new("the server closed the connection during the TLS handshake")))
            }
            Err(error) => Err(match error.get_ref().and_then(|error| error.downcast_ref()) {
                Some(reason) => failed(explain(reason, host)),
                None => error,
            }),
        }
    }

    /// Returns whether the server has asked for a certificate of the client. With TLS 1.3, it verifies it only after the
    /// handshake is complete for the client.
    pub(crate) fn has_certificate_request(&self) -> bool {
        self.identity.is_requested.load(Ordering::Relaxed)
    }

    /// Returns the validity of the server's certificate.
    pub(crate) fn expiry(&self) -> Option<Expiry> {
        certificate::expiry(self.connection.peer_certificates()?.first()?, SystemTime::now())
    }

    /// Encrypts `plaintext`, if there is any, and appends the ciphertext that is to be sent.
    pub(crate) fn encrypt(&mut self, plaintext: &[u8], ciphertext: &mut Vec<u8>) -> io::Result<()> {
        self.connection.writer().write_all(plaintext)?;
        while self.connection.wants_write() {
            self.connection.write_tls(ciphertext)?;
        }
        Ok(())
    }

    /// Marks the end of the output; it is part of the next ciphertext.
    pub(crate) fn end(&mut self) {
        self.connection.send_close_notify();
    }

    /// Decrypts all of `ciphertext` and appends the plaintext. Returns whether the server has ended its output.
    pub(crate) fn decrypt(&mut self, mut ciphertext: &[u8], plaintext: &mut Vec<u8>) -> io::Result<bool> {
        loop {
            let state = self.connection.process_new_packets().map_err(|error| explain_failure(&error))?;
            let start = plaintext.len();
            plaintext.resize(start + state.plaintext_bytes_to_read(), 0);
            self.connection.reader().read_exact(&mut plaintext[start..])?;
            if state.peer_has_closed() || ciphertext.is_empty() {
                return Ok(state.peer_has_closed());
            }
            self.connection.read_tls(&mut ciphertext)?;
        }
    }
}

/// A stream over a socket and a session.
pub(crate) struct ClientStream<S> {
    pub(crate) session: ClientSession,
    pub(crate) socket: S,
}

impl<S: Read + Write> Read for ClientStream<S> {
    /// Returns 0 only at an orderly end.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let outcome = rustls::Stream::new(&mut self.session.connection, &mut self.socket).read(buffer);
        outcome.map_err(|error| match error.get_ref().and_then(|error| error.downcast_ref()) {
            Some(reason) => explain_failure(reason),
            None => error,
        })
    }
}

impl<S: Read + Write> Write for ClientStream<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        rustls::Stream::new(&mut self.session.connection, &mut self.socket).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        rustls::Stream::new(&mut self.session.connection, &mut self.socket).flush()
    }
}

/// Explains a failed handshake to the user of a client command.
fn explain(error: &Error, host: &str) -> TlsError {
    TlsError::new(match error {
        Error::InvalidCertificate(reason) => match reason {
            CertificateError::UnknownIssuer => {
                "the certificate is not signed by a trusted authority; use --ca FILE, or --insecure".into()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "the certificate has expired".into(),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the certificate is not valid yet, or the clock of this system is slow".into()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("the certificate is not valid for {host}")
            }
            other => format!("the certificate is not valid: {other}"),
        },
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the server does not speak TLS on this port".into()
        }
        Error::AlertReceived(alert) => explain_refusal(*alert)
            .map_or_else(|| format!("the server refused the TLS handshake: {alert:?}"), Into::into),
        other => format!("the TLS handshake failed: {other}"),
    })
}

/// Explains a failure after the handshake. With TLS 1.3, the server may refuse the client's certificate only then.
fn explain_failure(error: &Error) -> io::Error {
    let refusal = if let Error::AlertReceived(alert) = error { explain_refusal(*alert) } else { None };
    let message = refusal.map_or_else(|| format!("the TLS session failed: {error}"), Into::into);
    io::Error::new(io::ErrorKind::InvalidData, TlsError::new(message))
}

/// Explains alerts about the certificate of the client.
fn explain_refusal(alert: AlertDescription) -> Option<&'static str> {
    Some(match alert {
        AlertDescription::CertificateRequired => "the server requires a client certificate; use --cert and --key",
        // The latter if the server trusts another authority of the same name.
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "the server does not trust the authority of the client certificate"
        }
        AlertDescription::CertificateExpired => "the server refused the client certificate, which has expired",
        AlertDescription::BadCertificate | AlertDescription::UnsupportedCertificate => {
            "the server refused the client certificate; it may not be intended for clients"
        }
        _ => return None,
    })
}

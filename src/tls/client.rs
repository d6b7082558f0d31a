//! The client's end of a TLS connection over a blocking socket, for the client commands.

use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, InvalidMessage, RootCertStore};
use rustls::{Error, SignatureScheme};

use super::certificate::{self, Expiry, provider};
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

impl Trust {
    fn configure(&self) -> Result<ClientConfig, TlsError> {
        let provider = provider();
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("ring has cipher suites for both versions");
        let roots = match self {
            Trust::System => system_roots()?,
            Trust::File(path) => roots_of(path)?,
            Trust::Any => {
                let verifier = Arc::new(AcceptAny(provider));
                return Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
            }
        };
        Ok(builder.with_root_certificates(roots).with_no_client_auth())
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
    let failed = |error: &dyn fmt::Display| TlsError::new(format!("{}: {error}", path.display()));
    let pem = certificate::read(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| failed(&format!("not valid PEM ({error})")))?;
        roots.add(certificate).map_err(|_| failed(&"contains a damaged certificate"))?;
    }
    if roots.is_empty() { Err(failed(&"no certificate found; PEM is expected")) } else { Ok(roots) }
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
pub(crate) struct ClientSession(ClientConnection);

impl ClientSession {
    /// Completes a handshake with the server `host`, a name or an IP address.
    ///
    /// # Errors
    /// Returns the errors of the socket, and a [`TlsError`] in an error of the kind `InvalidData` if the server is not
    /// trusted or does not speak TLS.
    pub(crate) fn open(
        socket: &mut (impl Read + Write),
        host: &str,
        trust: &Trust,
        protocols: &[&str],
    ) -> io::Result<Self> {
        let failed = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let mut config = trust.configure().map_err(failed)?;
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        // The zone of an IPv6 address is not part of the name.
        let name = ServerName::try_from(host.split('%').next().unwrap_or(host).to_owned())
            .map_err(|_| failed(TlsError::new(format!("{host} is not a valid server name"))))?;
        let mut connection =
            ClientConnection::new(Arc::new(config), name).map_err(|error| failed(explain(&error, host)))?;
        connection.set_buffer_limit(None);
        match connection.complete_io(socket) {
            Ok(_) => Ok(ClientSession(connection)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(failed(TlsError::new("the server closed the connection during the TLS handshake")))
            }
            Err(error) => Err(match error.get_ref().and_then(|error| error.downcast_ref()) {
                Some(reason) => failed(explain(reason, host)),
                None => error,
            }),
        }
    }

    /// Returns the validity of the server's certificate.
    pub(crate) fn expiry(&self) -> Option<Expiry> {
        certificate::expiry(self.0.peer_certificates()?.first()?, SystemTime::now())
    }

    /// Encrypts `plaintext`, if there is any, and appends the ciphertext that is to be sent.
    pub(crate) fn encrypt(&mut self, plaintext: &[u8], ciphertext: &mut Vec<u8>) -> io::Result<()> {
        self.0.writer().write_all(plaintext)?;
        while self.0.wants_write() {
            self.0.write_tls(ciphertext)?;
        }
        Ok(())
    }

    /// Marks the end of the output; it is part of the next ciphertext.
    pub(crate) fn end(&mut self) {
        self.0.send_close_notify();
    }

    /// Decrypts all of `ciphertext` and appends the plaintext. Returns whether the server has ended its output.
    pub(crate) fn decrypt(&mut self, mut ciphertext: &[u8], plaintext: &mut Vec<u8>) -> io::Result<bool> {
        loop {
            let state = self.0.process_new_packets().map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidData, TlsError::new(format!("TLS session failed: {error}")))
            })?;
            let start = plaintext.len();
            plaintext.resize(start + state.plaintext_bytes_to_read(), 0);
            self.0.reader().read_exact(&mut plaintext[start..])?;
            if state.peer_has_closed() || ciphertext.is_empty() {
                return Ok(state.peer_has_closed());
            }
            self.0.read_tls(&mut ciphertext)?;
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
        rustls::Stream::new(&mut self.session.0, &mut self.socket).read(buffer)
    }
}

impl<S: Read + Write> Write for ClientStream<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        rustls::Stream::new(&mut self.session.0, &mut self.socket).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        rustls::Stream::new(&mut self.session.0, &mut self.socket).flush()
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
        Error::AlertReceived(alert) => format!("the server refused the TLS handshake: {alert:?}"),
        other => format!("the TLS handshake failed: {other}"),
    })
}

//! A TLS session of a client: ciphertext in, plaintext out, and the reverse. It does no I/O.

use std::io::{Read, Write};
#[cfg(feature = "cli")]
use std::sync::Arc;
#[cfg(feature = "cli")]
use std::time::SystemTime;

use rustls::pki_types::ServerName;
#[cfg(feature = "cli")]
use rustls::{AlertDescription, CertificateError};
use rustls::{ClientConnection, Error, InvalidMessage};

use super::certificate::TlsError;
#[cfg(feature = "cli")]
use super::client_config::CertificateRequests;
use super::client_config::ClientTls;
use super::failure::{self, Role};
#[cfg(feature = "cli")]
use super::{Expiry, certificate};

/// The client's end of a TLS connection.
pub(crate) struct ClientSession {
    pub(super) connection: ClientConnection,
    /// Notes whether the server asks for a certificate; `None` if that does not matter. Explanations then name options of the
    /// client commands.
    #[cfg(feature = "cli")]
    pub(super) requests: Option<Arc<CertificateRequests>>,
    #[cfg(feature = "cli")]
    has_own_roots: bool,
}

impl ClientSession {
    /// Creates a session with the server `host`, a name or an IP address. Its handshake begins with
    /// [`encrypt`](Self::encrypt).
    ///
    /// # Errors
    /// Returns an error if `host` is neither.
    pub(crate) fn new(tls: &ClientTls, host: &str) -> Result<Self, TlsError> {
        // The zone of an IPv6 address is not part of the name.
        let name = host.split('%').next().unwrap_or(host).to_owned();
        let name =
            ServerName::try_from(name).map_err(|_| TlsError::new(format!("{host} is not a valid server name")))?;
        let mut connection = ClientConnection::new(tls.current(), name)
            .map_err(|error| TlsError::new(format!("cannot begin a TLS session: {error}")))?;
        connection.set_buffer_limit(None);
        Ok(ClientSession {
            connection,
            #[cfg(feature = "cli")]
            requests: None,
            #[cfg(feature = "cli")]
            has_own_roots: tls.has_own_roots(),
        })
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Encrypts pieces of plaintext, if there are any, and appends the ciphertext that is to be sent, also that of the
    /// handshake and of alerts.
    ///
    /// # Errors
    /// Returns an error once the session has been ended.
    pub(crate) fn encrypt<'a>(
        &mut self,
        plaintext: impl IntoIterator<Item = &'a [u8]>,
        ciphertext: &mut Vec<u8>,
    ) -> Result<(), TlsError> {
        let failed = |error| TlsError::new(format!("cannot encrypt: {error}"));
        for piece in plaintext {
            self.connection.writer().write_all(piece).map_err(failed)?;
        }
        while self.connection.wants_write() {
            self.connection.write_tls(ciphertext).map_err(failed)?;
        }
        Ok(())
    }

    /// Marks the end of the output; it is part of the next ciphertext.
    pub(crate) fn end(&mut self) {
        self.connection.send_close_notify();
    }

    /// Decrypts all of `ciphertext` and appends the plaintext. Returns whether the server has ended its output.
    ///
    /// # Errors
    /// Returns an error if the server is not trusted, or violates the protocol. An alert is then part of the next ciphertext.
    pub(crate) fn decrypt(&mut self, mut ciphertext: &[u8], plaintext: &mut Vec<u8>) -> Result<bool, TlsError> {
        let failed = |error| TlsError::new(format!("cannot decrypt: {error}"));
        loop {
            let state = self.connection.process_new_packets().map_err(|error| self.explain(&error))?;
            let start = plaintext.len();
            plaintext.resize(start + state.plaintext_bytes_to_read(), 0);
            self.connection.reader().read_exact(&mut plaintext[start..]).map_err(failed)?;
            if state.peer_has_closed() || ciphertext.is_empty() {
                return Ok(state.peer_has_closed());
            }
            self.connection.read_tls(&mut ciphertext).map_err(failed)?;
        }
    }

    /// Returns the validity of the server's certificate.
    #[cfg(feature = "cli")]
    pub(crate) fn expiry(&self) -> Option<Expiry> {
        certificate::expiry(self.connection.peer_certificates()?.first()?, SystemTime::now())
    }

    /// Explains a failure to the user. With TLS 1.3, the server may refuse the client's certificate only after the handshake.
    pub(super) fn explain(&self, error: &Error) -> TlsError {
        let message = failure::explain(error, Role::Server);
        let message = match error {
            Error::AlertReceived(_) | Error::InvalidCertificate(_) | Error::PeerIncompatible(_) => message,
            Error::InvalidMessage(InvalidMessage::InvalidContentType) if self.is_handshaking() => message,
            _ if self.is_handshaking() => format!("the TLS handshake failed: {message}"),
            _ => format!("the TLS session failed: {message}"),
        };
        #[cfg(feature = "cli")]
        let message = if self.requests.is_some() { message + advice(error, self.has_own_roots) } else { message };
        TlsError::new(message)
    }
}

/// Returns the error for a server that closes the connection before the end of the handshake.
pub(crate) fn closed_in_handshake() -> TlsError {
    TlsError::new("the server closed the connection during the TLS handshake")
}

/// Returns the options with which a client command would succeed, to be appended to the explanation of an error.
#[cfg(feature = "cli")]
fn advice(error: &Error, has_own_roots: bool) -> &'static str {
    match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) if has_own_roots => {
            "; the file of --ca must contain the certificate of its authority, or this certificate"
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => "; use --ca FILE, or --insecure",
        Error::InvalidCertificate(reason) if failure::is_authority(reason) => {
            "; use --ca with a file that contains it, or --insecure"
        }
        Error::AlertReceived(AlertDescription::CertificateRequired) => "; use --cert and --key",
        _ => "",
    }
}

//! TLS of the client commands, over a blocking socket.

use std::io::{self, Read, Write};

use super::certificate::TlsError;
use super::client_config::ClientTls;
use super::client_session::{ClientSession, closed_in_handshake};

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
        let (tls, requests) = tls.alpn_protocols(protocols).observe_requests();
        let mut session = ClientSession::new(&tls, host).map_err(TlsError::into_io)?;
        session.requests = Some(requests);
        match session.connection.complete_io(socket) {
            Ok(_) => Ok(session),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(closed_in_handshake().into_io()),
            Err(error) => Err(session.explain_io(error)),
        }
    }

    /// Returns whether the server has asked for a certificate of the client. With TLS 1.3, it verifies it only after the
    /// handshake is complete for the client.
    pub(crate) fn has_certificate_request(&self) -> bool {
        self.requests.as_ref().is_some_and(|requests| requests.has_any())
    }

    /// Explains an error of rustls; returns one of the socket unchanged.
    fn explain_io(&self, error: io::Error) -> io::Error {
        match error.get_ref().and_then(|error| error.downcast_ref()) {
            Some(reason) => self.explain(reason).into_io(),
            None => error,
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
        outcome.map_err(|error| self.session.explain_io(error))
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

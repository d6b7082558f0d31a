//! The options of the client commands for TLS.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use crate::tls::{Certificate, ClientSession, ClientTls, TlsError, read_pem};

/// The server certificates that a client command accepts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trust {
    /// Certificates signed by an authority that the system trusts.
    #[default]
    System,
    /// Certificates signed by one of the authorities in this PEM file, and the certificates in it themselves.
    File(PathBuf),
    /// All certificates, but no RSA key of fewer than 2,048 bits. The connection is then not protected against an attacker
    /// between client and server.
    Any,
}

/// TLS of a client command: the servers that it trusts, and the certificate that it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsOptions {
    /// The accepted certificates of servers.
    pub trust: Trust,
    /// The certificate chain of the client and its private key (PEM files), for servers that ask for one.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

impl From<Trust> for TlsOptions {
    /// Creates the options of a client without a certificate.
    fn from(trust: Trust) -> Self {
        TlsOptions { trust, certificate: None }
    }
}

impl TlsOptions {
    /// Reads the files.
    fn load(&self) -> Result<ClientTls, TlsError> {
        let tls = match &self.trust {
            Trust::System => {
                ClientTls::system_roots().map_err(|error| TlsError::new(format!("{error}; use --ca FILE")))?
            }
            Trust::File(path) => ClientTls::with_roots(&read_pem(path)?)
                .map_err(|error| TlsError::new(format!("{}: {error}", path.display())))?,
            Trust::Any => ClientTls::insecure(),
        };
        let Some((chain, key)) = &self.certificate else { return Ok(tls) };
        Ok(tls.certificate(&Certificate::from_pem_files(chain, key)?))
    }

    /// Completes a handshake with the server `host`, a name or an IP address.
    pub(super) fn open(
        &self,
        socket: &mut (impl Read + Write),
        host: &str,
        protocols: &[&str],
    ) -> io::Result<ClientSession> {
        let tls = self.load().map_err(TlsError::into_io)?;
        ClientSession::open(socket, host, &tls, protocols)
    }
}

//! The error of certificates and of their configuration.

use std::fmt;

/// An error in a certificate, a private key or the configuration of TLS, as a sentence for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError(String);

impl TlsError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        TlsError(message.into())
    }

    /// Returns an error of the kind `InvalidData`, for a caller with other errors of I/O.
    #[cfg(feature = "cli")]
    pub(crate) fn into_io(self) -> std::io::Error {
        std::io::Error::new(std::io::ErrorKind::InvalidData, self)
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for TlsError {}

//! TLS without I/O: certificates, the configuration of a server, and sessions.
//!
//! Only this module names types of rustls, which implements the protocol, and of rcgen, which creates certificates. The
//! loop passes bytes in and out.

mod certificate;
mod config;
mod der;
mod session;

use std::fmt;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use certificate::Certificate;
pub use config::{Tls, TlsVersion};
pub(crate) use session::Session;

/// An error in a certificate, a private key or the configuration of TLS, as a sentence for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError(String);

impl TlsError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        TlsError(message.into())
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for TlsError {}

/// The cryptography of all sessions.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

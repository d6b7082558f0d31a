//! TLS without I/O: certificates, the configuration of a server, and sessions.
//!
//! Only this module names types of rustls, which implements the protocol, and of rcgen, which creates certificates. The
//! loop passes bytes in and out.

mod certificate;
mod config;
mod der;
mod error;
mod session;

pub use certificate::Certificate;
pub use config::{Tls, TlsVersion};
pub use error::TlsError;
pub(crate) use session::Session;

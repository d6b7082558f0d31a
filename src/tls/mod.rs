//! TLS: certificates, the configuration of a server, sessions without I/O, and the client of `serverd check`.
//!
//! Only this module names types of rustls, which implements the protocol, and of rcgen, which creates certificates. The
//! loop passes bytes in and out.

mod certificate;
#[cfg(feature = "cli")]
mod client;
mod config;
mod der;
mod error;
mod session;

pub use certificate::Certificate;
#[cfg(feature = "cli")]
pub(crate) use certificate::Expiry;
pub(crate) use certificate::file_hash;
#[cfg(feature = "cli")]
pub use client::Trust;
#[cfg(feature = "cli")]
pub(crate) use client::{ClientSession, ClientStream};
pub use config::{Tls, TlsVersion};
pub use error::TlsError;
pub(crate) use session::Session;
pub use session::TlsInfo;

//! TLS: certificates, the configuration of a server, sessions without I/O, and the client of `serverd check`.
//!
//! Only this module names types of rustls, which implements the protocol, and of rcgen, which creates certificates. The
//! loop passes bytes in and out.

#[cfg(feature = "cli")]
mod authority;
mod certificate;
#[cfg(feature = "cli")]
mod client;
mod client_auth;
mod config;
mod der;
mod distinguished_name;
mod error;
mod machine;
mod session;

#[cfg(feature = "cli")]
pub(crate) use authority::{AUTHORITY_CERTIFICATE, AUTHORITY_KEY, Authority, authority_directory};
pub use certificate::Certificate;
#[cfg(feature = "cli")]
pub(crate) use certificate::Expiry;
pub(crate) use certificate::{file_hash, read as read_pem};
#[cfg(feature = "cli")]
pub(crate) use client::{ClientSession, ClientStream};
#[cfg(feature = "cli")]
pub use client::{ClientTls, Trust};
pub use client_auth::{ClientAuth, ClientCertificate};
pub use config::{Tls, TlsVersion};
pub use error::TlsError;
pub(crate) use machine::{interface_addresses, machine_name};
pub(crate) use session::Session;
pub use session::TlsInfo;

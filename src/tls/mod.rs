//! TLS: certificates, configurations of servers and clients, sessions without I/O, and streams for the client commands.
//!
//! Only this module names types of rustls, which implements the protocol, and of rcgen, which creates certificates. The
//! loop passes bytes in and out.

#[cfg(feature = "cli")]
mod authority;
mod certificate;
mod client_auth;
mod client_config;
mod client_session;
#[cfg(feature = "cli")]
mod client_stream;
mod config;
mod failure;
mod loaded_keys;
mod machine;
mod session;
mod trust;
mod verifier;
mod x509;

#[cfg(feature = "cli")]
pub(crate) use authority::{AUTHORITY_CERTIFICATE, AUTHORITY_KEY, Authority, Issued, authority_directory};
#[cfg(feature = "cli")]
pub(crate) use certificate::Expiry;
pub use certificate::{Certificate, TlsError};
pub(crate) use certificate::{file_hash, is_rereadable, read as read_pem};
pub use client_auth::{ClientAuth, ClientCertificate};
pub use client_config::ClientTls;
pub(crate) use client_session::{ClientSession, closed_in_handshake};
#[cfg(feature = "cli")]
pub(crate) use client_stream::ClientStream;
pub use config::{Tls, TlsVersion};
#[cfg(feature = "files")]
pub(crate) use loaded_keys::{is_loaded_key, may_be_loaded_key};
pub(crate) use machine::{interface_addresses, machine_name};
pub(crate) use session::Session;
pub use session::TlsInfo;

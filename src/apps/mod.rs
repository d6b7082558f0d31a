//! The applications of the `serverd` binary, built on the library's public API.

#[cfg(feature = "cli")]
mod acme;
mod basic;
#[cfg(feature = "chat")]
pub mod chat;
#[cfg(feature = "files")]
pub mod files;
#[cfg(feature = "cli")]
mod whoami;

#[cfg(feature = "cli")]
pub(crate) use acme::{AcmeChallenges, OPEN_FILES_MAX as ACME_OPEN_FILES_MAX};
pub use basic::{Echo, Fixed};
#[cfg(feature = "chat")]
pub use chat::Chat;
#[cfg(feature = "files")]
pub use files::Files;
#[cfg(feature = "cli")]
pub use whoami::Whoami;
#[cfg(feature = "cli")]
pub(crate) use whoami::hostname;

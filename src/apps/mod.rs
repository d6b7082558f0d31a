//! The applications of the `serverd` binary, built on the library's public API.

mod basic;
#[cfg(feature = "chat")]
pub mod chat;
#[cfg(feature = "files")]
pub mod files;
#[cfg(feature = "cli")]
mod whoami;

pub use basic::{Echo, Fixed};
#[cfg(feature = "chat")]
pub use chat::Chat;
#[cfg(feature = "files")]
pub use files::Files;
#[cfg(feature = "cli")]
pub use whoami::Whoami;

//! The applications of the `serverd` binary, built on the library's public API.

#[cfg(feature = "chat")]
pub mod chat;
mod echo;
#[cfg(feature = "files")]
pub mod files;
mod fixed;
#[cfg(feature = "cli")]
mod whoami;

#[cfg(feature = "chat")]
pub use chat::Chat;
pub use echo::Echo;
#[cfg(feature = "files")]
pub use files::Files;
pub use fixed::Fixed;
#[cfg(feature = "cli")]
pub use whoami::Whoami;

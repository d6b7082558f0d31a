//! The applications of the binary, each on the library's own interface.

pub mod chat;
mod echo;
mod fixed;
mod methods;
mod whoami;

pub use chat::Chat;
pub use echo::Echo;
pub use fixed::Fixed;
pub use whoami::Whoami;

//! The applications of the binary, each on the library's own interface.

mod echo;
mod fixed;

pub use echo::Echo;
pub use fixed::Fixed;

//! The applications of the binary, each on the library's own interface.

mod fixed;

pub use fixed::Fixed;

//! The client commands of the `serverd` binary, built on [`dial`] and [`http1`](crate::http1).

pub mod check;
pub mod connect;
pub mod console;
pub mod dial;
pub mod hash;

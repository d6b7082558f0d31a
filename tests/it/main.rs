//! The integration tests: one binary, a module per promise, every promise on every backend and under chaos.

mod bodies;
mod errors;
mod harness;
mod keepalive;
mod process;

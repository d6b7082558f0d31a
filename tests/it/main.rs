//! The integration tests: one binary, a module per promise, every promise on every backend and under chaos.

mod bodies;
mod conformance;
mod drain;
mod errors;
mod handlers;
mod harness;
mod keepalive;
mod limits;
mod process;
mod tcp;
mod timeouts;

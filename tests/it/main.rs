//! The integration tests: one binary, a module per promise, every promise on every backend and under chaos.

mod access_log;
#[cfg(feature = "files")]
mod basic;
mod bodies;
mod chat;
mod clients;
#[cfg(feature = "files")]
mod compress;
mod conformance;
#[cfg(windows)]
mod console;
mod drain;
mod drain_load;
mod echo;
mod errors;
mod examples;
#[cfg(unix)]
mod faults;
#[cfg(unix)]
mod faulty;
mod feed;
mod file_bodies;
#[cfg(feature = "files")]
mod files;
mod handlers;
mod handover;
mod harness;
mod keepalive;
mod later;
mod limits;
mod manners;
mod panics;
mod process;
mod properties;
mod readiness;
mod responses;
mod routes;
mod schedule;
#[cfg(unix)]
mod sim;
mod streams;
mod tcp;
mod timeouts;
mod undecided;
mod uploads;
mod whoami;

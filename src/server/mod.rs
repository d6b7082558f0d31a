//! Runs an application on worker threads, in the foreground with signal handling or in the background, with graceful
//! shutdown.
//!
//! Each worker is a thread with its own event loop and its own application instance; nothing is shared on the hot path.
//! Connections are distributed over the workers by the kernel, with one listener per worker (`SO_REUSEPORT`, on Linux),
//! or by an acceptor thread that hands each connection to the worker with the fewest connections.

mod admin;
mod admin_metrics;
mod admin_status;
#[cfg(feature = "cli")]
mod commands;
mod config;
#[cfg(feature = "tls")]
mod file_watch;
#[cfg(feature = "cli")]
mod logging;
#[cfg(feature = "cli")]
mod private_keys;
mod server_handle;
mod signals;
mod start_error;
mod threads;
#[cfg(feature = "tls")]
mod tls;
#[cfg(windows)]
mod windows;
mod worker_loop;
mod workers;

#[cfg(feature = "cli")]
pub use crate::httpserver::SyslogAddress;
pub use crate::httpserver::{Metrics, WorkerMetrics};
#[cfg(feature = "cli")]
pub use commands::{ChatConfig, Command, FilesConfig, Password, run};
pub use config::{AdminAddress, Backend, Balance, Config, HttpOptions, OnReload, ReadyCheck, Started};
#[cfg(feature = "cli")]
pub use logging::{LogTarget, Logging, ProcessLog};
pub use server_handle::ServerHandle;
pub use start_error::{StartError, StartErrorKind};
#[cfg(feature = "tls")]
pub use tls::TlsConfig;
pub use worker_loop::BoundListener;
pub use workers::serve;

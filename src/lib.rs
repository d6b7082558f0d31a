//! HTTP and TCP servers on a readiness loop, with no async runtime.
//!
//! ```text
//! main -> cli -> server          flags -> config -> listeners, workers, loops, apps
//!          |      |              client: check and connect, built on http1
//!         apps    |    httpserver      handler -> status line, headers, body
//!            \    |     /      \
//!             v   v    v        v
//!           loop (Poller, App, Wire)   http1      pure protocol: bytes <-> events
//!             EventLoop<Backend, App>             sockets, readiness, clock, buffers
//!            Select   Epoll   Kqueue             the operating system
//! ```
//!
//! An HTTP server needs a listener, an optional upper bound for all timeouts, and a handler:
//!
//! ```no_run
//! use serverd::{HttpServer, Poller, SelectLoop};
//!
//! let listener = std::net::TcpListener::bind("127.0.0.1:8888")?;
//! SelectLoop::new(listener, None, HttpServer::new(|_| "hello\n"))?.run()?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! The handler is a closure, a [`Router`] or any other [`Handler`], optionally wrapped in [`layers`] (middleware). It
//! returns a [`Response`], which may be complete ([`Response::text`], [`Response::json`]), streamed
//! ([`Response::stream`], [`Response::reader`], [`Response::channel`], [`Response::events`]), or deferred to another
//! thread ([`Response::later`], [`Pool::offload`]). The handler chooses how to receive a request body after seeing the
//! request head ([`BodyMode`]).
//!
//! [`server::Config::serve`] runs a worker per core with signal handling and resource limits. See [`Handle`] for
//! controlling a loop from other threads.
//!
//! A TCP server is a closure that reads and writes bytes:
//!
//! ```no_run
//! use serverd::{Flow, Phase, Poller, SelectLoop, Wire};
//!
//! let listener = std::net::TcpListener::bind("127.0.0.1:7777")?;
//! let mut echo = SelectLoop::new(listener, None, |wire: &mut Wire<_>| {
//!     let input = wire.input();
//!     wire.output().extend(input);
//!     wire.consume(input.len());
//!     Flow::Read(Phase::Unlimited)
//! })?;
//! echo.run()?;
//! # Ok::<(), std::io::Error>(())
//! ```

pub mod apps;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod client;
pub mod http1;
pub mod httpserver;
pub mod r#loop;
pub mod server;

#[cfg(feature = "files")]
pub use apps::Files;
pub use http::StatusCode;
#[cfg(feature = "http-types")]
pub use httpserver::http_types;
pub use httpserver::{
    AcceptedCodings, AccessLog, BodyError, BodyFlow, BodyMode, BodyReader, BodySink, BufferLimit, ContentCoding,
    EventSender, Handler, HeaderBlock, HeaderError, HttpServer, LogFormat, ParamError, Part, Pool, PoolFull, Request,
    RequestHead, Responder, Response, Router, SendError, Sender, ServerEvent, Trailers, layers,
};
#[cfg(target_os = "linux")]
pub use r#loop::EpollLoop;
#[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
pub use r#loop::KqueueLoop;
pub use r#loop::{
    Accepted, App, CloseInfo, CloseReason, ConnId, EventLoop, Flow, Handle, Output, Phase, Poller, Remote, SelectLoop,
    Timeouts, Timer, Turn, Wire,
};

/// Compiles the examples in the README as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

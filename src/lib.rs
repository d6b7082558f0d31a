//! HTTP and TCP servers on a readiness loop, with no async runtime.
//!
//! ```text
//! main -> cli -> server          flags -> config -> listeners, workers, loops, apps
//!          |      |              check and connect are clients, on dial and http1
//!         apps    |    httpserver      callback -> status line, fields, body
//!            \    |     /      \
//!             v   v    v        v
//!           loop (Poller, App, Wire)   http1      pure protocol: bytes <-> events
//!             EventLoop<Backend, App>             sockets, readiness, clock, buffers
//!            Select   Epoll   Kqueue             the operating system
//! ```
//!
//! An HTTP server is a listener, a timeout and a callback:
//!
//! ```no_run
//! use serverd::{HttpServer, Poller, SelectLoop};
//!
//! let listener = std::net::TcpListener::bind("127.0.0.1:8888")?;
//! SelectLoop::new(listener, None, HttpServer::new(|_| "hello\n"))?.run()?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! The callback is a closure, a [`Router`], or any [`Handler`], inside any [`layers`]. It returns a [`Response`]: one
//! that is there ([`Response::text`], [`Response::json`]), one that is made while it is sent ([`Response::stream`],
//! [`Response::reader`], [`Response::channel`], [`Response::events`]), or one that any thread gives later
//! ([`Response::later`], [`Pool::offload`]). What becomes of a request's body is decided on its head ([`Intake`]).
//!
//! A program that wants a worker for each core, signals and bounds has them from [`server::Config::serve`]. What a
//! loop can do for other threads is told by [`Handle`].
//!
//! A TCP server is a closure over bytes:
//!
//! ```no_run
//! use serverd::{Flow, Phase, Poller, SelectLoop, Wire};
//!
//! let listener = std::net::TcpListener::bind("127.0.0.1:7777")?;
//! let mut echo = SelectLoop::new(listener, None, |wire: &mut Wire<_>| {
//!     let input = wire.input();
//!     wire.output().extend(input);
//!     wire.consume(input.len());
//!     Flow::Read(Phase::Open)
//! })?;
//! echo.run()?;
//! # Ok::<(), std::io::Error>(())
//! ```

pub mod apps;
pub mod check;
pub mod cli;
pub mod connect;
pub mod console;
pub mod dial;
#[cfg(feature = "files")]
pub mod hash;
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
    AcceptedCodings, AccessLog, BodyError, BodyReader, ContentCoding, EventSender, FieldBlock, FieldError, Handler,
    HttpServer, Intake, LogFormat, ParameterError, Part, Pool, PoolFull, Request, RequestHead, Responder, Response,
    Router, SendError, Sender, ServerEvent, Take, Trailers, Upload, layers,
};
#[cfg(target_os = "linux")]
pub use r#loop::EpollLoop;
#[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
pub use r#loop::KqueueLoop;
pub use r#loop::{
    Accepted, App, Closed, ConnId, Ending, EventLoop, Flow, Handle, Output, Phase, Poller, Remote, SelectLoop,
    Timeouts, Timer, Turn, Wire,
};

/// The examples of the README are compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

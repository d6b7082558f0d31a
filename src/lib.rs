//! HTTP and TCP servers on a readiness loop, with no async runtime.
//!
//! ```text
//! main -> cli -> server          flags -> config -> listeners, workers, loops, apps
//!          |      |              client: check and connect, built on http1
//!         apps    |  httpclient, above httpserver: requests to other servers
//!          |      |    httpserver      handler -> status line, headers, body
//!            \    |     /      \
//!             v   v    v        v
//!           loop (Poller, App, Wire)   http1      pure protocol: bytes <-> events
//!             EventLoop<Backend, App>             sockets, readiness, clock, buffers
//!            Select   Epoll   Kqueue             the operating system
//! ```
//!
//! `docs/ARCHITECTURE.md` in the source code follows a request through these layers, file by file.
//!
//! An HTTP server needs an address and a closure:
//!
//! ```no_run
//! fn main() -> Result<(), serverd::StartError> {
//!     serverd::serve("127.0.0.1:8888", |request| format!("hello, you asked for {}\n", request.path()))
//! }
//! ```
//!
//! The handler is a closure, a [`Router`] or any other [`Handler`], optionally wrapped in [`layers`] (middleware). It
//! returns a [`Response`], which may be complete ([`Response::text`], `Response::json`), streamed
//! ([`Response::stream`], [`Response::reader`], [`Response::channel`], [`Response::events`]), or deferred to another
//! thread ([`Response::later`], [`Pool::offload`]). The handler chooses how to receive a request body after seeing the
//! request head ([`BodyMode`]).
//!
//! [`Config::serve`] runs worker threads with signal handling and resource limits. [`Config::start`] runs them in the
//! background of another program, without signal handling, and returns a [`ServerHandle`]. See [`Handle`] for
//! controlling a loop from other threads. A loop can also be run by itself:
//!
//! ```no_run
//! use serverd::{DefaultLoop, HttpServer};
//!
//! let listener = std::net::TcpListener::bind("127.0.0.1:8888")?;
//! DefaultLoop::new(listener, None, HttpServer::new(|_| "hello\n"))?.run()?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! A TCP server is a closure that reads and writes bytes:
//!
//! ```no_run
//! use serverd::{Flow, Phase, SelectLoop, Wire};
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
//!
//! # Overview
//!
//! | item | purpose |
//! |:--|:--|
//! | [`SelectLoop`], `EpollLoop`, `KqueueLoop`, [`DefaultLoop`] | event loops: [`EventLoop`] over a backend |
//! | [`Handle`], [`Timer`] | control a loop from any thread |
//! | [`Timeouts`], [`LoopLimits`], [`Limits`] | bounds for connections, loops and HTTP requests |
//! | [`App`], [`Wire`], [`Flow`], [`Phase`] | applications over bytes |
//! | [`HttpServer`], [`Handler`], [`Router`], [`layers`] | applications over HTTP requests |
//! | [`Request`], [`BodyMode`], [`Response`] | a request, the way to receive its body, and the response |
//! | [`Responder`], [`Sender`], [`EventSender`], [`BodyReader`], [`Pool`] | responses and bodies from other threads |
//! | [`Session`] | connections after HTTP: upgrades and tunnels |
//! | [`PerListener`] | several applications on one loop, each with its own listeners |
//! | [`SystemListener`], [`SystemStream`], [`Peer`], `UnixSocket` | TCP and Unix sockets |
//! | [`AccessLog`] | the log of all requests |
//! | [`Client`], [`ClientRequest`] | requests to other servers, from handlers and timers |
//! | [`Target`], [`Handle::connect`] | outgoing connections of a running loop |
//! | [`serve`], [`Config`], [`ServerHandle`] | servers with workers: in the foreground with signals, in the background without |
//! | [`StartError`] | errors at the start |
//! | [`Echo`], `Chat`, [`Fixed`], `Files` | the applications of the `serverd` binary |
//! | `Tls`, `WithTls` | TLS on the listeners of a loop |
//! | [`Networks`], [`WithProxy`] | trusted proxies, and the PROXY protocol on the listeners of a loop |
//! | [`multipart`] | forms with files |
//! | [`http1`] | HTTP/1.1 without I/O, for other clients and servers |
//! | [`readiness`] | the contract of backends, for new ones |
//!
//! The Cargo feature `cli` (default) builds the binary. Without default features, `chat`, `files`, `compress`,
//! `basic-auth`, `json`, `tls`, `system-roots` and `http-types` can be chosen one by one; `testing` adds `Chaos`, a
//! fault-injecting backend for tests.

/// Defines a setter for each field of a struct, which makes a value from its default in one expression.
macro_rules! setters {
    ($($field:ident: $type:ty,)*) => {
        $(
            #[doc = concat!("Sets [`", stringify!($field), "`](field@Self::", stringify!($field), ").")]
            #[must_use]
            pub fn $field(mut self, $field: $type) -> Self {
                self.$field = $field;
                self
            }
        )*
    };
}

/// Defines a setter for each optional field of a struct, which accepts a value, `Some` or `None`.
macro_rules! optional_setters {
    ($($field:ident: $type:ty,)*) => {
        $(
            #[doc = concat!("Sets [`", stringify!($field), "`](field@Self::", stringify!($field), "), or removes it.")]
            #[must_use]
            pub fn $field(mut self, $field: impl Into<Option<$type>>) -> Self {
                self.$field = $field.into();
                self
            }
        )*
    };
}

pub mod apps;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod client;
pub mod http1;
pub mod httpclient;
pub mod httpserver;
pub mod r#loop;
pub mod multipart;
pub mod server;
#[cfg(feature = "tls")]
pub mod tls;

pub use {bytes, http};

#[cfg(feature = "chat")]
#[doc(inline)]
pub use self::apps::{
    Chat,
    chat::{Bounds as ChatBounds, Budget as ChatBudget, Options as ChatOptions, RoomLog},
};
#[doc(inline)]
pub use self::apps::{Echo, Fixed};
#[cfg(feature = "files")]
#[doc(inline)]
pub use self::apps::{
    Files,
    files::{CacheControl, Options as FilesOptions},
};
#[doc(inline)]
pub use self::http1::Limits;
#[doc(inline)]
pub use self::httpclient::{Client, ClientError, ClientLimits, ClientRequest, ClientResponse, Upstream};
#[cfg(feature = "http-types")]
#[doc(inline)]
pub use self::httpserver::http_types;
#[doc(inline)]
pub use self::httpserver::{
    AcceptedCodings, AccessLog, BodyError, BodyFlow, BodyMode, BodyReader, BodySink, BodyWait, BufferLimit,
    ClientIpHeader, Closure, ContentCoding, EventSender, Handler, HeaderBlock, HeaderError, HttpConnection, HttpServer,
    LogFormat, LogFormatError, ParamError, Part, Pool, PoolFull, Request, RequestHead, Responder, Response, Resume,
    Router, SendError, Sender, ServerEvent, Session, SessionWaker, Trailers, Wakeup, layers,
};
#[cfg(feature = "testing")]
#[doc(inline)]
pub use self::r#loop::Chaos;
#[cfg(unix)]
#[doc(inline)]
pub use self::r#loop::UnixSocket;
#[doc(inline)]
pub use self::r#loop::{
    Accepted, Acceptor, AcceptorHandle, Addrs, App, CloseInfo, CloseReason, ConnId, ConnectionLimit, Counters,
    DefaultLoop, Either, EventLoop, Flow, Handle, HandoffListener, LoopLimits, Networks, NetworksError, Output, Peer,
    PerListener, Phase, Poller, Proxied, ProxyListener, ProxyMode, ProxyProtocol, ProxyStream, Readiness, Remote,
    Select, SelectLoop, SystemListener, SystemSocket, SystemStream, Target, TargetError, Timeouts, Timer, Turn, Wire,
    WithProxy, readiness,
};
#[cfg(target_os = "linux")]
#[doc(inline)]
pub use self::r#loop::{Epoll, EpollLoop};
#[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
#[doc(inline)]
pub use self::r#loop::{Kqueue, KqueueLoop};
#[cfg(feature = "tls")]
#[doc(inline)]
pub use self::r#loop::{TlsListener, TlsStream, WithTls};
#[doc(inline)]
pub use self::server::{
    AdminAddress, Backend, Balance, BoundListener, Config, HttpOptions, OnReload, ReadyCheck, ServerHandle, StartError,
    StartErrorKind, Started, serve,
};
#[cfg(feature = "tls")]
#[doc(inline)]
pub use self::tls::{Certificate, Tls, TlsError, TlsVersion};
pub use http::StatusCode;

/// Compiles the examples in the README as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

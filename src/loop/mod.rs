//! The event loop: one thread, one loop, many connections.
//!
//! ```text
//!        App (bytes in, bytes out)             echo, chat, HttpServer, your closure
//!            ^             |
//!            | Wire        | Flow
//!        EventLoop<B, A>                       sockets, clock, buffers, limits; written once
//!            ^             |
//!            | Event       | add, set_interest, remove, wait
//!       Select   Epoll   Kqueue                the operating system
//! ```
//!
//! The loop types are [`SelectLoop`] (every platform), `EpollLoop` (Linux) and `KqueueLoop` (macOS and the BSDs). All
//! implement [`Poller`], and each is an [`EventLoop`] over a backend that implements [`Readiness`]; see [`readiness`]
//! for the contract. An application implements [`App`] or is a closure over [`Wire`].

mod acceptor;
mod app;
#[cfg(feature = "testing")]
mod chaos;
mod connect;
mod connection;
mod connection_limit;
mod error_numbers;
mod event_loop;
mod file_range;
mod handoff;
mod limits;
mod listener;
pub(crate) mod metrics;
#[cfg(unix)]
mod mio_poll;
mod outgoing;
mod output;
mod peer;
mod per_listener;
mod poller;
mod proxy_header;
mod proxy_stream;
pub mod readiness;
mod schedule;
mod select;
// The system call, for the backend and for sockets.
#[cfg(unix)]
#[path = "select/unix.rs"]
mod select_call;
#[cfg(windows)]
#[path = "select/windows.rs"]
mod select_call;
mod socket;
mod socket_waker;
mod std_ext;
mod system;
mod table;
mod timers;
#[cfg(feature = "tls")]
mod tls_stream;
#[cfg(unix)]
mod unix_socket;
mod work_queue;

#[cfg(target_os = "linux")]
mod epoll;
#[cfg(target_os = "linux")]
pub use epoll::Epoll;
/// A loop over Linux epoll.
#[cfg(target_os = "linux")]
pub type EpollLoop<A> = EventLoop<Epoll, A>;

// Unix other than Linux means macOS and the BSDs here; elsewhere mio does not use kqueue. The cfg flag compiles the
// module on Linux, with epoll in place of kqueue; see docs/PLATFORMS.md.
#[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
mod kqueue;
#[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
pub use kqueue::Kqueue;
/// A loop over kqueue.
#[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
pub type KqueueLoop<A> = EventLoop<Kqueue, A>;

/// A loop over `select()`, available on every platform.
pub type SelectLoop<A> = EventLoop<Select, A>;

/// The loop of [`Backend::Auto`](crate::Backend::Auto): over epoll on Linux, over `select()` elsewhere.
#[cfg(target_os = "linux")]
pub type DefaultLoop<A> = EpollLoop<A>;
/// The loop of [`Backend::Auto`](crate::Backend::Auto): over epoll on Linux, over `select()` elsewhere.
#[cfg(not(target_os = "linux"))]
pub type DefaultLoop<A> = SelectLoop<A>;

pub use acceptor::{Acceptor, AcceptorHandle};
pub use app::{Accepted, Addrs, App, CloseInfo, CloseReason, Flow, Phase, Remote, Wire};
#[cfg(feature = "testing")]
pub use chaos::{Chaos, ChaosListener, ChaosStream};
pub use connection_limit::ConnectionLimit;
#[cfg(any(feature = "basic-auth", feature = "chat", feature = "files"))]
pub(crate) use connection_limit::network;
pub use event_loop::EventLoop;
pub(crate) use file_range::FileTruncated;
pub use handoff::HandoffListener;
pub use limits::{Counters, LoopLimits, Timeouts};
pub use outgoing::{Target, TargetError};
pub use output::Output;
pub use peer::{Networks, NetworksError, Peer};
pub use per_listener::{Either, PerListener};
pub use poller::{Handle, Poller, Turn};
pub use proxy_header::Proxied;
pub(crate) use proxy_header::is_proxy_header;
pub use proxy_stream::{ProxyListener, ProxyMode, ProxyProtocol, ProxyStream, WithProxy};
pub use readiness::Readiness;
pub use schedule::Timer;
pub use select::Select;
pub use socket::{SystemListener, SystemSocket, SystemStream};
#[cfg(any(feature = "compress", feature = "files"))]
pub(crate) use std_ext::read_at;
pub(crate) use std_ext::{lock, panic_text};
pub use table::ConnId;
#[cfg(feature = "tls")]
pub use tls_stream::{TlsListener, TlsStream, WithTls};
#[cfg(unix)]
pub use unix_socket::UnixSocket;

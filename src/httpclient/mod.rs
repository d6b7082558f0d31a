//! An HTTP/1.1 client on the event loop of a server, for handlers and scheduled closures.
//!
//! ```text
//! Client ---- ClientRequest --> pool: an idle connection of the loop, a new one, or a place in the queue
//!                                 |
//!   callback or Response <--- UpstreamSession, of one connection: request head and content out, response in
//! ```
//!
//! A connection to an upstream is a [`Session`](crate::Session) of the loop's [`HttpServer`](crate::HttpServer), so that
//! requests cost other connections nothing. TLS, for upstreams with https, is a session around that session. The pool
//! belongs to the [`Client`], and is shared by all loops that use it; a request prefers connections of its own loop.

mod client;
mod error;
mod headers;
mod job;
mod pool;
mod request;
#[cfg(feature = "tls")]
mod secure;
mod upstream;
mod url;

pub use client::Client;
pub use error::ClientError;
pub use job::ClientResponse;
pub use pool::ClientLimits;
pub use request::ClientRequest;
pub use url::Upstream;

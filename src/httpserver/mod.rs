//! The HTTP server: parses requests, calls a handler, and writes the status line, headers and body of its response.
//!
//! [`HttpServer`] is an [`App`](crate::App) and runs on any loop. Each connection has an [`HttpConnection`], which
//! allocates memory only if an exchange (a request and its response) cannot be completed in one call to
//! [`App::receive`](crate::App::receive): for a request body that is collected, streamed, or read on another thread; a
//! deferred response; a streamed response body. Requests pipelined behind such an exchange stay unparsed until it ends,
//! so responses are sent in request order.
//!
//! | file | idea |
//! |---|---|
//! | `server` | the server, its options, and the hosts for which it answers |
//! | `http_connection` | the server as an `App`: the state of a connection, batches of requests, timeouts, shutdown |
//! | `serve_head`, `exchange` | the steps of an exchange: the handler's call; the request body and the response |
//! | `session`, `upgrade` | connections after HTTP: upgrades and tunnels |
//! | `handler`, `request`, `response` | the types of a handler's interface |
//! | `body_stream`, `body_sender`, `body_reader` | streamed bodies, in both directions |
//! | `buffer_limit` | the memory of collected bodies, of all connections together |
//! | `deferred`, `pool`, `exchange_handle` | other threads: their responses, work for them, how they wake the loop |
//! | `router`, `negotiation`, `headers` | what handlers are built with |
//! | `layers` | middleware |
//! | `real_client` | the client of a request that comes through trusted proxies |
//! | `recorder`, `metrics`, `request_id` | what is recorded of requests, counters of them, and their ids |
//! | `access_log`, `log_format`, `log_sink`, `syslog` | one line per request, its format, the thread that writes it, and syslog |

mod access_log;
mod body_reader;
mod body_sender;
mod body_stream;
mod buffer_limit;
mod deferred;
mod exchange;
mod exchange_handle;
mod handler;
mod headers;
mod http_connection;
pub mod layers;
mod log_format;
mod log_sink;
pub(crate) mod metrics;
mod negotiation;
mod offer;
mod pool;
mod real_client;
mod recorder;
mod request;
mod request_id;
mod response;
mod router;
mod serve_head;
mod server;
mod session;
#[cfg(feature = "cli")]
mod syslog;
mod upgrade;

pub use access_log::AccessLog;
pub use body_reader::BodyReader;
pub use body_sender::{EventSender, SendError, Sender, ServerEvent};
pub use buffer_limit::BufferLimit;
pub use deferred::{BodyWait, Responder, Resume};
pub use exchange_handle::Wakeup;
#[cfg(feature = "http-types")]
pub use handler::http_types;
pub use handler::{BodyFlow, BodyMode, BodySink, Closure, Handler};
pub use headers::{HeaderBlock, HeaderError, Trailers};
pub use http_connection::HttpConnection;
pub use log_format::{LogFormat, LogFormatError};
#[cfg(feature = "cli")]
pub(crate) use log_sink::{Sink, Target};
pub use metrics::{Metrics, WorkerMetrics};
pub use negotiation::{AcceptedCodings, ContentCoding};
#[cfg(feature = "files")]
pub(crate) use pool::QueuedResponder;
pub use pool::{Pool, PoolFull};
pub use real_client::ClientIpHeader;
#[cfg(feature = "files")]
pub(crate) use request::DetachedHead;
pub use request::{BodyError, ParamError, Request, RequestHead};
pub use response::{Part, Response};
pub use router::Router;
#[cfg(feature = "files")]
pub(crate) use router::push_byte;
pub use server::HttpServer;
pub(crate) use server::{Hosts, is_local_or_address};
pub use session::{Session, SessionWaker};
#[cfg(feature = "cli")]
pub(crate) use syslog::Syslog;
#[cfg(feature = "cli")]
pub use syslog::SyslogAddress;

//! The client.

use std::sync::Arc;

use super::forward::forward;
use super::limits::ClientLimits;
use super::pool::Pool;
use super::request::ClientRequest;
use super::url::Upstream;
use crate::httpserver::RequestHead;
#[cfg(feature = "tls")]
use crate::tls::ClientTls;

/// An HTTP/1.1 client for the handlers of an [`HttpServer`](crate::HttpServer), and for closures that its loop calls. Clones
/// share connections and limits.
///
/// Connections are kept open and reused. A request that fails on a reused connection before any byte of the response has
/// arrived is repeated once on a new connection, if its method is idempotent and its content is in memory (RFC 9110 section
/// 9.2.2): the upstream may have closed the connection at that moment.
///
/// # Examples
/// A page that is fetched from another server, and passed on as it arrives:
/// ```
/// use serverd::{Client, HttpServer};
///
/// let client = Client::new();
/// let server = HttpServer::new(move |_| client.get("http://127.0.0.1:9000/page").respond());
/// # drop(server);
/// ```
/// A check every ten seconds:
/// ```
/// use serverd::{Client, HttpServer, SelectLoop};
/// use std::{net::TcpListener, time::Duration};
///
/// let server = SelectLoop::new(TcpListener::bind("127.0.0.1:0")?, None, HttpServer::new(|_| "hello\n"))?;
/// let client = Client::new();
/// server.handle().call_every(Duration::from_secs(10), move || {
///     client.get("http://127.0.0.1:9000/health").send(|result| match result {
///         Ok(response) => println!("{}: {} bytes", response.status, response.body.len()),
///         Err(error) => println!("{error}"),
///     });
/// });
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Client {
    pool: Arc<Pool>,
}

impl Default for Client {
    fn default() -> Self {
        Client::new()
    }
}

impl Client {
    /// Creates a client with default limits.
    pub fn new() -> Self {
        Client::with_limits(ClientLimits::default())
    }

    /// Creates a client.
    pub fn with_limits(limits: ClientLimits) -> Self {
        Client { pool: Arc::new(Pool::new(limits)) }
    }

    /// Sets TLS for URLs with the scheme https. Returns a client with connections of its own.
    ///
    /// The certificate of an upstream must be valid for the host in the URL. Sessions are resumed, and the handshake counts
    /// in the connect timeout.
    ///
    /// # Examples
    /// ```no_run
    /// use serverd::{Client, HttpServer, tls::ClientTls};
    ///
    /// let client = Client::new().tls(&ClientTls::system_roots()?);
    /// let server = HttpServer::new(move |_| client.get("https://example.org/").respond());
    /// # drop(server);
    /// # Ok::<(), serverd::TlsError>(())
    /// ```
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(&self, tls: &ClientTls) -> Self {
        Client { pool: Arc::new(Pool::with_tls(self.pool.limits.clone(), tls.protocols(&["http/1.1"]))) }
    }

    /// Creates a GET request. `url` is `http[s]://host[:port]/path?query`, and https needs `Client::tls`. Errors are
    /// reported when the request is sent.
    pub fn get(&self, url: &str) -> ClientRequest {
        self.request("GET", url)
    }

    /// Creates a request with any method except CONNECT.
    pub fn request(&self, method: &str, url: &str) -> ClientRequest {
        ClientRequest::new(&self.pool, method, url)
    }

    /// Creates a request that forwards one of a client of this server, as a proxy does: with its method, its target, its
    /// headers except those that concern only the connection (RFC 9110 section 7.6.1), and a Via header. Host is that of the
    /// client. Expect is not forwarded: this server sends 100 (Continue) itself.
    ///
    /// The content is not part of the head: add it with [`ClientRequest::body_reader`], which keeps its length.
    ///
    /// # Examples
    /// ```
    /// use serverd::{BodyMode, Client, Handler, HttpServer, Request, RequestHead, Response, Upstream};
    ///
    /// struct Proxy {
    ///     client: Client,
    ///     upstream: Upstream,
    /// }
    ///
    /// impl Handler for Proxy {
    ///     fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
    ///         let request = self.client.forward(head, &self.upstream);
    ///         BodyMode::read(u64::MAX, move |body, responder| request.body_reader(body).respond_to(responder))
    ///     }
    ///
    ///     fn call(&mut self, request: &Request<'_>) -> Response {
    ///         self.client.forward(request, &self.upstream).respond()
    ///     }
    /// }
    ///
    /// let server = HttpServer::with(Proxy { client: Client::new(), upstream: "http://127.0.0.1:9000".parse()? });
    /// # drop(server);
    /// # Ok::<(), serverd::ClientError>(())
    /// ```
    pub fn forward(&self, head: &RequestHead<'_>, upstream: &Upstream) -> ClientRequest {
        forward(&self.pool, head, upstream)
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Client").field("limits", &self.pool.limits).finish_non_exhaustive()
    }
}

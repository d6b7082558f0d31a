//! The server and its options. Those that are off by default (the Keep-Alive header, a limit on the requests of a
//! connection, a list of hosts, and the header for https) cost nothing on the fast path while all are off.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode};

use super::access_log::AccessLog;
use super::buffer_limit::BufferLimit;
use super::exchange_handle::Wakeup;
use super::handler::{Closure, Handler};
use super::metrics::WorkerMetrics;
use super::real_client::{ClientIpHeader, RealClient};
use super::recorder::Recorder;
use super::request::{Request, RequestHead};
use super::response::Response;
use crate::http1::{Encoder, Head, Limits};
use crate::r#loop::{Networks, Remote, Wire};

/// The name of the header that makes browsers use https.
const HSTS: &str = "Strict-Transport-Security";

/// An HTTP/1.1 server: an [`App`](crate::App) that calls a [`Handler`] for each request.
///
/// # Examples
/// ```no_run
/// use serverd::{HttpServer, SelectLoop};
/// use std::net::TcpListener;
///
/// let listener = TcpListener::bind("127.0.0.1:8888")?;
/// SelectLoop::new(listener, None, HttpServer::new(|_| "hello\n"))?.run()?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct HttpServer<H> {
    pub(super) handler: H,
    pub(super) limits: Limits,
    pub(super) encoder: Encoder,
    /// The last Content-Type that was found to be a valid header value; caches the check.
    pub(super) content_type: &'static str,
    /// The request head being parsed, shared by all connections.
    pub(super) scratch: Head,
    /// Position, in the input, of the request for which the handler is being called; empty outside of such a call.
    /// After a panic it identifies the request to answer with 500.
    pub(super) current_request: Range<usize>,
    /// Wakes connections of this loop from other threads.
    pub(super) remote: Option<Remote<Wakeup>>,
    /// Access log records and ids of in-flight requests; `None` without an access log and ids.
    pub(super) recorder: Option<Box<Recorder>>,
    /// Limits the memory of collected request bodies.
    pub(super) buffer_limit: BufferLimit,
    /// Options that are off in most servers; `None` if all are off.
    pub(super) options: Option<Box<Options>>,
    /// No option is enabled, and requests are at most counted; set at the start.
    pub(super) is_plain: bool,
    /// No enabled option changes the heads of responses, which the fast path requires; set at the start.
    pub(super) keeps_heads: bool,
}

impl HttpServer<()> {
    /// Creates a server from a closure that returns a [`Response`] or a type that converts into one.
    ///
    /// The closure is called for GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS and TRACE. CONNECT is answered with 405,
    /// any other method with 501. Use [`HttpServer::with`] for a closure that handles all methods.
    pub fn new<F, R>(handler: F) -> HttpServer<Closure<F>>
    where
        F: FnMut(&Request<'_>) -> R,
        R: Into<Response>,
    {
        HttpServer::with(Closure::new(handler))
    }
}

impl<H: Handler> HttpServer<H> {
    /// Creates a server from a [`Handler`], such as a [`Router`](super::Router), which is called for all methods. A
    /// closure is one if the type of its argument is given:
    ///
    /// ```
    /// use serverd::{HttpServer, Request};
    ///
    /// let server = HttpServer::with(|request: &Request<'_>| format!("{}\n", request.method()));
    /// # drop(server);
    /// ```
    pub fn with(handler: H) -> Self {
        let (limits, encoder, scratch) = (Limits::default(), Encoder::new(), Head::default());
        HttpServer {
            handler,
            limits,
            encoder,
            content_type: "",
            scratch,
            current_request: 0..0,
            remote: None,
            recorder: None,
            buffer_limit: BufferLimit::default(),
            options: None,
            is_plain: false,
            keeps_heads: false,
        }
    }
}

impl<H> HttpServer<H> {
    /// Sets the limits on request sizes.
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        HttpServer { limits, ..self }
    }

    /// Limits the memory of request bodies that are collected, wait for a reader or are held by a sink that waits,
    /// together with that of other servers with the same limit, in particular the servers of other workers. Default: a
    /// limit of 256 MiB of its own.
    #[must_use]
    pub fn buffer_limit(self, limit: &BufferLimit) -> Self {
        HttpServer { buffer_limit: limit.clone(), ..self }
    }

    /// Logs each request to `log`; `None` turns the access log off.
    #[must_use]
    pub fn access_log<'a>(mut self, log: impl Into<Option<&'a AccessLog>>) -> Self {
        let log = log.into();
        if log.is_some() || self.recorder.is_some() {
            self.recorder_mut().set_log(log);
        }
        self
    }

    /// Assigns an id to each request, returns it in this header of the response, and adds it to the line in the access
    /// log. A handler gets it with [`RequestHead::request_id`](crate::RequestHead::request_id). An id that a trusted
    /// proxy sends in the same header of the request is kept (see [`HttpServer::trusted_proxies`]); otherwise the id
    /// consists of 32 random hexadecimal digits. Off by default.
    ///
    /// # Examples
    /// ```
    /// use serverd::HttpServer;
    ///
    /// let server = HttpServer::new(|_| "hello\n").request_id(http::HeaderName::from_static("x-request-id"));
    /// # drop(server);
    /// ```
    #[must_use]
    pub fn request_id(mut self, header: HeaderName) -> Self {
        self.recorder_mut().set_id_header(header);
        self
    }

    /// Counts requests in `metrics`, which the admin listener of a server reports: see [`Metrics`](crate::server::Metrics).
    /// Off by default, and with `None`.
    #[must_use]
    pub fn metrics<'a>(mut self, metrics: impl Into<Option<&'a WorkerMetrics>>) -> Self {
        let metrics = metrics.into().map(|WorkerMetrics(metrics)| metrics);
        if metrics.is_some() || self.recorder.is_some() {
            self.recorder_mut().set_metrics(metrics);
        }
        self
    }

    /// Answers GET and HEAD for this path with 200, or with 503 once a graceful shutdown has begun: for the health
    /// checks of load balancers. Such requests are not passed to the handler, are not logged, and may be for any host.
    /// Off by default.
    ///
    /// # Examples
    /// ```
    /// use serverd::HttpServer;
    ///
    /// let server = HttpServer::new(|_| "hello\n").health_path("/healthz");
    /// # drop(server);
    /// ```
    #[must_use]
    pub fn health_path(mut self, path: impl Into<String>) -> Self {
        self.options_mut().health_path = Some(path.into());
        self
    }

    fn recorder_mut(&mut self) -> &mut Recorder {
        self.recorder.get_or_insert_with(|| Box::new(Recorder::new()))
    }

    /// Announces the idle timeout of the loop to clients with the Keep-Alive header, in whole seconds, so that they do
    /// not send a request on a connection that is about to be closed. Off by default, and with `None`.
    #[must_use]
    pub fn keep_alive_header(mut self, idle_timeout: impl Into<Option<Duration>>) -> Self {
        if let Some(timeout) = idle_timeout.into() {
            self.options_mut().set_keep_alive(timeout);
        }
        self
    }

    /// Closes a connection after this number of requests; 0 for no limit, which is the default. The last response has
    /// `Connection: close`.
    #[must_use]
    pub fn requests_max(mut self, count: u32) -> Self {
        if count > 0 {
            self.options_mut().requests_max = count;
        }
        self
    }

    /// Answers requests for other hosts with 421 (Misdirected Request). This protects a server on a private address
    /// from DNS rebinding: a web page whose own name resolves to that address could otherwise read its responses.
    ///
    /// The host is that of the target or the Host header, without its port, and case does not matter. `.example.com`
    /// covers example.com and all subdomains. An empty list allows all hosts, which is the default.
    ///
    /// # Examples
    /// ```
    /// use serverd::HttpServer;
    ///
    /// let server = HttpServer::new(|_| "hello\n").allow_hosts(["localhost", "127.0.0.1", ".example.com"]);
    /// # drop(server);
    /// ```
    #[must_use]
    pub fn allow_hosts<S: AsRef<str>>(mut self, hosts: impl IntoIterator<Item = S>) -> Self {
        let mut hosts = hosts.into_iter().peekable();
        if hosts.peek().is_some() {
            self.options_mut().hosts = Some(Hosts::new(hosts));
        }
        self
    }

    /// Answers a request over TLS with 421 (Misdirected Request) if the listener has several certificates, and that of the
    /// host is not the one of the server name (SNI) that the client has connected to. A host without a certificate, and a
    /// client that has not sent a server name, such as a proxy, are not affected. Off by default.
    ///
    /// # Examples
    /// ```
    /// let server = serverd::HttpServer::new(|_| "hello\n").strict_sni_host(true);
    /// # drop(server);
    /// ```
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn strict_sni_host(mut self, strict: bool) -> Self {
        if strict {
            self.options_mut().strict_sni_host = true;
        }
        self
    }

    /// Sends the header `Strict-Transport-Security: max-age=N` (HSTS, RFC 6797) with every response over TLS, including
    /// errors, in whole seconds: browsers then use https for this host for that long. A response that already has such
    /// a header is not changed. Zero makes browsers forget it. Off by default, and with `None`.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    ///
    /// let server = serverd::HttpServer::new(|_| "hello\n").hsts(Duration::from_secs(365 * 24 * 3600));
    /// # drop(server);
    /// ```
    #[must_use]
    pub fn hsts(mut self, time: impl Into<Option<Duration>>) -> Self {
        if let Some(time) = time.into() {
            self.options_mut().hsts = format!("{HSTS}: max-age={}\r\n", time.as_secs()).into_bytes();
        }
        self
    }

    /// Takes the address of the client, and whether it uses TLS, from the headers that these proxies send. An empty set
    /// of proxies changes nothing; this is the default.
    ///
    /// A header counts only if the connection comes from a trusted proxy. Forwarded and X-Forwarded-For are read from
    /// the right, past the addresses of trusted proxies; the first other address is the client's. With X-Forwarded-For
    /// and X-Real-IP, X-Forwarded-Proto says whether the client uses TLS, and its last value counts. The proxies have
    /// to set or remove these headers; they must not pass on those of their clients.
    ///
    /// The result is that of [`RequestHead::client_addr`](crate::RequestHead::client_addr) and
    /// [`RequestHead::is_secure`](crate::RequestHead::is_secure), and is used for the access log and for limits that
    /// depend on the client.
    ///
    /// # Examples
    /// ```
    /// use serverd::{ClientIpHeader, HttpServer};
    ///
    /// let server = HttpServer::new(|_| "hello\n").trusted_proxies(&"loopback".parse()?, ClientIpHeader::Forwarded);
    /// # drop(server);
    /// # Ok::<(), serverd::NetworksError>(())
    /// ```
    #[must_use]
    pub fn trusted_proxies(mut self, trusted: &Networks, header: ClientIpHeader) -> Self {
        if !trusted.is_empty() {
            self.options_mut().real_client = Some(Arc::new(RealClient { trusted: trusted.clone(), header }));
        }
        self
    }

    /// Returns the proxies of the server, if there are any.
    #[inline]
    pub(super) fn real_client(&self) -> Option<Arc<RealClient>> {
        self.options.as_ref()?.real_client.clone()
    }

    /// Sets the fields that are derived from the options and the recorder.
    pub(super) fn complete(&mut self) {
        let (options, recorder) = (self.options.as_deref(), self.recorder.as_deref());
        self.keeps_heads = options.is_none_or(Options::keep_heads) && !recorder.is_some_and(Recorder::passes_ids);
        self.is_plain = options.is_none() && recorder.is_none_or(Recorder::only_counts);
    }

    fn options_mut(&mut self) -> &mut Options {
        self.options.get_or_insert_default()
    }
}

/// The options that are off by default.
#[derive(Clone, Debug)]
pub(super) struct Options {
    /// The value of the Keep-Alive header; empty for none.
    pub(super) keep_alive: Vec<u8>,
    /// Number of requests after which a connection closes.
    pub(super) requests_max: u32,
    /// The hosts the server answers for; `None` for all.
    hosts: Option<Hosts>,
    /// Whether the host must not have another certificate than the server name.
    strict_sni_host: bool,
    /// The line of the Strict-Transport-Security header; empty for none.
    hsts: Vec<u8>,
    /// The path of health checks.
    health_path: Option<String>,
    /// The proxies of the server.
    real_client: Option<Arc<RealClient>>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            keep_alive: Vec::new(),
            requests_max: u32::MAX,
            hosts: None,
            strict_sni_host: false,
            hsts: Vec::new(),
            health_path: None,
            real_client: None,
        }
    }
}

impl Options {
    pub(super) fn set_keep_alive(&mut self, timeout: Duration) {
        if timeout.as_secs() > 0 {
            self.keep_alive = format!("timeout={}", timeout.as_secs()).into_bytes();
        }
    }

    /// Adds the Strict-Transport-Security header to the head of `response`, which is at the end of the output, if the
    /// connection uses TLS: a browser must not accept it otherwise (RFC 6797 section 8.1).
    pub(super) fn add_hsts(&self, wire: &mut Wire<'_, Wakeup>, response: &Response) {
        if !self.hsts.is_empty() && wire.addrs().is_secure() && !response.has_header(HSTS) {
            let head = wire.output().buffer();
            // Move the empty line that ends the head after the header.
            head.truncate(head.len() - 2);
            head.extend_from_slice(&self.hsts);
            head.extend_from_slice(b"\r\n");
        }
    }

    /// Returns whether the options do not change the heads of responses.
    fn keep_heads(&self) -> bool {
        self.keep_alive.is_empty() && self.hsts.is_empty() && self.requests_max == u32::MAX
    }

    /// Returns the response to a health check.
    pub(super) fn check_health(&self, head: &RequestHead<'_>, is_draining: bool) -> Option<Response> {
        if head.path() != self.health_path.as_deref()? {
            return None;
        }
        let response = match head.method_bytes() {
            b"GET" | b"HEAD" if is_draining => Response::error(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n"),
            b"GET" | b"HEAD" => Response::text("ok\n"),
            _ => Response::from(StatusCode::METHOD_NOT_ALLOWED).header("Allow", "GET, HEAD"),
        };
        Some(response.header("Cache-Control", "no-store"))
    }

    /// Returns a 421 (Misdirected Request) if the request is for a host that is not listed, or that has another
    /// certificate than the connection.
    pub(super) fn refuse_host(&self, head: &RequestHead<'_>) -> Option<Response> {
        let text = if self.hosts.as_ref().is_some_and(|hosts| !head.host().is_some_and(|host| hosts.cover(host))) {
            "this server does not serve the requested host\n"
        } else if self.strict_sni_host
            && head.host().is_some_and(|host| head.addrs().is_misdirected(without_port(host)))
        {
            "the requested host has another certificate; connect to it with its own name (SNI)\n"
        } else {
            return None;
        };
        Some(Response::error(StatusCode::MISDIRECTED_REQUEST, text))
    }
}

/// A list of hosts. A web page whose own name resolves to the address of the server (DNS rebinding) sends requests for
/// a host that is not in it.
#[derive(Clone, Debug)]
pub(crate) struct Hosts(Vec<String>);

impl Hosts {
    pub(crate) fn new<S: AsRef<str>>(hosts: impl IntoIterator<Item = S>) -> Self {
        Hosts(hosts.into_iter().map(|host| normalize_host(host.as_ref())).collect())
    }

    /// Returns whether the list covers the host of an authority.
    pub(crate) fn cover(&self, authority: &str) -> bool {
        let host = normalize_host(authority);
        self.0.iter().any(|listed| covers(listed, &host))
    }
}

/// Returns whether the host of an authority is an IP address or `localhost`, which no web page can use as its own name.
pub(crate) fn is_local_or_address(authority: &str) -> bool {
    let host = normalize_host(authority);
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&host);
    host == "localhost" || address.parse::<IpAddr>().is_ok()
}

/// Returns whether an entry of the list covers a host. An entry that begins with a dot covers a domain and its
/// subdomains.
fn covers(listed: &str, host: &str) -> bool {
    match listed.strip_prefix('.') {
        Some(domain) => host == domain || host.ends_with(listed),
        None => host == listed,
    }
}

/// Returns the host of an authority in lower case, without its port and without a final dot. An IPv6 address is in
/// brackets.
fn normalize_host(authority: &str) -> String {
    if authority.matches(':').count() > 1 && !authority.starts_with('[') {
        return format!("[{}]", authority.to_ascii_lowercase());
    }
    let host = without_port(authority);
    let host = host.strip_suffix('.').filter(|name| !name.is_empty()).unwrap_or(host);
    host.to_ascii_lowercase()
}

/// Returns the host of an authority.
fn without_port(authority: &str) -> &str {
    match authority.find(']') {
        Some(end) => &authority[..=end],
        None => authority.split(':').next().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_compared_without_port_and_case() {
        for (listed, host, expected) in [
            ("example.com", "Example.COM:8080", true),
            ("Example.com:1", "example.com.", true),
            ("example.com", "a.example.com", false),
            ("example.com", "example.com.evil.test", false),
            (".example.com", "a.b.Example.com", true),
            (".example.com", "example.com", true),
            (".example.com", "badexample.com", false),
            ("127.0.0.1", "127.0.0.1:80", true),
            ("::1", "[::1]:80", true),
            ("[::1]", "[::1]", true),
            ("localhost", "", false),
        ] {
            assert_eq!(Hosts::new([listed]).cover(host), expected, "{listed} {host}");
        }
    }

    #[test]
    fn addresses_and_localhost_are_recognized() {
        for (authority, expected) in [
            ("127.0.0.1:9090", true),
            ("10.0.0.1", true),
            ("[::1]:9090", true),
            ("LocalHost", true),
            ("localhost.:80", true),
            ("localhost.evil.test", false),
            ("127.0.0.1.evil.test", false),
            ("evil.test:80", false),
            ("", false),
        ] {
            assert_eq!(is_local_or_address(authority), expected, "{authority}");
        }
    }
}

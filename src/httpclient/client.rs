//! The client, and requests that forward those of the clients of this server.

use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;

use super::headers::{HeaderCopy, REWRITTEN_IN_REQUEST, describes_client, push_line, remove_lines, trailer_names};
use super::pool::{ClientLimits, Pool};
use super::request::{ClientRequest, Parts};
use super::url::Upstream;
use crate::http1::{RequestDraft, Version};
use crate::httpserver::RequestHead;
#[cfg(feature = "tls")]
use crate::tls::ClientTls;

/// Memory reserved for added headers, such as Via and Forwarded.
const ADDED_BYTES: usize = 256;

/// An HTTP/1.1 client for the handlers of an [`HttpServer`](crate::HttpServer), and for closures that its loop calls. Clones
/// share connections and limits.
///
/// The connections belong to the application of the loop, which must be an [`HttpServer`](crate::HttpServer). If it is the
/// second of a [`PerListener`](crate::PerListener), that needs
/// [`added_to_second`](crate::PerListener::added_to_second); otherwise requests fail with
/// [`ClientError::Stopped`](super::ClientError::Stopped).
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

    /// Returns a client with a separate connection pool that uses TLS for URLs with the scheme https.
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
        Client { pool: Arc::new(Pool::with_tls(self.pool.limits.clone(), tls.alpn_protocols(&["http/1.1"]))) }
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

    /// Creates a request that forwards a received request to `upstream`, with its method, target, Host and end-to-end headers
    /// (RFC 9110 section 7.6.1), and adds Via. Expect is not forwarded: this server sends 100 (Continue) itself. Upgrades are
    /// not forwarded either, so that a WebSocket handshake reaches the upstream as a plain GET.
    ///
    /// The body is not included: add it with [`ClientRequest::body_reader`], which preserves its length.
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
        let host = head.host_bytes().filter(|host| !host.is_empty()).unwrap_or(upstream.authority.as_bytes());
        let headers_bytes = head.as_bytes().len() + ADDED_BYTES;
        let target: [&[u8]; 3] = match head.target_bytes() {
            // A path and perhaps a query, rather than a URL.
            target @ [b'/', ..] => [target, b"", b""],
            _ => match head.query() {
                Some(query) => [head.path().as_bytes(), b"?", query.as_bytes()],
                None => [head.path().as_bytes(), b"", b""],
            },
        };
        let mut forwarded = RequestDraft::new(head.method_bytes(), &target, host, headers_bytes);
        let (lines, _) = forwarded.lines();
        let mut copy = HeaderCopy::new(lines, &REWRITTEN_IN_REQUEST);
        head.headers().for_each(|(name, value)| copy.push(name, value));
        let outcome = copy.finish();
        let via: &[u8] = if head.version() == Version::Http10 { b"1.0 serverd" } else { b"1.1 serverd" };
        push_line(lines, b"Via", via);
        let length = head.header("content-length").and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
        let (key, trailers) = (Arc::clone(&upstream.key), trailer_names(head.headers()));
        let parts = Parts { key, head: forwarded, content: None, length, trailers };
        ClientRequest::from_parts(&self.pool, outcome.map(|()| parts))
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Client").field("limits", &self.pool.limits).finish_non_exhaustive()
    }
}

impl ClientRequest {
    /// Sets Forwarded (RFC 7239), X-Forwarded-For, X-Forwarded-Proto and X-Forwarded-Host. The address is that of
    /// [`RequestHead::client_addr`], or `unknown`.
    ///
    /// Removes what the client itself has sent in these headers, in others that begin with `X-Forwarded-`, and in X-Real-IP,
    /// X-Client-IP and True-Client-IP, also with underscores in place of hyphens: anyone can send them.
    ///
    /// # Examples
    /// ```
    /// use serverd::{Client, HttpServer, Request, Upstream};
    ///
    /// let (client, upstream) = (Client::new(), "http://127.0.0.1:9000".parse::<Upstream>()?);
    /// let server = HttpServer::new(move |request: &Request<'_>| {
    ///     client.forward(request, &upstream).forwarded_headers(request).respond()
    /// });
    /// # drop(server);
    /// # Ok::<(), serverd::ClientError>(())
    /// ```
    pub fn forwarded_headers(self, head: &RequestHead<'_>) -> Self {
        self.change(|parts| {
            let (lines, start) = parts.head.lines();
            remove_lines(lines, start, |line| {
                memchr::memchr(b':', line).is_some_and(|name_len| describes_client(&line[..name_len]))
            });
            let proto = if head.is_secure() { "https" } else { "http" };
            let address = head.client_addr().map(|client| client.ip());
            push_forwarded(lines, address, proto, head.host_bytes().unwrap_or_default());
            Ok(())
        })
    }
}

/// Appends the headers that name a client. The host is valid, so that it contains neither quotes nor backslashes.
fn push_forwarded(lines: &mut Vec<u8>, address: Option<IpAddr>, proto: &str, host: &[u8]) {
    let address = address.map(|ip| ip.to_canonical());
    lines.extend_from_slice(b"X-Forwarded-For: ");
    let start = lines.len();
    push_address(lines, address);
    let address_range = start..lines.len();
    lines.extend_from_slice(b"\r\nForwarded: for=");
    // RFC 7239 section 6.1: colons need quotes, and IPv6 addresses brackets.
    let (open, close) = if address.is_some_and(|ip| ip.is_ipv6()) { ("\"[", "]\"") } else { ("", "") };
    lines.extend_from_slice(open.as_bytes());
    lines.extend_from_within(address_range);
    for part in [close.as_bytes(), b";proto=", proto.as_bytes(), b";host=\"", host, b"\"\r\n"] {
        lines.extend_from_slice(part);
    }
    push_line(lines, b"X-Forwarded-Proto", proto.as_bytes());
    push_line(lines, b"X-Forwarded-Host", host);
}

fn push_address(out: &mut Vec<u8>, address: Option<IpAddr>) {
    match address {
        // Not with core::fmt, which takes more instructions than the rest of this function.
        Some(IpAddr::V4(ip)) => {
            for (index, octet) in ip.octets().into_iter().enumerate() {
                out.extend_from_slice(if index > 0 { b"." } else { b"" });
                out.extend_from_slice(itoa::Buffer::new().format(octet).as_bytes());
            }
        }
        // Writing to a vector does not fail.
        Some(IpAddr::V6(ip)) => drop(write!(out, "{ip}")),
        None => out.extend_from_slice(b"unknown"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_clients_are_quoted_where_they_must_be() {
        for (address, node) in
            [("192.0.2.10", "192.0.2.10"), ("0.255.7.1", "0.255.7.1"), ("2001:db8::1", "\"[2001:db8::1]\"")]
        {
            let mut lines = b"A: b\r\n".to_vec();
            push_forwarded(&mut lines, Some(address.parse().unwrap()), "https", b"a.test:81");
            let expected = format!(
                "A: b\r\nX-Forwarded-For: {address}\r\nForwarded: for={node};proto=https;host=\"a.test:81\"\r\n\
                 X-Forwarded-Proto: https\r\nX-Forwarded-Host: a.test:81\r\n"
            );
            assert_eq!(String::from_utf8(lines).unwrap(), expected);
        }
        let mut lines = Vec::new();
        push_forwarded(&mut lines, Some("::ffff:192.0.2.1".parse().unwrap()), "http", b"");
        assert!(
            lines.starts_with(b"X-Forwarded-For: 192.0.2.1\r\nForwarded: for=192.0.2.1;"),
            "an IPv4-mapped address"
        );
        lines.clear();
        push_forwarded(&mut lines, None, "http", b"");
        let expected = "X-Forwarded-For: unknown\r\nForwarded: for=unknown;proto=http;host=\"\"\r\n\
                        X-Forwarded-Proto: http\r\nX-Forwarded-Host: \r\n";
        assert_eq!(String::from_utf8(lines).unwrap(), expected);
    }
}

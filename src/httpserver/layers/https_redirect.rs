//! The redirect from http to https.

use std::net::Ipv6Addr;

use http::StatusCode;

use crate::httpserver::handler::{BodyMode, Handler};
use crate::httpserver::request::{Request, RequestHead};
use crate::httpserver::response::Response;

/// The default port of https, which is omitted from URLs.
const HTTPS_PORT: u16 = 443;

/// Passes requests over TLS to a handler, and redirects all others to https with 308 (Permanent Redirect), which
/// preserves the method and the body.
///
/// Needs a loop with plain listeners in addition to those with TLS; see `EventLoop::listen_tls`. The redirect leads to
/// the requested host and target, on `port`. A request without a valid Host header gets 400. The body of a redirected
/// request is not read, so that no more of it is sent unencrypted.
///
/// # Examples
/// ```
/// use serverd::{HttpServer, layers};
///
/// let server = HttpServer::with(layers::https_redirect(|_: &serverd::Request<'_>| "secret\n", 443));
/// # drop(server);
/// ```
pub fn https_redirect<H: Handler>(inner: H, port: u16) -> impl Handler {
    HttpsRedirect { inner, port }
}

struct HttpsRedirect<H> {
    inner: H,
    port: u16,
}

impl<H: Handler> Handler for HttpsRedirect<H> {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        if head.is_secure() { self.inner.head(head) } else { BodyMode::Reject(redirect(head, self.port)) }
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        if request.is_secure() { self.inner.call(request) } else { redirect(request, self.port) }
    }
}

fn redirect(head: &RequestHead<'_>, port: u16) -> Response {
    let Some(host) = head.host().and_then(host_of) else {
        return Response::error(StatusCode::BAD_REQUEST, "the Host header is missing or not a valid host\n");
    };
    let port = if port == HTTPS_PORT { String::new() } else { format!(":{port}") };
    let mut location = format!("https://{host}{port}");
    // The targets `*` and `host:port` have no path.
    let path = Some(head.path()).filter(|path| path.starts_with('/')).unwrap_or("/");
    location += path;
    if let Some(query) = head.query() {
        location.push('?');
        location += query;
    }
    Response::error(StatusCode::PERMANENT_REDIRECT, "this server requires https\n").header("Location", location)
}

/// Returns the host of an authority without its port; `None` if it is not a name or an address. User information, in
/// particular, is not allowed in the Host header (RFC 9110 section 7.2).
fn host_of(authority: &str) -> Option<&str> {
    let is_port = |rest: &str| rest.is_empty() || rest.strip_prefix(':').is_some_and(is_number);
    if let Some(rest) = authority.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let is_valid = address.parse::<Ipv6Addr>().is_ok() && is_port(port);
        return is_valid.then(|| &authority[..address.len() + 2]);
    }
    let (name, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
    let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte));
    (!name.is_empty() && is_name(name) && is_port(port)).then_some(name)
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_without_its_port() {
        for (authority, host) in [
            ("example.org", Some("example.org")),
            ("Example.org:8080", Some("Example.org")),
            ("my_host:", Some("my_host")),
            ("127.0.0.1:80", Some("127.0.0.1")),
            ("[2001:db8::1]:80", Some("[2001:db8::1]")),
            ("[::1]", Some("[::1]")),
            ("", None),
            (":80", None),
            ("a:b", None),
            ("a:80:80", None),
            ("::1", None),
            ("[::1", None),
            ("[::1]x", None),
            ("[a]", None),
            ("user@example.org", None),
            ("a/b", None),
            ("a,b", None),
            ("a b", None),
        ] {
            assert_eq!(host_of(authority), host, "{authority:?}");
        }
    }
}

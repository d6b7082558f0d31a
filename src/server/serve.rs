//! A server in one line.

use std::sync::Mutex;

use super::config::Config;
use super::start_error::{StartError, StartErrorKind};
use crate::httpserver::{HttpServer, Request, Response};
use crate::r#loop::lock;

/// Runs an HTTP server until SIGINT (Ctrl-C) or SIGTERM, then shuts down gracefully.
///
/// The address is a host name or an IP address, a colon and a port: `127.0.0.1:8888`, `localhost:8888`, `[::1]:8888`.
/// The server has one worker and the default limits. Use [`Config::serve`] to change these, or for a handler that is
/// not a closure; use [`Config::start`] for a server without signal handlers.
///
/// # Errors
/// Returns an error if the address has no port or cannot be bound, or if the worker fails.
///
/// # Examples
/// ```no_run
/// fn main() -> Result<(), serverd::StartError> {
///     serverd::serve("127.0.0.1:8888", |request| format!("hello, you asked for {}\n", request.path()))
/// }
/// ```
pub fn serve<F, R>(address: impl AsRef<str>, handler: F) -> Result<(), StartError>
where
    F: FnMut(&Request<'_>) -> R + Send + 'static,
    R: Into<Response> + 'static,
{
    let (host, port) = parse(address.as_ref())?;
    let handler = Mutex::new(Some(handler));
    let make = move |_| HttpServer::new(lock(&handler).take().expect("called once, for the only worker"));
    Config::default().host(host).port(port).serve(make)
}

/// Splits an address into host and port.
fn parse(address: &str) -> Result<(String, u16), StartError> {
    let parts = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    match parts {
        Some((host, port)) if !host.is_empty() => Ok((host.to_owned(), port)),
        _ => Err(StartError::of_kind(
            StartErrorKind::Host,
            format!("the address {address:?} is not a host and a port, such as 127.0.0.1:8888"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for (address, host, port) in [("127.0.0.1:80", "127.0.0.1", 80), ("[::1]:0", "[::1]", 0), ("a:1", "a", 1)] {
            assert_eq!(parse(address).unwrap(), (host.to_owned(), port));
        }
        for address in ["", "a", "a:", "a:x", ":80", "a:65536", "127.0.0.1"] {
            let error = serve(address, |_| "never called").unwrap_err();
            assert_eq!(error.kind(), StartErrorKind::Host, "{address}");
            assert!(error.to_string().contains(&format!("{address:?}")), "{error}");
        }
    }
}

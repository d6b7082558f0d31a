//! Requests that forward those of the clients of this server.

use std::sync::Arc;

use super::error::ClientError;
use super::headers::{REQUEST_ONLY, copy_headers, push_line, trailer_names};
use super::pool::Pool;
use super::request::{ClientRequest, Parts, parse_url};
use crate::http1::Version;
use crate::httpserver::RequestHead;

/// Creates a request that forwards one to this server.
pub(super) fn forward(pool: &Arc<Pool>, head: &RequestHead<'_>, upstream: &str) -> ClientRequest {
    ClientRequest::from_parts(pool, forwarded_parts(head, upstream))
}

fn forwarded_parts(head: &RequestHead<'_>, upstream: &str) -> Result<Parts, ClientError> {
    let (key, path, authority) = parse_url(upstream)?;
    if path != "/" {
        return Err(ClientError::Url);
    }
    let headers: Vec<_> = head.headers().collect();
    let mut lines = copy_headers(headers.iter().copied(), &REQUEST_ONLY);
    let version = if head.version() == Version::Http10 { "1.0" } else { "1.1" };
    push_line(&mut lines, b"Via", format!("{version} serverd").as_bytes());
    let length = head.header("content-length").and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
    let target = match head.query() {
        Some(query) => format!("{}?{query}", head.path()),
        None => head.path().to_owned(),
    };
    let host = head.host().filter(|host| !host.is_empty()).unwrap_or(&authority).to_owned();
    let (method, trailers) = (head.method().to_owned(), trailer_names(headers.iter().copied()));
    Ok(Parts { key, method, target, host, headers: lines, content: None, length, trailers })
}

//! Requests that forward those of the clients of this server.

use std::sync::Arc;

use super::headers::{HeaderCopy, REQUEST_ONLY, push_line, trailer_names};
use super::pool::Pool;
use super::request::{ClientRequest, Parts};
use super::url::Upstream;
use crate::http1::{RequestDraft, Version};
use crate::httpserver::RequestHead;

/// Memory reserved for headers besides those of the forwarded request, such as Via and Forwarded.
const ADDED_BYTES: usize = 256;

/// Creates a request that forwards one to this server.
pub(super) fn forward(pool: &Arc<Pool>, head: &RequestHead<'_>, upstream: &Upstream) -> ClientRequest {
    let host = head.host().filter(|host| !host.is_empty()).unwrap_or(&upstream.authority);
    let headers_bytes = head.as_bytes().len() + ADDED_BYTES;
    let mut forwarded = match head.query() {
        Some(query) => RequestDraft::new(head.method(), &[head.path(), "?", query], host, headers_bytes),
        None => RequestDraft::new(head.method(), &[head.path()], host, headers_bytes),
    };
    let (lines, _) = forwarded.lines();
    let mut copy = HeaderCopy::new(lines, &REQUEST_ONLY);
    head.headers().for_each(|(name, value)| copy.push(name, value));
    copy.finish();
    let via: &[u8] = if head.version() == Version::Http10 { b"1.0 serverd" } else { b"1.1 serverd" };
    push_line(lines, b"Via", via);
    let length = head.header("content-length").and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
    let (key, trailers) = (Arc::clone(&upstream.key), trailer_names(head.headers()));
    ClientRequest::from_parts(pool, Ok(Parts { key, head: forwarded, content: None, length, trailers }))
}

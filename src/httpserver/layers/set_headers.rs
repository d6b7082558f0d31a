//! Layer that sets response headers.

use std::sync::Arc;

use crate::httpserver::{BodyMode, Handler, HeaderBlock, HeaderError, Request, RequestHead, Response};

/// Sets headers on every response of a handler, replacing headers with the same names. Use
/// [`add_headers`](super::add_headers) to add headers instead. Responses that the server generates itself are
/// unchanged: rejections of malformed, oversized or slow requests, and the 500 after a panic.
///
/// # Errors
/// Returns an error if a header is invalid or is one that the server sets itself.
///
/// # Examples
/// ```
/// use serverd::{HeaderError, HttpServer, layers};
///
/// let page = |_: &serverd::Request<'_>| serverd::Response::text("hello\n").header("Cache-Control", "no-cache");
/// let server = HttpServer::with(layers::set_headers(page, &[("Cache-Control", "max-age=60")])?);
/// # drop(server);
/// # Ok::<(), HeaderError>(())
/// ```
pub fn set_headers<H: Handler>(inner: H, list: &[(&str, &str)]) -> Result<impl Handler + use<H>, HeaderError> {
    let mut block = HeaderBlock::new();
    for (name, value) in list {
        block.try_header(name, value.as_bytes())?;
    }
    let names = list.iter().map(|(name, _)| (*name).to_owned()).collect();
    Ok(SetHeaders { inner, headers: Arc::new(Headers { names, block }) })
}

struct SetHeaders<H> {
    inner: H,
    headers: Arc<Headers>,
}

struct Headers {
    names: Vec<String>,
    block: HeaderBlock,
}

impl Headers {
    fn set(&self, mut response: Response) -> Response {
        for name in &self.names {
            response.remove_header(name);
        }
        response.merge(self.block.lines(), false);
        response
    }
}

impl<H: Handler> Handler for SetHeaders<H> {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        let headers = Arc::clone(&self.headers);
        self.inner.head(head).map(move |response| headers.set(response))
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        let headers = Arc::clone(&self.headers);
        self.inner.call(request).map(move |response| headers.set(response))
    }
}

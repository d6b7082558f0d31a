//! Fields that stand in place of those of the handler.

use std::sync::Arc;

use crate::httpserver::{FieldBlock, FieldError, Handler, Intake, Request, RequestHead, Response};

/// Sets the same fields on every answer of the handler, in place of any that it gave by the same names; see
/// [`fields`](super::fields) for those that are added, and for the answers that carry neither.
///
/// # Errors
/// When a field must not be sent.
///
/// # Examples
/// ```
/// use serverd::{FieldError, HttpServer, layers};
///
/// let page = |_: &serverd::Request<'_>| serverd::Response::text("hello\n").field("Cache-Control", "no-cache");
/// let server = HttpServer::with(layers::set_fields(page, &[("Cache-Control", "max-age=60")])?);
/// # drop(server);
/// # Ok::<(), FieldError>(())
/// ```
pub fn set_fields<H: Handler>(inner: H, list: &[(&str, &str)]) -> Result<impl Handler + use<H>, FieldError> {
    let mut block = FieldBlock::new();
    for (name, value) in list {
        block.try_field(name, value.as_bytes())?;
    }
    let names = list.iter().map(|(name, _)| (*name).to_owned()).collect();
    Ok(Overriding { inner, own: Arc::new(Own { names, block }) })
}

struct Overriding<H> {
    inner: H,
    own: Arc<Own>,
}

struct Own {
    names: Vec<String>,
    block: FieldBlock,
}

impl Own {
    fn set(&self, mut response: Response) -> Response {
        for name in &self.names {
            response.remove_field(name);
        }
        response.inherit(self.block.lines(), false);
        response
    }
}

impl<H: Handler> Handler for Overriding<H> {
    fn head(&mut self, head: &RequestHead<'_>) -> Intake {
        let own = Arc::clone(&self.own);
        self.inner.head(head).map(move |response| own.set(response))
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        let own = Arc::clone(&self.own);
        self.inner.call(request).map(move |response| own.set(response))
    }
}

//! The headers of a response: added, replaced and removed as formatted lines.

use std::sync::Arc;

use super::headers::{self, HeaderBlock, HeaderError};
use super::response::{Body, Response, internal_error};

impl Response {
    /// Sets Content-Type, replacing any earlier value. An invalid value is logged, and the response becomes a 500.
    #[inline]
    #[must_use]
    pub fn content_type(mut self, content_type: &'static str) -> Self {
        self.remove_content_type();
        Response { content_type: Some(content_type), ..self }
    }

    /// Removes Content-Type, whichever way it was set.
    #[inline]
    fn remove_content_type(&mut self) {
        self.content_type = None;
        if !self.headers.is_empty() {
            let lines = self.headers.split_inclusive(|&byte| byte == b'\n');
            self.headers = lines.filter(|line| !is_content_type(line)).flatten().copied().collect();
        }
        if let Some(shared) = self
            .shared_headers
            .as_ref()
            .filter(|shared| shared.lines().split(|&byte| byte == b'\n').any(is_content_type))
        {
            self.shared_headers = Some(Arc::new(shared.without("content-type")));
        }
    }

    /// Adds a header. An invalid one is logged and turns the whole response into a 500, since silently omitting, say, a
    /// Set-Cookie would be worse. Use [`Response::try_header`] to handle the error.
    #[must_use]
    pub fn header(mut self, name: impl AsRef<str>, value: impl AsRef<[u8]>) -> Self {
        let name = name.as_ref();
        match self.try_header(name, value.as_ref()) {
            Ok(()) => self,
            Err(error) => {
                log::error!("replaced a handler's response with 500: header {name:?}: {error}");
                internal_error()
            }
        }
    }

    /// Adds a block of headers that is shared between responses, without copying it. Replaces an earlier block. The
    /// block should not contain headers that are also set on the response itself.
    #[must_use]
    pub fn with_headers(mut self, block: &Arc<HeaderBlock>) -> Self {
        if let Body::Deferred(_) = self.body {
            // Only `headers` of a placeholder are added to the final response.
            self.headers.extend_from_slice(block.lines());
            return self;
        }
        Response { shared_headers: Some(Arc::clone(block)), ..self }
    }

    /// Adds a header. All headers with the same name are sent, except that Content-Type replaces an earlier one.
    ///
    /// # Errors
    /// Returns an error if the name or value is invalid, or if the server sets this header itself. The response is then
    /// unchanged.
    pub fn try_header(&mut self, name: &str, value: &[u8]) -> Result<(), HeaderError> {
        if name.eq_ignore_ascii_case("content-type") {
            headers::check(name, value)?;
            self.remove_content_type();
        }
        headers::push(&mut self.headers, name, value)?;
        // RFC 9110 section 7.8: a sender of Upgrade lists it in Connection, so that proxies do not forward it.
        if name.eq_ignore_ascii_case("upgrade") {
            self.headers.extend_from_slice(b"Connection: upgrade\r\n");
        }
        Ok(())
    }

    /// Returns the value of the first header with this name.
    #[cfg(feature = "compress")]
    pub(super) fn header_value(&self, name: &str) -> Option<&[u8]> {
        let shared = self.shared_headers.as_ref().map(|block| block.lines()).unwrap_or_default();
        let mut lines =
            [self.headers.as_slice(), shared].into_iter().flat_map(|lines| lines.split(|&byte| byte == b'\n'));
        lines.find(|line| headers::is_line_of(line, name)).map(|line| line[name.len() + 1..].trim_ascii())
    }

    /// Removes all headers with this name.
    pub(super) fn remove_header(&mut self, name: &str) {
        let lines = self.headers.split_inclusive(|&byte| byte == b'\n');
        self.headers = lines.filter(|line| !headers::is_line_of(line, name)).flatten().copied().collect();
        if let Some(shared) = self.shared_headers.as_mut() {
            *shared = Arc::new(shared.without(name));
        }
    }

    /// Adds the name of a request header to Vary (RFC 9110 section 12.5.5), unless it is already listed.
    #[cfg(feature = "compress")]
    pub(super) fn vary(self, name: &str) -> Self {
        let listed = self.header_value("vary").unwrap_or_default();
        let is_name = |word: &[u8]| word.trim_ascii().eq_ignore_ascii_case(name.as_bytes());
        if listed.split(|&byte| byte == b',').any(is_name) { self } else { self.header("Vary", name) }
    }

    /// Makes the entity tag weak: the representation is equivalent but not identical byte for byte (RFC 9110 section
    /// 8.8.1).
    #[cfg(feature = "compress")]
    pub(super) fn weaken_etag(&mut self) {
        if let Some(tag) = self.header_value("etag").filter(|tag| tag.starts_with(b"\"")) {
            let weak = [b"W/", tag].concat();
            self.remove_header("etag");
            // Cannot fail: the value was valid before.
            let _ = self.try_header("ETag", &weak);
        }
    }

    /// Adds header lines, and closes the connection if `close` is set. Used for the headers of a layer, and for changes
    /// made to the placeholder of a deferred response.
    pub(super) fn merge(&mut self, headers: &[u8], close: bool) {
        if headers.split(|&byte| byte == b'\n').any(is_content_type) {
            self.remove_content_type();
        }
        self.headers.extend_from_slice(headers);
        self.close |= close;
    }
}

fn is_content_type(line: &[u8]) -> bool {
    headers::is_line_of(line, "content-type")
}

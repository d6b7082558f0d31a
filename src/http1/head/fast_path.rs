//! Fast path: parses, in one pass, lines of the form that almost every client sends. The target begins with `/`, names
//! consist of letters and `-`, each value follows one space or none, and lines end in CRLF.
//!
//! Any other line, and any incomplete one, is left to [`Head::parse`], which also determines the error if there is one.
//! The fast path accepts nothing that the general parser would reject, and produces the same result with less work per
//! byte.

use super::super::error::Error;
use super::super::limits::Limits;
use super::super::scan;
use super::super::target::{self, TargetForm};
use super::{FieldSpan, Head, HeadFlags, REQUEST_LINE_EXTRA, Span};

const HOST: &[u8] = b"Host: ";

impl Head {
    /// Out-of-line version of [`Head::parse_fast`].
    #[inline(never)]
    pub(super) fn parse_fast_outlined(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, Error> {
        self.parse_fast(bytes, limits)
    }

    /// Parses from the start of a line as far as the fast path applies. Returns the end of the head if it is reached.
    #[allow(clippy::inline_always, reason = "hot path")]
    #[inline(always)]
    pub(in crate::http1) fn parse_fast(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, Error> {
        // The complete head must be within the limit.
        let bytes = &bytes[..bytes.len().min(limits.head_bytes_capped())];
        if self.line == 0 {
            if !self.read_request_line_fast(bytes, limits) {
                return Ok(None);
            }
            self.read_host_fast(bytes, limits);
        }
        let at_empty_line = bytes.get(self.line..).is_some_and(|rest| rest.starts_with(b"\r\n"));
        let is_complete = at_empty_line && self.crlf == Some(true);
        if !is_complete && !self.read_fields_fast(bytes, limits)? {
            return Ok(None);
        }
        self.check_head()?;
        self.searched = self.line + 2;
        Ok(Some(self.searched))
    }

    /// Parses field lines from the start of a line. Returns whether the empty line that ends the head follows.
    #[inline(never)]
    fn read_fields_fast(&mut self, bytes: &[u8], limits: &Limits) -> Result<bool, Error> {
        if self.crlf != Some(true) {
            return Ok(false);
        }
        let mut rest = bytes.get(self.line..).unwrap_or_default();
        while !rest.starts_with(b"\r\n") {
            let Some(span) = split_field(rest) else { break };
            if self.fields.len() >= limits.headers_max {
                break;
            }
            self.record(rest, span)?;
            self.fields.push(span.at(bytes.len() - rest.len()));
            rest = &rest[span.value_end + 2..];
        }
        self.line = bytes.len() - rest.len();
        let at_empty_line = rest.starts_with(b"\r\n") || self.read_tail_fields_fast(bytes, limits)?;
        if !at_empty_line {
            self.searched = self.line;
        }
        Ok(at_empty_line)
    }

    /// Parses a Host field directly after the request line, where clients should send it (RFC 9110 section 7.2). Skips
    /// any host other than a name or an IPv4 address, with an optional port.
    #[allow(clippy::inline_always, reason = "hot path")]
    #[inline(always)]
    fn read_host_fast(&mut self, bytes: &[u8], limits: &Limits) {
        let rest = bytes.get(self.line..).unwrap_or_default();
        if !rest.starts_with(HOST) || limits.headers_max == 0 {
            return;
        }
        let name_end = scan::find_non_host(rest, HOST.len());
        let value_end = if rest.get(name_end) == Some(&b':') { port_end(rest, name_end + 1) } else { name_end };
        if name_end == HOST.len() || !rest[value_end..].starts_with(b"\r\n") {
            return;
        }
        self.flags.set(HeadFlags::HOST);
        let span = FieldSpan { name_end: HOST.len() - b": ".len(), value_start: HOST.len(), value_end };
        self.fields.push(span.at(self.line));
        self.line += value_end + 2;
    }

    /// Parses the field lines that begin in the last [`scan::BLOCK`] bytes of the input, where the scan has to load a
    /// block that begins before the line. Returns whether the empty line that ends the head follows.
    #[inline(never)]
    fn read_tail_fields_fast(&mut self, bytes: &[u8], limits: &Limits) -> Result<bool, Error> {
        while bytes.len() - self.line < scan::BLOCK && self.fields.len() < limits.headers_max {
            let rest = &bytes[self.line..];
            if rest.starts_with(b"\r\n") {
                return Ok(true);
            }
            let name_end = scan::find_non_name(bytes, self.line) - self.line;
            let value_end = scan::find_unprintable(bytes, self.line) - self.line;
            let Some(span) = split_field_at(rest, name_end, || value_end) else { break };
            self.record_outlined(rest, span)?;
            self.fields.push(span.at(self.line));
            self.line += span.value_end + 2;
        }
        Ok(bytes[self.line..].starts_with(b"\r\n"))
    }

    #[allow(clippy::inline_always, reason = "hot path")]
    #[inline(always)]
    fn read_request_line_fast(&mut self, bytes: &[u8], limits: &Limits) -> bool {
        let method_len = if bytes.starts_with(b"GET ") { 3 } else { self.read_method_fast(bytes) };
        let Some(after @ [b'/', ..]) = bytes.get(method_len + 1..) else { return false };
        let target_len = target::path_and_query_len(after);
        let Some(rest) = after.get(target_len..).and_then(<[u8]>::first_chunk) else { return false };
        if rest != b" HTTP/1.1\r\n" || target_len > limits.target_bytes_max || method_len == 0 {
            return false;
        }
        self.method = Span::new(0, method_len);
        self.target = Span::new(method_len + 1, target_len);
        self.form = TargetForm::Origin;
        self.crlf = Some(true);
        self.line = method_len + 1 + target_len + rest.len();
        true
    }

    /// Returns the length of a method followed by a space, or 0 to leave it to the general parser.
    #[inline(never)]
    fn read_method_fast(&mut self, bytes: &[u8]) -> usize {
        let method_len = scan::find_non_name(bytes, 0);
        let method = &bytes[..method_len];
        // The fast path does not check the length of the whole line; a method this short keeps it within the limit.
        let fits = method_len <= REQUEST_LINE_EXTRA - b" HTTP/1.1\r\n".len();
        if !fits || method == b"CONNECT" || bytes.get(method_len) != Some(&b' ') {
            return 0;
        }
        if method == b"HEAD" {
            self.flags.set(HeadFlags::HEAD_METHOD);
        }
        method_len
    }
}

#[inline(never)]
fn port_end(rest: &[u8], start: usize) -> usize {
    start + rest[start..].iter().take_while(|byte| byte.is_ascii_digit()).count()
}

/// Splits the field line at the start of `rest`. Returns `None` if the fast path does not apply or `rest` is shorter
/// than a block.
#[inline]
fn split_field(rest: &[u8]) -> Option<FieldSpan> {
    let (non_names, ends) = scan::field_masks(rest.first_chunk()?);
    // Keep searching if the name or value extends beyond the first block.
    let name_end = if non_names == 0 { scan::find_non_name(rest, 0) } else { non_names.trailing_zeros() as usize };
    let value_end = || if ends == 0 { scan::find_unprintable(rest, name_end) } else { ends.trailing_zeros() as usize };
    split_field_at(rest, name_end, value_end)
}

/// Splits the field line at the start of `rest`, whose name ends at `name_end`. Returns `None` if the fast path does
/// not apply.
#[inline]
fn split_field_at(rest: &[u8], name_end: usize, value_end: impl FnOnce() -> usize) -> Option<FieldSpan> {
    if name_end == 0 || rest.get(name_end) != Some(&b':') {
        return None;
    }
    let value_start = name_end + 1 + usize::from(rest.get(name_end + 1) == Some(&b' '));
    let value_end = value_end();
    let value = rest.get(value_start..value_end)?;
    // The general parser strips surrounding whitespace from values.
    let is_trimmed = *value.first()? != b' ' && *value.last()? != b' ';
    (is_trimmed && rest[value_end..].starts_with(b"\r\n")).then_some(FieldSpan { name_end, value_start, value_end })
}

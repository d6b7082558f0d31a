//! Incremental parser for a request head: a general one for lines of any form, and a fast path.
//!
//! The parser stores offsets, not slices, so results stay valid when the input buffer moves. It remembers its position:
//! however the input is fragmented, every byte is searched once and every line is parsed once. A line is parsed only
//! when it is complete, or rejected when it exceeds a limit, so fragmentation never changes the outcome.
//!
//! The fast path parses, in one pass, lines of the form that almost every client sends. The target begins with `/`, names
//! consist of letters and `-`, each value follows one space or none, and lines end in CRLF. Any other line, and any
//! incomplete one, is left to [`Head::parse`], which also determines the error if there is one. The fast path accepts
//! nothing that the general parser would reject, and produces the same result with less work per byte.
//!
//! A function with the suffix `_outlined` is the out-of-line version of an inlined function, for use outside the hot
//! path.

use super::super::error::Error;
use super::super::syntax::{self, TOKEN, TargetForm, is_header_value, is_token, trim};
use super::FieldSpan;
use super::Head;
use super::HeadFlags;
use super::Limits;
use super::Span;
use super::Version;

/// Maximum number of empty lines skipped before a request line (RFC 9112 section 2.2 recommends at least one).
const BLANK_LINES_MAX: u8 = 8;

/// Maximum length of a request line without its target: a method, two spaces, a version.
const REQUEST_LINE_EXTRA: usize = 64;

/// The beginning of a Host field in its usual form.
const HOST: &[u8] = b"Host: ";

/// The result of [`Head::parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http1) enum Progress {
    /// The head is incomplete. `skipped` bytes of empty lines before it have been consumed.
    NeedMore { skipped: usize },
    /// The head is complete: it is `input[start..end]`.
    Complete { start: usize, end: usize },
}

impl Head {
    /// Continues parsing. `input` must start with the same bytes as in the previous call, except for those the previous
    /// call skipped.
    pub(in crate::http1) fn parse(&mut self, input: &[u8], limits: &Limits) -> Result<Progress, Error> {
        let mut start = 0;
        loop {
            let bytes = &input[start..];
            if self.crlf.is_none() {
                check_first_byte(bytes)?;
            }
            if self.searched == self.line
                && let Some(end) = self.parse_fast_outlined(bytes, limits)?
            {
                return Ok(Progress::Complete { start, end: start + end });
            }
            let Some(found) = memchr::memchr(b'\n', &bytes[self.searched..]) else {
                self.check_line_length(bytes, bytes.len() - self.line, limits)?;
                self.searched = bytes.len();
                return Ok(Progress::NeedMore { skipped: start });
            };
            let end = self.searched + found;
            self.check_line_length(bytes, end - self.line, limits)?;
            self.searched = end + 1;
            let crlf = end > self.line && bytes[end - 1] == b'\r';
            let line = self.line..end - usize::from(crlf);
            if self.crlf.is_none() && line.is_empty() {
                start += end + 1;
                self.searched = 0;
                self.blank_lines += 1;
                if self.blank_lines > BLANK_LINES_MAX {
                    return Err(Error::BlankLines);
                }
                continue;
            }
            if self.line == 0 {
                self.crlf = Some(crlf);
                self.read_request_line(&bytes[line], limits)?;
            } else if self.crlf != Some(crlf) {
                return Err(Error::MixedLineEndings);
            } else if line.is_empty() {
                self.check_head()?;
                return Ok(Progress::Complete { start, end: start + end + 1 });
            } else {
                self.read_field_line(bytes, line, limits)?;
            }
            self.line = end + 1;
        }
    }

    /// Enforces the limits on the current line before it is parsed. `len` is its length so far.
    fn check_line_length(&mut self, bytes: &[u8], len: usize, limits: &Limits) -> Result<(), Error> {
        let request_line_max = limits.target_bytes_max.saturating_add(REQUEST_LINE_EXTRA);
        if self.line == 0 && len > request_line_max {
            return Err(self.classify_overlong_line(&bytes[..request_line_max]));
        }
        if self.line + len >= limits.head_bytes_capped() { Err(Error::HeadTooLarge) } else { Ok(()) }
    }

    /// Determines which part of an overlong request line is too long.
    #[cold]
    fn classify_overlong_line(&mut self, seen: &[u8]) -> Error {
        if seen.starts_with(b"HEAD ") {
            self.flags.set(HeadFlags::HEAD_METHOD);
        }
        match memchr::memchr(b' ', seen) {
            None if is_token(seen) => Error::MethodTooLong,
            None => Error::NotHttp,
            Some(method_len) if is_token(&seen[..method_len]) => Error::TargetTooLong,
            Some(_) => Error::Method,
        }
    }

    fn read_request_line(&mut self, line: &[u8], limits: &Limits) -> Result<(), Error> {
        let method_len = memchr::memchr(b' ', line).ok_or(Error::RequestLine)?;
        let (method, rest) = (&line[..method_len], &line[method_len + 1..]);
        if !is_token(method) {
            return Err(Error::Method);
        }
        if method == b"HEAD" {
            self.flags.set(HeadFlags::HEAD_METHOD);
        }
        let target_len = memchr::memchr(b' ', rest).ok_or(Error::RequestLine)?;
        let (target, version) = (&rest[..target_len], &rest[target_len + 1..]);
        if target.is_empty() {
            return Err(Error::RequestLine);
        }
        if read_version(version)? == Version::Http10 {
            self.flags.set(HeadFlags::HTTP10);
        }
        if target.len() > limits.target_bytes_max {
            return Err(Error::TargetTooLong);
        }
        self.form = syntax::check_target(method, target)?;
        self.method = Span::new(0, method_len);
        self.target = Span::new(method_len + 1, target_len);
        Ok(())
    }

    fn read_field_line(&mut self, bytes: &[u8], line: std::ops::Range<usize>, limits: &Limits) -> Result<(), Error> {
        let start = line.start;
        let line = &bytes[line];
        let name_len = line.iter().position(|&byte| !TOKEN[byte as usize]).ok_or(Error::HeaderLine)?;
        match line[name_len] {
            b':' if name_len > 0 => {}
            b' ' | b'\t' if name_len == 0 => return Err(Error::Folded),
            _ => return Err(Error::HeaderName),
        }
        if self.fields.len() >= limits.headers_max {
            return Err(Error::TooManyHeaders);
        }
        let raw = &line[name_len + 1..];
        let value = trim(raw);
        if !is_header_value(value) {
            return Err(Error::HeaderValue);
        }
        let padding = if value.is_empty() { 0 } else { raw.len() - raw.trim_ascii_start().len() };
        let value_start = name_len + 1 + padding;
        let span = FieldSpan { name_end: name_len, value_start, value_end: value_start + value.len() };
        self.record_outlined(&bytes[start..], span)?;
        self.fields.push(span.at(start));
        Ok(())
    }
}

/// Rejects input that cannot start a request as soon as possible: a TLS `ClientHello`, for example, may not contain any
/// line ending.
fn check_first_byte(bytes: &[u8]) -> Result<(), Error> {
    match bytes {
        [] | [b'\r'] | [b'\r', b'\n', ..] | [b'\n', ..] => Ok(()),
        [first, ..] if TOKEN[*first as usize] => Ok(()),
        _ => Err(Error::NotHttp),
    }
}

/// Parses an HTTP version (RFC 9112 section 2.3): case-sensitive, one digit on each side of the dot.
fn read_version(version: &[u8]) -> Result<Version, Error> {
    match version {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
            if *major == b'1' {
                Ok(Version::Http11)
            } else {
                Err(Error::VersionUnsupported)
            }
        }
        _ => Err(Error::Version),
    }
}

impl Head {
    /// Out-of-line version of [`Head::parse_fast`].
    #[inline(never)]
    fn parse_fast_outlined(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, Error> {
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
        let name_end = syntax::find_non_host(rest, HOST.len());
        let value_end = if rest.get(name_end) == Some(&b':') { port_end(rest, name_end + 1) } else { name_end };
        if name_end == HOST.len() || !rest[value_end..].starts_with(b"\r\n") {
            return;
        }
        self.flags.set(HeadFlags::HOST);
        let span = FieldSpan { name_end: HOST.len() - b": ".len(), value_start: HOST.len(), value_end };
        self.fields.push(span.at(self.line));
        self.line += value_end + 2;
    }

    /// Parses the field lines that begin in the last [`syntax::BLOCK`] bytes of the input, where the scan has to load a
    /// block that begins before the line. Returns whether the empty line that ends the head follows.
    #[inline(never)]
    fn read_tail_fields_fast(&mut self, bytes: &[u8], limits: &Limits) -> Result<bool, Error> {
        while bytes.len() - self.line < syntax::BLOCK && self.fields.len() < limits.headers_max {
            let rest = &bytes[self.line..];
            if rest.starts_with(b"\r\n") {
                return Ok(true);
            }
            let name_end = syntax::find_non_name(bytes, self.line) - self.line;
            let value_end = syntax::find_unprintable(bytes, self.line) - self.line;
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
        let target_len = syntax::path_and_query_len(after);
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
        let method_len = syntax::find_non_name(bytes, 0);
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
    let (non_names, ends) = syntax::field_masks(rest.first_chunk()?);
    // Keep searching if the name or value extends beyond the first block.
    let name_end = if non_names == 0 { syntax::find_non_name(rest, 0) } else { non_names.trailing_zeros() as usize };
    let value_end =
        || if ends == 0 { syntax::find_unprintable(rest, name_end) } else { ends.trailing_zeros() as usize };
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

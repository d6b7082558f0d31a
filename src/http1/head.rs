//! A request head: its incremental parser, the fields that the parser interprets, and the rules that involve several of
//! them.
//!
//! A head stores offsets, not slices, so it stays valid when the input buffer moves. It remembers its position: every
//! byte is searched once and every line is parsed once, however the input is fragmented. A line is parsed only when it
//! is complete, or rejected when it exceeds a limit, so fragmentation never changes the outcome.
//!
//! The fast path parses, in one pass, lines of the form that almost every client sends. The target begins with `/`,
//! names consist of letters and `-`, each value follows one space or none, and lines end in CRLF. Any other line, and
//! any incomplete one, is left to [`Head::parse`], which also determines the error if there is one. The fast path
//! accepts nothing that the general parser would reject, and produces the same result with less work per byte.
//!
//! A function with the suffix `_outlined` is the out-of-line version of an inlined function, for use outside the hot
//! path.

use super::error::{Error, HEAD_BYTES_MAX, Limits};
use super::syntax::{
    self, FieldSpan, TOKEN, TargetForm, eq_lower, is_header_value, is_token, list_elements, split_field,
    split_field_at, trim,
};

/// Maximum number of empty lines skipped before a request line (RFC 9112 section 2.2 recommends at least one).
const BLANK_LINES_MAX: u8 = 8;

/// Maximum length of a request line without its target: a method, two spaces, a version.
const REQUEST_LINE_EXTRA: usize = 64;

/// The beginning of a Host field in its usual form.
const HOST: &[u8] = b"Host: ";

/// The HTTP version of a request. A higher minor version counts as 1.1 (RFC 9110 section 2.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
}

/// The framing of the body of a request (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    #[default]
    None,
    /// By Content-Length, in bytes.
    Length(u64),
    /// By the chunked transfer coding.
    Chunked,
}

/// A range of bytes in the head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Span {
    start: u16,
    len: u16,
}

impl Span {
    /// Creates a span. Both numbers fit in 16 bits: a head is at most 64 KiB, and no span includes its last byte.
    #[allow(clippy::cast_possible_truncation)]
    fn new(start: usize, len: usize) -> Self {
        debug_assert!(start <= 0xffff && len <= 0xffff);
        Span { start: start as u16, len: len as u16 }
    }

    #[inline]
    fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..self.start as usize + self.len as usize]
    }
}

impl Limits {
    /// Returns the limit on the size of a head, at most [`HEAD_BYTES_MAX`].
    pub(super) fn head_bytes_capped(&self) -> usize {
        self.head_bytes_max.min(HEAD_BYTES_MAX)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    name: Span,
    value: Span,
}

impl FieldSpan {
    /// Converts to offsets in the head. The line begins at `start`.
    #[inline]
    fn at(self, start: usize) -> Field {
        let value = Span::new(start + self.value_start, self.value_end - self.value_start);
        Field { name: Span::new(start, self.name_end), value }
    }
}

/// The transfer codings listed by the Transfer-Encoding lines parsed so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Codings {
    #[default]
    None,
    /// Only unknown codings.
    Unknown,
    /// Only chunked.
    Chunked,
    /// Unknown codings, then chunked.
    UnknownThenChunked,
}

/// Flags extracted while parsing, so that common checks are one mask test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct HeadFlags(u16);

impl HeadFlags {
    /// A Host header is present.
    const HOST: u16 = 1;
    /// The version is HTTP/1.0.
    const HTTP10: u16 = 1 << 1;
    /// The method is HEAD, so responses have no content; set before the rest of the request line is validated.
    const HEAD_METHOD: u16 = 1 << 2;
    /// `Connection: close`.
    const CLOSE: u16 = 1 << 3;
    /// `Connection: keep-alive`.
    const KEEP_ALIVE: u16 = 1 << 4;
    /// A Content-Length header is present.
    const CONTENT_LENGTH: u16 = 1 << 5;
    /// A Transfer-Encoding header is present.
    const TRANSFER_ENCODING: u16 = 1 << 6;
    /// `Expect: 100-continue`.
    const EXPECT_CONTINUE: u16 = 1 << 7;
    /// An expectation other than 100-continue is present.
    const EXPECT_OTHER: u16 = 1 << 8;
    /// A header that may be a precondition is present.
    const CONDITIONAL: u16 = 1 << 9;

    #[inline]
    fn set(&mut self, flags: u16) {
        self.0 |= flags;
    }

    /// Returns whether any of `flags` is set.
    #[inline]
    fn any(self, flags: u16) -> bool {
        self.0 & flags != 0
    }
}

/// A parsed request head, or the state of a partially parsed one.
///
/// Stores offsets only: the accessors that return slices take the bytes the head was parsed from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    method: Span,
    target: Span,
    form: TargetForm,
    flags: HeadFlags,
    fields: Vec<Field>,
    content_length: Option<u64>,
    codings: Codings,
    /// The start of the first line that has not been parsed.
    line: usize,
    /// The offset up to which the input has been searched for a line ending.
    searched: usize,
    blank_lines: u8,
    /// `Some(true)` if lines end in CRLF; `None` before the first line.
    crlf: Option<bool>,
}

impl Head {
    /// Clears the head but keeps its allocation.
    pub(super) fn reset(&mut self) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        *self = Head { fields, ..Head::default() };
    }

    /// Returns whether part of a head has been received.
    pub(super) fn has_begun(&self) -> bool {
        self.searched > 0
    }

    /// Out-of-line version of [`Head::record`].
    #[inline(never)]
    fn record_outlined(&mut self, line: &[u8], span: FieldSpan) -> Result<(), Error> {
        self.record(line, span)
    }

    /// Records the fields that the parser interprets: Host, Expect, preconditions, and those that determine message
    /// framing or connection persistence. Ignores all others.
    #[allow(clippy::inline_always, reason = "for most names a call would cost more than the check")]
    #[inline(always)]
    fn record(&mut self, line: &[u8], span: FieldSpan) -> Result<(), Error> {
        let FieldSpan { name_end, value_start, value_end } = span;
        let (name, value) = (&line[..name_end], &line[value_start..value_end]);
        match name.len() {
            4 if eq_lower(name, b"host") => self.record_host(line, value_start, value),
            // If-Match, If-Range, If-None-Match, If-Modified-Since, If-Unmodified-Since.
            8 | 13 | 17 | 19 if name[..3].eq_ignore_ascii_case(b"if-") => {
                self.flags.set(HeadFlags::CONDITIONAL);
                Ok(())
            }
            6 if eq_lower(name, b"expect") => {
                self.record_expect(value);
                Ok(())
            }
            10 if eq_lower(name, b"connection") => {
                self.record_connection(value);
                Ok(())
            }
            14 if eq_lower(name, b"content-length") => self.record_content_length(value),
            17 if eq_lower(name, b"transfer-encoding") => self.record_transfer_encoding(value),
            _ => Ok(()),
        }
    }

    #[inline(never)]
    fn record_host(&mut self, line: &[u8], start: usize, value: &[u8]) -> Result<(), Error> {
        if self.flags.any(HeadFlags::HOST) {
            return Err(Error::HostRepeated);
        }
        self.flags.set(HeadFlags::HOST);
        // The scan stops at the end of the value at the latest: the next byte is CR, LF or whitespace.
        let name_len = syntax::find_non_host_outlined(line, start) - start;
        let is_port = |port: &[u8]| matches!(port, [] | [b':', ..]) && port.iter().skip(1).all(u8::is_ascii_digit);
        let is_simple = name_len > 0 && value.get(name_len..).is_some_and(is_port);
        if is_simple || syntax::is_authority(value) { Ok(()) } else { Err(Error::Host) }
    }

    #[inline(never)]
    fn record_expect(&mut self, value: &[u8]) {
        for element in list_elements(value) {
            let is_continue = element.eq_ignore_ascii_case(b"100-continue");
            self.flags.set(if is_continue { HeadFlags::EXPECT_CONTINUE } else { HeadFlags::EXPECT_OTHER });
        }
    }

    /// Records connection options: a case-insensitive list (RFC 9110 section 7.6.1).
    #[inline]
    fn record_connection(&mut self, value: &[u8]) {
        if eq_lower(value, b"keep-alive") {
            self.flags.set(HeadFlags::KEEP_ALIVE);
        } else if eq_lower(value, b"close") {
            self.flags.set(HeadFlags::CLOSE);
        } else {
            self.record_connection_options(value);
        }
    }

    #[inline(never)]
    fn record_connection_options(&mut self, value: &[u8]) {
        for option in list_elements(value) {
            if option.eq_ignore_ascii_case(b"close") {
                self.flags.set(HeadFlags::CLOSE);
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.flags.set(HeadFlags::KEEP_ALIVE);
            }
        }
    }

    #[inline(never)]
    fn record_content_length(&mut self, value: &[u8]) -> Result<(), Error> {
        if self.content_length.is_some() || value.contains(&b',') {
            return Err(if list_elements(value).all(is_digits) {
                Error::ContentLengthRepeated
            } else {
                Error::ContentLength
            });
        }
        if !is_digits(value) {
            return Err(Error::ContentLength);
        }
        // A number that overflows saturates: it is still a valid length, larger than any limit.
        let number =
            value.iter().fold(0_u64, |sum, digit| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0')));
        self.content_length = Some(number);
        self.flags.set(HeadFlags::CONTENT_LENGTH);
        Ok(())
    }

    /// Records transfer codings (RFC 9112 sections 6.1, 6.3 and 7).
    #[inline(never)]
    fn record_transfer_encoding(&mut self, value: &[u8]) -> Result<(), Error> {
        self.flags.set(HeadFlags::TRANSFER_ENCODING);
        let mut codings = 0;
        for coding in list_elements(value) {
            codings += 1;
            let name_len = coding.iter().position(|&byte| !TOKEN[byte as usize]).unwrap_or(coding.len());
            let (name, parameters) = coding.split_at(name_len);
            let chunked = name.eq_ignore_ascii_case(b"chunked");
            self.codings = match self.codings {
                Codings::Chunked | Codings::UnknownThenChunked => {
                    return Err(Error::TransferEncoding);
                }
                _ if chunked && !parameters.is_empty() => return Err(Error::TransferEncoding),
                _ if name.is_empty() => return Err(Error::TransferEncoding),
                Codings::None if chunked => Codings::Chunked,
                Codings::Unknown if chunked => Codings::UnknownThenChunked,
                _ => Codings::Unknown,
            };
        }
        // Recipients may differ in how they treat a Transfer-Encoding line without a coding.
        if codings == 0 { Err(Error::TransferEncoding) } else { Ok(()) }
    }

    /// Checks the rules that involve several parts of the head.
    #[inline]
    fn check_head(&self) -> Result<(), Error> {
        const RELEVANT: u16 =
            HeadFlags::HOST | HeadFlags::HTTP10 | HeadFlags::TRANSFER_ENCODING | HeadFlags::EXPECT_OTHER;
        if self.flags.0 & RELEVANT == HeadFlags::HOST { Ok(()) } else { self.check_head_general() }
    }

    /// General case of [`Head::check_head`], for all heads except those where Host is the only relevant flag.
    #[inline(never)]
    fn check_head_general(&self) -> Result<(), Error> {
        let version = self.version();
        if version == Version::Http11 && !self.flags.any(HeadFlags::HOST) {
            return Err(Error::HostMissing);
        }
        match self.codings {
            Codings::None => {}
            _ if version == Version::Http10 => return Err(Error::FramingInHttp10),
            _ if self.content_length.is_some() => return Err(Error::BothFramings),
            // Section 6.3 requires 400 if chunked is not last; section 6.1 only recommends 501.
            Codings::Unknown => return Err(Error::TransferEncoding),
            Codings::UnknownThenChunked => return Err(Error::UnknownCoding),
            Codings::Chunked => {}
        }
        // RFC 9110 section 10.1.1: an expectation in HTTP/1.0 is ignored.
        let is_unsupported = self.flags.any(HeadFlags::EXPECT_OTHER) && version == Version::Http11;
        if is_unsupported { Err(Error::Expectation) } else { Ok(()) }
    }

    /// Returns how the body is delimited.
    #[inline]
    pub fn framing(&self) -> Framing {
        if !self.flags.any(HeadFlags::CONTENT_LENGTH | HeadFlags::TRANSFER_ENCODING) {
            return Framing::None;
        }
        match (self.codings, self.content_length) {
            (Codings::None, None | Some(0)) => Framing::None,
            (Codings::None, Some(length)) => Framing::Length(length),
            _ => Framing::Chunked,
        }
    }

    /// Returns whether the client allows the connection to persist after this request (RFC 9112 section 9.3).
    pub fn is_persistent(&self) -> bool {
        !self.flags.any(HeadFlags::CLOSE)
            && (self.version() == Version::Http11 || self.flags.any(HeadFlags::KEEP_ALIVE))
    }

    /// Returns whether the fast path for responses applies: HTTP/1.1, a persistent connection, neither HEAD nor
    /// CONNECT.
    #[inline]
    pub(crate) fn allows_fast_response(&self) -> bool {
        // Only CONNECT uses authority-form.
        !self.flags.any(HeadFlags::HTTP10 | HeadFlags::CLOSE | HeadFlags::HEAD_METHOD)
            && self.form != TargetForm::Authority
    }

    /// Returns whether the client expects 100 (Continue) before it sends the body (RFC 9110 section 10.1.1).
    pub fn expects_continue(&self) -> bool {
        self.flags.any(HeadFlags::EXPECT_CONTINUE) && self.version() == Version::Http11
    }

    /// Returns whether the method is HEAD, in which case no response has content, not even an error response (RFC 9110
    /// section 9.3.2). Valid as soon as the method has been parsed, even if the rest of the head is rejected.
    pub fn is_head_method(&self) -> bool {
        self.flags.any(HeadFlags::HEAD_METHOD)
    }

    /// Returns whether the headers may contain a precondition (RFC 9110 section 13.1). If `false`, there is none.
    pub fn is_conditional(&self) -> bool {
        self.flags.any(HeadFlags::CONDITIONAL)
    }

    /// Returns the HTTP version.
    pub fn version(&self) -> Version {
        if self.flags.any(HeadFlags::HTTP10) { Version::Http10 } else { Version::Http11 }
    }

    /// Returns the form of the request target.
    pub fn form(&self) -> TargetForm {
        self.form
    }

    /// Returns the method. `bytes` must be the bytes this head was parsed from.
    #[inline]
    pub fn method<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        self.method.of(bytes)
    }

    /// Returns the request target. `bytes` must be the bytes this head was parsed from.
    #[inline]
    pub fn target<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        self.target.of(bytes)
    }

    /// Returns the headers in order: names in their original case, values without surrounding whitespace. `bytes` must
    /// be the bytes this head was parsed from.
    pub fn headers<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.fields.iter().map(|field| (field.name.of(bytes), field.value.of(bytes)))
    }

    /// Returns the headers as [`Head::headers`] does, but only those whose names have one of these lengths: bit `n` for
    /// names of `n` bytes, and bit 63 for all longer ones.
    #[inline]
    pub(crate) fn headers_with_lengths<'a>(
        &'a self,
        bytes: &'a [u8],
        lengths: u64,
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let fields = self.fields.iter().filter(move |field| lengths >> field.name.len.min(63) & 1 == 1);
        fields.map(|field| (field.name.of(bytes), field.value.of(bytes)))
    }
}

fn is_digits(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(u8::is_ascii_digit)
}

/// The result of [`Head::parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The head is incomplete. `skipped` bytes of empty lines before it have been consumed.
    NeedMore { skipped: usize },
    /// The head is complete: it is `input[start..end]`.
    Complete { start: usize, end: usize },
}

impl Head {
    /// Continues parsing. `input` must start with the same bytes as in the previous call, except for those the previous
    /// call skipped.
    pub(super) fn parse(&mut self, input: &[u8], limits: &Limits) -> Result<Progress, Error> {
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
    pub(super) fn parse_fast(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, Error> {
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

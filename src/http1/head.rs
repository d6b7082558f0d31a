//! A request head: the fields that the parser interprets, the rules that involve several of them, and the limits on
//! its size.
//!
//! A head stores offsets, not slices, so it stays valid when the input buffer moves.
//!
//! A function with the suffix `_outlined` is the out-of-line version of an inlined function, for use outside the hot
//! path.

use super::error::Error;
use super::syntax::{self, TOKEN, TargetForm, eq_lower, list_elements};

mod parse;

pub(super) use parse::Progress;

/// Maximum size of a head in bytes, since offsets within a head are stored as 16-bit integers.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Limits on the size of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Maximum size of the request line and headers in bytes, line endings included. Default: [`HEAD_BYTES_MAX`], which
    /// is also the upper bound. A larger head gets 431.
    pub head_bytes_max: usize,
    /// Maximum number of headers, and of trailers. Default: 100, more than twice what browsers send. A request with
    /// more gets 431.
    pub headers_max: usize,
    /// Maximum size of a request target in bytes. Default: 8 KiB, slightly more than the 8,000 octets that RFC 9112
    /// section 3 recommends as the minimum for a request line. A larger target gets 414.
    pub target_bytes_max: usize,
    /// Maximum size of a body in bytes. Default: 1 MiB, since bodies are collected in memory by default. A larger body
    /// gets 413.
    pub body_bytes_max: u64,
    /// Maximum size of a trailer section in bytes; it is held in memory. Default: 8 KiB. A larger one gets 431.
    pub trailer_bytes_max: usize,
}

impl Limits {
    setters! {
        head_bytes_max: usize,
        headers_max: usize,
        target_bytes_max: usize,
        body_bytes_max: u64,
        trailer_bytes_max: usize,
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            head_bytes_max: HEAD_BYTES_MAX,
            headers_max: 100,
            target_bytes_max: 8 * 1024,
            body_bytes_max: 1024 * 1024,
            trailer_bytes_max: 8 * 1024,
        }
    }
}

impl Limits {
    /// Returns the limit on the size of a head, at most [`HEAD_BYTES_MAX`].
    pub(super) fn head_bytes_capped(&self) -> usize {
        self.head_bytes_max.min(HEAD_BYTES_MAX)
    }
}

/// The HTTP version of a request. A higher minor version counts as 1.1 (RFC 9110 section 2.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
}

/// How the body of a request is delimited (RFC 9112 section 6.3).
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    name: Span,
    value: Span,
}

/// Offsets of the name and value of a field within its line.
#[derive(Clone, Copy)]
struct FieldSpan {
    name_end: usize,
    value_start: usize,
    value_end: usize,
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
    /// Whether lines end in CRLF; `None` before the first line.
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
}

fn is_digits(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(u8::is_ascii_digit)
}

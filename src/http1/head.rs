//! The head of a request: request line and fields, read line by line, and the rules that hold between them.
//!
//! The parser keeps offsets, not slices, so what it found stays valid when the bytes move, and it remembers
//! how far it has read: however the input is cut, every octet is searched once and every line read once.
//! A line is judged only when it is whole, or longer than allowed, so cutting never changes the verdict.
//!
//! Choices the RFC leaves open, each taken so that no proxy can read it differently:
//!
//! - Lines end all in CRLF or all in a bare LF (RFC 9112 section 2.2 permits LF; a person in netcat types it);
//!   a mixture is refused, and a bare CR is refused everywhere.
//! - One SP, and no other white space, separates the words of the request line (section 3).
//! - A repeated Content-Length is refused even when the values are equal (section 6.3).
//! - Transfer-Encoding together with Content-Length, or in HTTP/1.0, is refused (section 6.1).
//! - Folded lines are refused (section 5.2), and so are control octets in values (RFC 9110 section 5.5).
//! - An empty Host is refused: an http URI has a host (RFC 9110 section 4.2.1).

use super::Limits;
use super::error::Error;
use super::scan::{self, is_word};
use super::target::{self, Form};

mod plain;

/// Empty lines before a request line that are skipped (RFC 9112 section 2.2 asks for at least one).
const BLANK_LINES_MAX: u8 = 8;

/// What a request line has besides its target: a method, two spaces, a version.
const REQUEST_LINE_EXTRA: usize = 64;

/// HTTP/1.0 or HTTP/1.1; a higher minor version counts as 1.1 (RFC 9110 section 2.5).
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
    /// There is none.
    #[default]
    None,
    /// By Content-Length.
    Length(u64),
    /// By chunks.
    Chunked,
}

/// A stretch of the head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Span {
    start: u16,
    len: u16,
}

impl Span {
    /// Heads are at most 64 KiB, and the last octets of a head belong to no span: both numbers fit.
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

/// Where the parts of a field stand in its line.
#[derive(Clone, Copy)]
struct Place {
    name_end: usize,
    value_start: usize,
    value_end: usize,
}

impl Place {
    /// The field in a head, so many octets behind its beginning.
    #[inline]
    fn behind(self, start: usize) -> Field {
        let value = Span::new(start + self.value_start, self.value_end - self.value_start);
        Field { name: Span::new(start, self.name_end), value }
    }
}

/// What the Transfer-Encoding lines have said so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Codings {
    #[default]
    None,
    /// Codings that are not understood, and chunked is not yet among them.
    Unknown,
    /// chunked came last, and alone.
    Chunked,
    /// chunked came last, after others.
    UnknownThenChunked,
}

/// What a head says besides its words, a bit for each, so that one look tells whether there is any of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Marks(u16);

impl Marks {
    /// There is a Host.
    const HOST: u16 = 1;
    /// HTTP/1.0.
    const OLD: u16 = 1 << 1;
    /// The method is HEAD, so that no response has content; known before the rest of the request line is judged.
    const CONTENTLESS: u16 = 1 << 2;
    /// Connection: close.
    const CLOSE: u16 = 1 << 3;
    /// Connection: keep-alive.
    const KEEP_ALIVE: u16 = 1 << 4;
    /// There is a Content-Length.
    const LENGTH: u16 = 1 << 5;
    /// There is a Transfer-Encoding.
    const CODINGS: u16 = 1 << 6;
    /// Expect: 100-continue.
    const EXPECT_CONTINUE: u16 = 1 << 7;
    /// Another expectation.
    const EXPECT_OTHER: u16 = 1 << 8;
    /// A precondition.
    const CONDITIONAL: u16 = 1 << 9;

    #[inline]
    fn set(&mut self, marks: u16) {
        self.0 |= marks;
    }

    /// Whether any of these is set.
    #[inline]
    fn any(self, marks: u16) -> bool {
        self.0 & marks != 0
    }
}

/// A parsed head, or the part of it read so far. Without the bytes it was read from it means nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    method: Span,
    target: Span,
    form: Form,
    marks: Marks,
    fields: Vec<Field>,
    content_length: Option<u64>,
    codings: Codings,
    /// Where the line that is not whole yet begins, and how far a line end has been looked for.
    line: usize,
    searched: usize,
    blank_lines: u8,
    /// Whether lines end in CRLF; known after the first.
    crlf: Option<bool>,
}

/// How far a head has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It is not whole. So many octets of empty lines before it are done with.
    More { skipped: usize },
    /// It stands between these offsets.
    Whole { start: usize, end: usize },
}

/// Which octets may stand in a token (RFC 9110 section 5.6.2).
pub(super) const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut octet = 0_u8;
    while octet < 128 {
        let byte = octet;
        table[octet as usize] = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            );
        octet += 1;
    }
    table
};

/// Which octets may stand in a field value: VCHAR, SP, HTAB, obs-text (RFC 9110 section 5.5).
pub(super) const VALUE: [bool; 256] = {
    let mut table = [true; 256];
    let mut octet = 0;
    while octet < 32 {
        table[octet] = octet == 9;
        octet += 1;
    }
    table[127] = false;
    table
};

/// Whether these octets are a token.
pub fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|&byte| TOKEN[byte as usize])
}

/// Whether these octets may be a field value.
pub fn is_field_value(bytes: &[u8]) -> bool {
    let plain = scan::control(bytes, 0);
    bytes[plain..].iter().all(|&byte| VALUE[byte as usize])
}

/// Without the optional white space around it (RFC 9110 section 5.6.3).
pub(super) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// The elements of a list, without the empty ones (RFC 9110 section 5.6.1).
pub(super) fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(trim).filter(|element| !element.is_empty())
}

impl Head {
    /// Forgets everything but the memory it holds.
    pub(super) fn reset(&mut self) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        *self = Head { fields, ..Head::default() };
    }

    /// Whether something of a head has been read.
    pub(super) fn has_begun(&self) -> bool {
        self.searched > 0
    }

    /// Reads on. `input` begins where it began the last time, less what was skipped then.
    pub(super) fn parse(&mut self, input: &[u8], limits: &Limits) -> Result<Progress, Error> {
        let mut start = 0;
        loop {
            let bytes = &input[start..];
            if self.crlf.is_none() {
                check_first_octets(bytes)?;
            }
            if self.searched == self.line
                && let Some(end) = self.read_plain_lines_apart(bytes, limits)?
            {
                return Ok(Progress::Whole { start, end: start + end });
            }
            let Some(found) = memchr::memchr(b'\n', &bytes[self.searched..]) else {
                self.check_unfinished(bytes, bytes.len() - self.line, limits)?;
                self.searched = bytes.len();
                return Ok(Progress::More { skipped: start });
            };
            let end = self.searched + found;
            self.check_unfinished(bytes, end - self.line, limits)?;
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
                return Err(Error::MixedLineEnds);
            } else if line.is_empty() {
                self.check_whole()?;
                return Ok(Progress::Whole { start, end: start + end + 1 });
            } else {
                self.read_field_line(bytes, line, limits)?;
            }
            self.line = end + 1;
        }
    }

    /// The limits that hold for a line before its end is seen. `len` is what there is of it.
    fn check_unfinished(&mut self, bytes: &[u8], len: usize, limits: &Limits) -> Result<(), Error> {
        let request_line_max = limits.target_bytes_max.saturating_add(REQUEST_LINE_EXTRA);
        if self.line == 0 && len > request_line_max {
            return Err(self.judge_long_line(&bytes[..request_line_max]));
        }
        if self.line + len >= limits.head_bytes_max() { Err(Error::HeadTooLarge) } else { Ok(()) }
    }

    /// What is too long in a request line that is.
    #[cold]
    fn judge_long_line(&mut self, seen: &[u8]) -> Error {
        if seen.starts_with(b"HEAD ") {
            self.marks.set(Marks::CONTENTLESS);
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
            self.marks.set(Marks::CONTENTLESS);
        }
        let target_len = memchr::memchr(b' ', rest).ok_or(Error::RequestLine)?;
        let (target, version) = (&rest[..target_len], &rest[target_len + 1..]);
        if target.is_empty() {
            return Err(Error::RequestLine);
        }
        if read_version(version)? == Version::Http10 {
            self.marks.set(Marks::OLD);
        }
        if target.len() > limits.target_bytes_max {
            return Err(Error::TargetTooLong);
        }
        self.form = target::check(method, target)?;
        self.method = Span::new(0, method_len);
        self.target = Span::new(method_len + 1, target_len);
        Ok(())
    }

    fn read_field_line(&mut self, bytes: &[u8], line: std::ops::Range<usize>, limits: &Limits) -> Result<(), Error> {
        let start = line.start;
        let line = &bytes[line];
        let name_len = line.iter().position(|&byte| !TOKEN[byte as usize]).ok_or(Error::FieldLine)?;
        match line[name_len] {
            b':' if name_len > 0 => {}
            b' ' | b'\t' if name_len == 0 => return Err(Error::Folded),
            _ => return Err(Error::FieldName),
        }
        if self.fields.len() >= limits.fields_max {
            return Err(Error::TooManyFields);
        }
        let raw = &line[name_len + 1..];
        let value = trim(raw);
        if !is_field_value(value) {
            return Err(Error::FieldValue);
        }
        let padding = if value.is_empty() { 0 } else { raw.len() - raw.trim_ascii_start().len() };
        let value_start = name_len + 1 + padding;
        let place = Place { name_end: name_len, value_start, value_end: value_start + value.len() };
        self.mark_apart(&bytes[start..], place)?;
        self.fields.push(place.behind(start));
        Ok(())
    }

    /// The same where it is not on the way of every field.
    #[inline(never)]
    fn mark_apart(&mut self, line: &[u8], place: Place) -> Result<(), Error> {
        self.mark(line, place)
    }

    /// Notes the fields that frame the message or steer the connection.
    #[allow(clippy::inline_always, reason = "the call would cost more than the look at most names")]
    #[inline(always)]
    fn mark(&mut self, line: &[u8], place: Place) -> Result<(), Error> {
        let Place { name_end, value_start, value_end } = place;
        let (name, value) = (&line[..name_end], &line[value_start..value_end]);
        match name.len() {
            4 if is_word(name, b"host") => self.mark_host(line, value_start, value),
            // If-Match, If-Range, If-None-Match, If-Modified-Since, If-Unmodified-Since.
            8 | 13 | 17 | 19 if name[..3].eq_ignore_ascii_case(b"if-") => {
                self.marks.set(Marks::CONDITIONAL);
                Ok(())
            }
            6 if is_word(name, b"expect") => {
                self.mark_expect(value);
                Ok(())
            }
            10 if is_word(name, b"connection") => {
                self.mark_connection(value);
                Ok(())
            }
            14 if is_word(name, b"content-length") => self.mark_content_length(value),
            17 if is_word(name, b"transfer-encoding") => self.mark_codings(value),
            _ => Ok(()),
        }
    }

    #[inline(never)]
    fn mark_host(&mut self, line: &[u8], start: usize, value: &[u8]) -> Result<(), Error> {
        if self.marks.any(Marks::HOST) {
            return Err(Error::HostRepeated);
        }
        self.marks.set(Marks::HOST);
        // What follows the value ends the name as well.
        let name_len = scan::other_than_host(line, start) - start;
        let is_port = |port: &[u8]| matches!(port, [] | [b':', ..]) && port.iter().skip(1).all(u8::is_ascii_digit);
        let is_usual = name_len > 0 && value.get(name_len..).is_some_and(is_port);
        if is_usual || target::is_authority(value) { Ok(()) } else { Err(Error::Host) }
    }

    #[inline(never)]
    fn mark_expect(&mut self, value: &[u8]) {
        for element in elements(value) {
            let is_continue = element.eq_ignore_ascii_case(b"100-continue");
            self.marks.set(if is_continue { Marks::EXPECT_CONTINUE } else { Marks::EXPECT_OTHER });
        }
    }

    /// RFC 9110 section 7.6.1: a list of case-insensitive options.
    #[inline]
    fn mark_connection(&mut self, value: &[u8]) {
        if is_word(value, b"keep-alive") {
            self.marks.set(Marks::KEEP_ALIVE);
        } else if is_word(value, b"close") {
            self.marks.set(Marks::CLOSE);
        } else {
            self.mark_options(value);
        }
    }

    #[inline(never)]
    fn mark_options(&mut self, value: &[u8]) {
        for option in elements(value) {
            if option.eq_ignore_ascii_case(b"close") {
                self.marks.set(Marks::CLOSE);
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.marks.set(Marks::KEEP_ALIVE);
            }
        }
    }

    #[inline(never)]
    fn mark_content_length(&mut self, value: &[u8]) -> Result<(), Error> {
        if self.content_length.is_some() || value.contains(&b',') {
            return Err(if elements(value).all(is_digits) {
                Error::ContentLengthRepeated
            } else {
                Error::ContentLength
            });
        }
        if !is_digits(value) {
            return Err(Error::ContentLength);
        }
        // A number that does not fit is a length all the same: larger than any limit.
        let number =
            value.iter().fold(0_u64, |sum, digit| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0')));
        self.content_length = Some(number);
        self.marks.set(Marks::LENGTH);
        Ok(())
    }

    /// RFC 9112 sections 6.1, 6.3 and 7.
    #[inline(never)]
    fn mark_codings(&mut self, value: &[u8]) -> Result<(), Error> {
        self.marks.set(Marks::CODINGS);
        let mut codings = 0;
        for coding in elements(value) {
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
        // A field without a coding says nothing a reader could rely on.
        if codings == 0 { Err(Error::TransferEncoding) } else { Ok(()) }
    }

    /// The rules that hold for the head as a whole.
    #[inline]
    fn check_whole(&self) -> Result<(), Error> {
        const WEIGHED: u16 = Marks::HOST | Marks::OLD | Marks::CODINGS | Marks::EXPECT_OTHER;
        if self.marks.0 & WEIGHED == Marks::HOST { Ok(()) } else { self.check_marks() }
    }

    /// The same where there is more than a Host to weigh.
    #[inline(never)]
    fn check_marks(&self) -> Result<(), Error> {
        let version = self.version();
        if version == Version::Http11 && !self.marks.any(Marks::HOST) {
            return Err(Error::HostMissing);
        }
        match self.codings {
            Codings::None => {}
            _ if version == Version::Http10 => return Err(Error::FramingInHttp10),
            _ if self.content_length.is_some() => return Err(Error::BothFramings),
            // Section 6.3 demands 400 where chunked does not come last; section 6.1 only advises 501.
            Codings::Unknown => return Err(Error::TransferEncoding),
            Codings::UnknownThenChunked => return Err(Error::UnknownCoding),
            Codings::Chunked => {}
        }
        // RFC 9110 section 10.1.1: an expectation in HTTP/1.0 is ignored.
        let is_refused = self.marks.any(Marks::EXPECT_OTHER) && version == Version::Http11;
        if is_refused { Err(Error::Expectation) } else { Ok(()) }
    }

    /// How the body is delimited.
    #[inline]
    pub fn framing(&self) -> Framing {
        if !self.marks.any(Marks::LENGTH | Marks::CODINGS) {
            return Framing::None;
        }
        match (self.codings, self.content_length) {
            (Codings::None, None | Some(0)) => Framing::None,
            (Codings::None, Some(length)) => Framing::Length(length),
            _ => Framing::Chunked,
        }
    }

    /// Whether the connection may go on after this request (RFC 9112 section 9.3).
    pub fn is_persistent(&self) -> bool {
        !self.marks.any(Marks::CLOSE) && (self.version() == Version::Http11 || self.marks.any(Marks::KEEP_ALIVE))
    }

    /// A request as almost all are: HTTP/1.1, after which the connection goes on, with an answer that has content.
    #[inline]
    pub(crate) fn is_usual(&self) -> bool {
        // Nothing but CONNECT has that form.
        !self.marks.any(Marks::OLD | Marks::CLOSE | Marks::CONTENTLESS) && self.form != Form::Authority
    }

    /// Whether the client waits for 100 (Continue) before it sends the body (RFC 9110 section 10.1.1).
    pub fn expects_continue(&self) -> bool {
        self.marks.any(Marks::EXPECT_CONTINUE) && self.version() == Version::Http11
    }

    /// Whether the method is HEAD, so that no response has content, a refusal neither (RFC 9110 section 9.3.2). Known
    /// as soon as the method is, whatever is wrong with the rest.
    pub fn is_for_head(&self) -> bool {
        self.marks.any(Marks::CONTENTLESS)
    }

    /// Whether there may be a precondition among the fields (RFC 9110 section 13.1); without one nobody need look.
    pub fn is_conditional(&self) -> bool {
        self.marks.any(Marks::CONDITIONAL)
    }

    /// The version.
    pub fn version(&self) -> Version {
        if self.marks.any(Marks::OLD) { Version::Http10 } else { Version::Http11 }
    }

    /// The form of the target.
    pub fn form(&self) -> Form {
        self.form
    }

    /// The method, in the bytes this head was read from.
    #[inline]
    pub fn method<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        self.method.of(bytes)
    }

    /// The target, in the bytes this head was read from.
    #[inline]
    pub fn target<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        self.target.of(bytes)
    }

    /// The fields in order, names as they came, values without the white space around them.
    pub fn fields<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.fields.iter().map(|field| (field.name.of(bytes), field.value.of(bytes)))
    }
}

fn is_digits(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(u8::is_ascii_digit)
}

/// What no request begins with is refused at once, so that a TLS hello does not wait for a line end that never comes.
fn check_first_octets(bytes: &[u8]) -> Result<(), Error> {
    match bytes {
        [] | [b'\r'] | [b'\r', b'\n', ..] | [b'\n', ..] => Ok(()),
        [first, ..] if TOKEN[*first as usize] => Ok(()),
        _ => Err(Error::NotHttp),
    }
}

/// RFC 9112 section 2.3: case-sensitive, one digit on each side of the dot.
fn read_version(word: &[u8]) -> Result<Version, Error> {
    match word {
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

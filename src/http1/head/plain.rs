//! The lines that almost every client sends, in one pass: a target that begins with `/`, names of letters and `-`,
//! no white space but one space before a value, CRLF.
//!
//! A line that is not like that, or not whole, is left as it is: the careful way in [`Head::parse`] reads it, and
//! tells what is wrong with it. So nothing is accepted here that would be refused there, and what is read is the
//! same; only the work per octet is less.

use super::super::scan;
use super::super::target::{self, Form};
use super::super::{Error, Limits};
use super::{Head, Marks, Place, REQUEST_LINE_EXTRA, Span};

const HOST: &[u8] = b"Host: ";

impl Head {
    /// [`Head::read_plain_lines`] where it is not on the way of every request.
    #[inline(never)]
    pub(super) fn read_plain_lines_apart(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, Error> {
        self.read_plain_lines(bytes, limits)
    }

    /// Reads plain lines from the beginning of one. Returns where the head ends, if it does.
    #[allow(clippy::inline_always, reason = "on the way of every request")]
    #[inline(always)]
    pub(in crate::http1) fn read_plain_lines(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, Error> {
        // The last octet of a head has to stand within the limit.
        let bytes = &bytes[..bytes.len().min(limits.head_bytes_max())];
        if self.line == 0 {
            if !self.read_plain_request_line(bytes, limits) {
                return Ok(None);
            }
            self.read_plain_host(bytes, limits);
        }
        let is_whole = bytes.get(self.line..).is_some_and(|rest| rest.starts_with(b"\r\n"));
        let is_over = is_whole && self.crlf == Some(true);
        if !is_over && !self.read_plain_fields(bytes, limits)? {
            return Ok(None);
        }
        self.check_whole()?;
        self.searched = self.line + 2;
        Ok(Some(self.searched))
    }

    /// Reads plain field lines from the beginning of one. Says whether the end of the head follows.
    #[inline(never)]
    fn read_plain_fields(&mut self, bytes: &[u8], limits: &Limits) -> Result<bool, Error> {
        if self.crlf != Some(true) {
            return Ok(false);
        }
        let mut rest = bytes.get(self.line..).unwrap_or_default();
        while !rest.starts_with(b"\r\n") {
            let Some(place) = plain_field(rest) else { break };
            if self.fields.len() >= limits.fields_max {
                break;
            }
            self.mark(rest, place)?;
            self.fields.push(place.behind(bytes.len() - rest.len()));
            rest = &rest[place.value_end + 2..];
        }
        self.line = bytes.len() - rest.len();
        let is_whole = rest.starts_with(b"\r\n") || self.read_last_lines(bytes, limits)?;
        if !is_whole {
            self.searched = self.line;
        }
        Ok(is_whole)
    }

    /// Reads the field that comes first in almost every request, as RFC 9110 section 7.2 asks: a Host that is a name or
    /// an address, and perhaps a port.
    #[allow(clippy::inline_always, reason = "on the way of every request")]
    #[inline(always)]
    fn read_plain_host(&mut self, bytes: &[u8], limits: &Limits) {
        let rest = bytes.get(self.line..).unwrap_or_default();
        if !rest.starts_with(HOST) || limits.fields_max == 0 {
            return;
        }
        let name_end = scan::other_than_host(rest, HOST.len());
        let value_end = if rest.get(name_end) == Some(&b':') { port_end(rest, name_end + 1) } else { name_end };
        if name_end == HOST.len() || !rest[value_end..].starts_with(b"\r\n") {
            return;
        }
        self.marks.set(Marks::HOST);
        let place = Place { name_end: HOST.len() - b": ".len(), value_start: HOST.len(), value_end };
        self.fields.push(place.behind(self.line));
        self.line += value_end + 2;
    }

    /// Plain field lines at the end of what there is, where the blocks of a search begin before the line. Says whether the
    /// end of the head follows.
    #[inline(never)]
    fn read_last_lines(&mut self, bytes: &[u8], limits: &Limits) -> Result<bool, Error> {
        while bytes.len() - self.line < scan::BLOCK && self.fields.len() < limits.fields_max {
            let rest = &bytes[self.line..];
            if rest.starts_with(b"\r\n") {
                return Ok(true);
            }
            let name_end = scan::other_than_letter(bytes, self.line) - self.line;
            let value_end = scan::unprintable(bytes, self.line) - self.line;
            let Some(place) = plain_place(rest, name_end, || value_end) else { break };
            self.mark_apart(rest, place)?;
            self.fields.push(place.behind(self.line));
            self.line += place.value_end + 2;
        }
        Ok(bytes[self.line..].starts_with(b"\r\n"))
    }

    #[allow(clippy::inline_always, reason = "on the way of every request")]
    #[inline(always)]
    fn read_plain_request_line(&mut self, bytes: &[u8], limits: &Limits) -> bool {
        let method_len = if bytes.starts_with(b"GET ") { 3 } else { self.read_plain_method(bytes) };
        let Some(after @ [b'/', ..]) = bytes.get(method_len + 1..) else { return false };
        let target_len = target::path_and_query_len(after);
        let Some(rest) = after.get(target_len..).and_then(<[u8]>::first_chunk) else { return false };
        if rest != b" HTTP/1.1\r\n" || target_len > limits.target_bytes_max || method_len == 0 {
            return false;
        }
        self.method = Span::new(0, method_len);
        self.target = Span::new(method_len + 1, target_len);
        self.form = Form::Origin;
        self.crlf = Some(true);
        self.line = method_len + 1 + target_len + rest.len();
        true
    }

    /// The length of a method with a space behind it; 0 where the careful way has to look.
    #[inline(never)]
    fn read_plain_method(&mut self, bytes: &[u8]) -> usize {
        let method_len = scan::other_than_letter(bytes, 0);
        let method = &bytes[..method_len];
        // One too long for the line limit would be accepted with a short target.
        let fits = method_len <= REQUEST_LINE_EXTRA - b" HTTP/1.1\r\n".len();
        if !fits || method == b"CONNECT" || bytes.get(method_len) != Some(&b' ') {
            return 0;
        }
        if method == b"HEAD" {
            self.marks.set(Marks::CONTENTLESS);
        }
        method_len
    }
}

#[inline(never)]
fn port_end(rest: &[u8], start: usize) -> usize {
    start + rest[start..].iter().take_while(|octet| octet.is_ascii_digit()).count()
}

/// The plain field line at the front, if there is one, and a block to look at.
#[inline]
fn plain_field(rest: &[u8]) -> Option<Place> {
    let (others, ends) = scan::opening(rest.first_chunk()?);
    // Where the first block does not tell, a search does.
    let name_end = if others == 0 { scan::other_than_letter(rest, 0) } else { others.trailing_zeros() as usize };
    let value_end = || if ends == 0 { scan::unprintable(rest, name_end) } else { ends.trailing_zeros() as usize };
    plain_place(rest, name_end, value_end)
}

/// Where a value stands behind a name that ends there, if all is plain.
#[inline]
fn plain_place(rest: &[u8], name_end: usize, value_end: impl FnOnce() -> usize) -> Option<Place> {
    if name_end == 0 || rest.get(name_end) != Some(&b':') {
        return None;
    }
    let value_start = name_end + 1 + usize::from(rest.get(name_end + 1) == Some(&b' '));
    let value_end = value_end();
    let value = rest.get(value_start..value_end)?;
    // White space around a value does not belong to it.
    let is_trimmed = *value.first()? != b' ' && *value.last()? != b' ';
    (is_trimmed && rest[value_end..].starts_with(b"\r\n")).then_some(Place { name_end, value_start, value_end })
}

//! The lines that almost every client sends, in one pass: a target that begins with `/`, names of letters and `-`,
//! no white space but one space before a value, CRLF.
//!
//! A line that is not like that, or not whole, is left as it is: the careful way in [`Head::parse`] reads it, and
//! tells what is wrong with it. So nothing is accepted here that would be refused there, and what is read is the
//! same; only the work per octet is less.

use super::super::scan;
use super::super::target::{self, Form};
use super::super::{Error, Limits};
use super::{Field, Head, REQUEST_LINE_EXTRA, Span, Version};

impl Head {
    /// Reads plain lines from the beginning of one. Returns where the head ends, if it does.
    #[inline(never)]
    pub(super) fn read_plain_lines(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, Error> {
        // The last octet of a head has to stand within the limit.
        let bytes = &bytes[..bytes.len().min(limits.head_bytes_max())];
        if self.line == 0 && !self.read_plain_request_line(bytes, limits) {
            return Ok(None);
        }
        if self.crlf != Some(true) {
            return Ok(None);
        }
        loop {
            if bytes.get(self.line..).is_some_and(|line| line.starts_with(b"\r\n")) {
                self.check_whole()?;
                self.searched = self.line + 2;
                return Ok(Some(self.searched));
            }
            if self.fields.len() >= limits.fields_max || !self.read_plain_field_line(bytes)? {
                return Ok(None);
            }
        }
    }

    fn read_plain_request_line(&mut self, bytes: &[u8], limits: &Limits) -> bool {
        let method_len = scan::other_than_letter(bytes, 0);
        let Some([b' ', after @ ..]) = bytes.get(method_len..) else { return false };
        let target_len = target::path_and_query_len(after);
        let Some(rest) = after.get(target_len..).and_then(<[u8]>::first_chunk) else { return false };
        let method = &bytes[..method_len];
        if rest != b" HTTP/1.1\r\n" || after[0] != b'/' || method_len == 0 || method == b"CONNECT" {
            return false;
        }
        // A method too long for the line limit would be accepted with a short target: the careful way tells.
        if target_len > limits.target_bytes_max || method_len > REQUEST_LINE_EXTRA - rest.len() {
            return false;
        }
        self.contentless = method == b"HEAD";
        self.method = Span::new(0, method_len);
        self.target = Span::new(method_len + 1, target_len);
        self.form = Form::Origin;
        self.version = Version::Http11;
        self.crlf = Some(true);
        self.line = method_len + 1 + target_len + rest.len();
        self.searched = self.line;
        true
    }

    /// Returns whether a plain line stood there.
    #[inline]
    fn read_plain_field_line(&mut self, bytes: &[u8]) -> Result<bool, Error> {
        let start = self.line;
        let name_end = scan::other_than_letter(bytes, start);
        let value_start = match bytes.get(name_end..) {
            Some([b':', b' ', ..]) => name_end + 2,
            Some([b':', ..]) => name_end + 1,
            _ => return Ok(false),
        };
        let value_end = scan::control(bytes, value_start);
        let (Some(name), Some(value), Some([b'\r', b'\n', ..])) =
            (bytes.get(start..name_end), bytes.get(value_start..value_end), bytes.get(value_end..))
        else {
            return Ok(false);
        };
        if name.is_empty() || value.first() == Some(&b' ') || value.last() == Some(&b' ') {
            return Ok(false);
        }
        self.mark(name, value)?;
        // An empty value stands right behind the colon.
        let value_start = if value.is_empty() { name_end + 1 } else { value_start };
        self.fields.push(Field { name: Span::new(start, name.len()), value: Span::new(value_start, value.len()) });
        self.line = value_end + 2;
        self.searched = self.line;
        Ok(true)
    }
}

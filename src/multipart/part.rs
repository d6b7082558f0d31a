//! The header section of a part (RFC 7578 section 4), the boundary in a Content-Type, and safe file names.

use std::borrow::Cow;

use percent_encoding::percent_decode;

use super::error::Error;

/// Maximum length of a boundary (RFC 2046 section 5.1.1).
const BOUNDARY_BYTES_MAX: usize = 70;

/// Maximum length of a sanitised file name in bytes, the limit of most file systems.
const FILE_NAME_BYTES_MAX: usize = 255;

/// Maximum length of an extension that is kept when a file name is truncated.
const EXTENSION_BYTES_MAX: usize = 16;

/// The header section of a part of a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    name: String,
    file_name: Option<String>,
    content_type: Option<String>,
}

impl Part {
    /// Returns the name of the form field.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether the part is a file: whether the client has sent a file name, even if that is empty, as for a
    /// file input without a file.
    pub fn is_file(&self) -> bool {
        self.file_name.is_some()
    }

    /// Returns the name of the file, sanitised; `None` for other parts, and for files without a usable name.
    ///
    /// It is a plain name for a file in any directory and on any system, without path, control characters, leading dots
    /// or characters and names that are reserved on Windows, and of at most 255 bytes. Still, clients choose it:
    /// different files may have equal names, and its extension says nothing about the content.
    pub fn file_name(&self) -> Option<&str> {
        self.file_name.as_deref().filter(|name| !name.is_empty())
    }

    /// Returns the Content-Type of the part, as sent by the client.
    pub fn content_type(&self) -> Option<&str> {
        self.content_type.as_deref()
    }

    /// Parses a header section, which ends with an empty line. Headers other than Content-Disposition and Content-Type
    /// are ignored (RFC 7578 section 4.8).
    pub(super) fn parse(section: &[u8], headers_max: usize) -> Result<Part, Error> {
        let (mut disposition, mut content_type, mut encoding) = (None, None, None);
        let text = std::str::from_utf8(section).map_err(|_| Error::NotUtf8)?;
        let lines = text.strip_suffix("\r\n").unwrap_or_default().split_terminator("\r\n");
        for (at, line) in lines.enumerate() {
            if at == headers_max {
                return Err(Error::HeaderTooLarge);
            }
            let (name, value) = line.split_once(':').ok_or(Error::Header)?;
            // Also rejects line folding, whose lines begin with a space.
            if !is_token(name) || value.contains(|letter: char| letter.is_control() && letter != '\t') {
                return Err(Error::Header);
            }
            let slot = match name.to_ascii_lowercase().as_str() {
                "content-disposition" => &mut disposition,
                "content-type" => &mut content_type,
                "content-transfer-encoding" => &mut encoding,
                _ => continue,
            };
            if slot.replace(value.trim_matches([' ', '\t'])).is_some() {
                return Err(Error::Header);
            }
        }
        let is_plain = |name: &str| ["7bit", "8bit", "binary"].iter().any(|plain| plain.eq_ignore_ascii_case(name));
        if encoding.is_some_and(|name| !is_plain(name)) {
            return Err(Error::TransferEncoding);
        }
        let (name, file_name) = disposition.and_then(parse_disposition).ok_or(Error::Disposition)?;
        Ok(Part { name, file_name: file_name.as_deref().map(sanitise), content_type: content_type.map(str::to_owned) })
    }
}

/// Returns the boundary in a Content-Type.
pub(super) fn boundary(content_type: &[u8]) -> Result<Vec<u8>, Error> {
    let text = std::str::from_utf8(content_type).map_err(|_| Error::NotMultipart)?;
    let (media_type, parameters) = split_first(text);
    if !media_type.eq_ignore_ascii_case("multipart/form-data") {
        return Err(Error::NotMultipart);
    }
    let parameters = parse_parameters(parameters).ok_or(Error::Boundary)?;
    let boundary = find(&parameters, "boundary").ok_or(Error::Boundary)?;
    // RFC 2046 section 5.1.1 allows a space too, but no client sends one, and not every parser accepts it.
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=?".contains(&byte);
    if boundary.is_empty() || boundary.len() > BOUNDARY_BYTES_MAX || !boundary.bytes().all(is_allowed) {
        return Err(Error::Boundary);
    }
    Ok(boundary.as_bytes().to_vec())
}

/// Returns the name of the part, and the file name if there is one.
fn parse_disposition(value: &str) -> Option<(String, Option<String>)> {
    let (kind, parameters) = split_first(value);
    if !kind.eq_ignore_ascii_case("form-data") {
        return None;
    }
    let parameters = parse_parameters(parameters)?;
    let name = unescape(find(&parameters, "name")?);
    let file_name = match (find(&parameters, "filename"), find(&parameters, "filename*")) {
        (Some(name), _) => Some(unescape(name)),
        // RFC 7578 section 4.2 forbids this form, but some clients use it for names that are not ASCII.
        (None, Some(encoded)) => Some(decode_extended(encoded)?),
        (None, None) => None,
    };
    Some((name, file_name))
}

/// Splits a header value into its first element and the parameters.
fn split_first(value: &str) -> (&str, &str) {
    let (first, rest) = value.find(';').map_or((value, ""), |at| value.split_at(at));
    (first.trim_matches([' ', '\t']), rest)
}

type Parameters<'a> = Vec<(String, Cow<'a, str>)>;

fn find<'a>(parameters: &'a Parameters<'_>, name: &str) -> Option<&'a str> {
    parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_ref())
}

/// Parses parameters, each after a semicolon. Returns `None` if one of them is malformed or occurs twice.
fn parse_parameters(mut rest: &str) -> Option<Parameters<'_>> {
    let mut parameters = Parameters::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        if rest.is_empty() {
            return Some(parameters);
        }
        let (name, value) = rest.strip_prefix(';')?.split_once('=')?;
        let name = name.trim_start_matches([' ', '\t']).to_ascii_lowercase();
        if !is_token(&name) || find(&parameters, &name).is_some() {
            return None;
        }
        let (value, after) = if let Some(quoted) = value.strip_prefix('"') {
            parse_quoted(quoted)?
        } else {
            let end = value.find([';', ' ', '\t']).unwrap_or(value.len());
            let (token, after) = value.split_at(end);
            (is_token(token).then_some(Cow::Borrowed(token))?, after)
        };
        parameters.push((name, value));
        rest = after;
    }
}

/// Parses the rest of a quoted string; returns it and what follows. A backslash escapes a quote or a backslash and is
/// otherwise kept, as some clients send Windows paths.
fn parse_quoted(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let mut value = Cow::Borrowed("");
    let mut rest = text;
    loop {
        let at = rest.find(['"', '\\'])?;
        let (plain, tail) = rest.split_at(at);
        value += plain;
        if let Some(after) = tail.strip_prefix('"') {
            return Some((value, after));
        }
        let escaped = tail[1..].starts_with(['"', '\\']);
        value += if escaped { &tail[1..2] } else { "\\" };
        rest = &tail[if escaped { 2 } else { 1 }..];
    }
}

/// Undoes the escapes that browsers use in names (HTML Living Standard, section 4.10.21.8): of quotes and line breaks.
fn unescape(name: &str) -> String {
    name.replace("%22", "\"").replace("%0D", "\r").replace("%0A", "\n")
}

/// Decodes a value of the form `UTF-8''percent-encoded` (RFC 8187).
fn decode_extended(value: &str) -> Option<String> {
    let (charset, rest) = value.split_once('\'')?;
    let (_language, encoded) = rest.split_once('\'')?;
    let is_utf8 = charset.eq_ignore_ascii_case("utf-8");
    percent_decode(encoded.as_bytes()).decode_utf8().ok().filter(|_| is_utf8).map(Cow::into_owned)
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Returns a plain file name, which may be empty; see [`Part::file_name`].
fn sanitise(name: &str) -> String {
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let name: String = name
        .chars()
        .filter(|letter| !letter.is_control() && !changes_direction(*letter))
        .map(|letter| if "<>:\"|?*".contains(letter) { '_' } else { letter })
        .collect();
    let name = name.trim_start_matches(['.', ' ']).trim_end_matches(['.', ' ']);
    let name = if is_reserved(name) { format!("_{name}") } else { name.to_owned() };
    truncate(name)
}

/// Returns whether a character makes text appear in another order, which can hide an extension.
fn changes_direction(letter: char) -> bool {
    matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns whether Windows reserves a name for a device, with any extension.
fn is_reserved(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default().trim_end().to_ascii_uppercase();
    let is_numbered = |device: &str| {
        let mut letters = stem.strip_prefix(device).unwrap_or_default().chars();
        matches!((letters.next(), letters.next()), (Some('0'..='9' | '¹' | '²' | '³'), None))
    };
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"].contains(&stem.as_str())
        || is_numbered("COM")
        || is_numbered("LPT")
}

/// Shortens a file name to the maximum length, and keeps its extension.
fn truncate(mut name: String) -> String {
    if name.len() <= FILE_NAME_BYTES_MAX {
        return name;
    }
    let dot = name.rfind('.').filter(|dot| name.len() - dot <= EXTENSION_BYTES_MAX);
    let extension = dot.map(|dot| name.split_off(dot)).unwrap_or_default();
    let mut end = FILE_NAME_BYTES_MAX - extension.len();
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
    name.truncate(name.trim_end_matches(['.', ' ']).len());
    name + &extension
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(section: &str) -> Result<Part, Error> {
        Part::parse(section.as_bytes(), 4)
    }

    /// Returns the name and the file name in a Content-Disposition.
    fn names(disposition: &str) -> Result<(String, Option<String>), Error> {
        let part = part(&format!("Content-Disposition: {disposition}\r\n\r\n"))?;
        Ok((part.name().to_owned(), part.file_name().map(str::to_owned)))
    }

    #[test]
    fn names_are_decoded_as_browsers_and_other_clients_encode_them() {
        for (disposition, name, file_name) in [
            ("form-data; name=a", "a", None),
            ("Form-Data ;NAME=\"a\"; FileName=x.txt ", "a", Some("x.txt")),
            ("form-data; name=\"a;b=c\"; filename=\"\"", "a;b=c", None),
            ("form-data; name=\"%22a%22%0D%0A%25\"", "\"a\"\r\n%25", None),
            (r#"form-data; name="\"a\\b\c""#, r#""a\b\c"#, None),
            ("form-data; name=\"\u{e4}\"; filename=\"\u{20ac}.txt\"", "\u{e4}", Some("\u{20ac}.txt")),
            ("form-data; name=a; filename*=UTF-8'en'%e2%82%ac.txt", "a", Some("\u{20ac}.txt")),
            ("form-data; name=a; filename*=UTF-8''b; filename=c", "a", Some("c")),
        ] {
            let expected = (name.to_owned(), file_name.map(str::to_owned));
            assert_eq!(names(disposition), Ok(expected), "{disposition}");
        }
    }

    #[test]
    fn malformed_headers_are_rejected() {
        for disposition in [
            "",
            "form-data",
            "attachment; name=a",
            "form-data; name",
            "form-data; name=",
            "form-data; name=a;",
            "form-data; name=a b",
            "form-data; name=\"a",
            "form-data; name=\"a\\\"",
            "form-data; name=\"a\"b",
            "form-data; name=a; name=b",
            "form-data; name=a; NAME=a",
            "form-data; name=a; filename=x; filename=y",
            "form-data; filename=a",
            "form-data; name=a; filename*=UTF-8''%ff",
            "form-data; name=a; filename*=latin1''a",
            "form-data, name=a",
        ] {
            assert_eq!(names(disposition), Err(Error::Disposition), "{disposition}");
        }
        let disposition = "Content-Disposition: form-data; name=a\r\n";
        for (rest, error) in [
            ("no colon\r\n", Error::Header),
            (" folded\r\n", Error::Header),
            ("A : b\r\n", Error::Header),
            ("A: b\nB: c\r\n", Error::Header),
            ("A: b\rc\r\n", Error::Header),
            ("A: \0\r\n", Error::Header),
            ("Content-Disposition: form-data; name=a\r\n", Error::Header),
            ("Content-Type: a/b\r\nContent-Type: a/b\r\n", Error::Header),
            ("Content-Transfer-Encoding: base64\r\n", Error::TransferEncoding),
            ("A: 1\r\nB: 2\r\nC: 3\r\nD: 4\r\n", Error::HeaderTooLarge),
        ] {
            assert_eq!(part(&format!("{disposition}{rest}\r\n")), Err(error), "{rest:?}");
        }
        assert_eq!(part("\r\n"), Err(Error::Disposition));
        assert_eq!(Part::parse(b"A: \xff\r\n\r\n", 4), Err(Error::NotUtf8));
        let text = "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8BIT\r\nX: y\r\n\r\n";
        let part = part(&format!("{disposition}{text}")).expect("a part");
        assert_eq!((part.content_type(), part.is_file()), (Some("text/plain; charset=utf-8"), false));
    }

    #[test]
    fn a_boundary_is_a_token_or_quoted() {
        for (content_type, expected) in [
            ("multipart/form-data; boundary=abc", Ok("abc")),
            ("Multipart/Form-Data;charset=utf-8; Boundary=\"a b\"", Err(Error::Boundary)),
            ("multipart/form-data; boundary=\"a:b?c\"", Ok("a:b?c")),
            ("multipart/form-data; boundary=a:b", Err(Error::Boundary)),
            ("multipart/form-data; boundary=\"\"", Err(Error::Boundary)),
            ("multipart/form-data; boundary=\"a\r\"", Err(Error::Boundary)),
            ("multipart/form-data; boundary=a; boundary=b", Err(Error::Boundary)),
            ("multipart/form-data", Err(Error::Boundary)),
            ("multipart/mixed; boundary=a", Err(Error::NotMultipart)),
            ("text/plain", Err(Error::NotMultipart)),
            ("", Err(Error::NotMultipart)),
        ] {
            let expected = expected.map(|boundary| boundary.as_bytes().to_vec());
            assert_eq!(boundary(content_type.as_bytes()), expected, "{content_type}");
        }
        let of_length = |length: usize| boundary(format!("multipart/form-data; boundary={:a<length$}", "").as_bytes());
        assert_eq!(of_length(70), Ok(vec![b'a'; 70]));
        assert_eq!(of_length(71), Err(Error::Boundary));
        assert_eq!(boundary(b"\xff"), Err(Error::NotMultipart));
    }

    #[test]
    fn file_names_are_plain_names_on_all_systems() {
        let long = format!("{}.txt", "\u{e4}".repeat(200));
        for (name, expected) in [
            ("photo.jpg", "photo.jpg"),
            ("../../etc/passwd", "passwd"),
            (r"C:\dir\file.txt", "file.txt"),
            (r"\\host\share\..", ""),
            ("..", ""),
            ("/", ""),
            (". . /.. ..", ""),
            (".htaccess", "htaccess"),
            ("a.txt. .", "a.txt"),
            ("a\0b\r\n\u{7f}c", "abc"),
            ("\u{202e}gpj\u{61c}.exe", "gpj.exe"),
            ("a.txt:stream", "a.txt_stream"),
            ("a<b>?*|\"", "a_b_____"),
            ("nul", "_nul"),
            ("Com1.txt", "_Com1.txt"),
            ("lpt\u{b2} .x", "_lpt\u{b2} .x"),
            ("com10", "com10"),
            ("console", "console"),
        ] {
            assert_eq!(sanitise(name), expected, "{name:?}");
        }
        assert_eq!(sanitise(&long), format!("{}.txt", "\u{e4}".repeat(125)));
        assert_eq!(sanitise(&"a".repeat(300)), "a".repeat(255));
        assert_eq!(sanitise(&format!("{}.{}", "a".repeat(20), "b".repeat(300))).len(), 255);
    }
}

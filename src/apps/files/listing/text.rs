//! Formats names, sizes and times for listings, encodes names for links, and renders entries as JSON.

use std::fmt::Write as _;

use super::entries::{Entry, Kind};

/// Appends a name as HTML text. ASCII control characters are replaced with control pictures; other invisible or
/// bidirectional characters and invalid UTF-8 are replaced with U+FFFD.
pub(super) fn push_html(out: &mut String, name: &[u8]) {
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '&' => out.push_str("&amp;"),
                '<' => out.push_str("&lt;"),
                '>' => out.push_str("&gt;"),
                '"' => out.push_str("&quot;"),
                '\'' => out.push_str("&#39;"),
                _ => out.push(visible(c)),
            }
        }
        if !chunk.invalid().is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

fn visible(c: char) -> char {
    match c {
        '\0'..='\u{1f}' => char::from_u32(0x2400 + u32::from(c)).unwrap_or(char::REPLACEMENT_CHARACTER),
        '\u{7f}' => '\u{2421}',
        '\u{80}'..='\u{9f}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{61c}'
        | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' => char::REPLACEMENT_CHARACTER,
        _ => c,
    }
}

/// Appends a name as one segment of a relative URL. Percent-encodes all but the unreserved characters of RFC 3986, so
/// that a colon is not mistaken for the end of a scheme, and bytes that are not UTF-8 are preserved.
pub(super) fn push_segment(out: &mut String, name: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in name {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

/// Appends a name as a JSON string (RFC 8259 section 7), with invalid UTF-8 replaced by U+FFFD.
pub(super) fn push_json(out: &mut String, name: &[u8]) {
    out.push('"');
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => {
                    out.push('\\');
                    out.push(c);
                }
                '\0'..='\u{1f}' => {
                    let _ = write!(out, "\\u{:04x}", u32::from(c));
                }
                _ => out.push(c),
            }
        }
        if !chunk.invalid().is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }
    out.push('"');
}

/// Appends an entry of a JSON array. `href` is the name as a relative URL, which is lossless even if the name is not UTF-8.
pub(super) fn push_json_entry(out: &mut String, index: usize, entry: Entry<'_>) {
    let Entry { name, kind, size, modified } = entry;
    out.push_str(if index == 0 { "{\"name\":" } else { ",\n{\"name\":" });
    push_json(out, name);
    out.push_str(",\"href\":\"");
    push_segment(out, name);
    match kind {
        Kind::Directory => out.push_str("/\",\"type\":\"directory\",\"mtime\":\""),
        Kind::File => {
            let _ = write!(out, "\",\"type\":\"file\",\"size\":{size},\"mtime\":\"");
        }
    }
    DateTime::new(modified).push_iso(out);
    out.push_str("\"}");
}

/// Appends a size with three significant digits, such as `1.21 MiB`, `15.3 KiB` or `999 B`.
pub(super) fn push_size(out: &mut String, bytes: u64) {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1000 {
        let _ = write!(out, "{bytes} B");
        return;
    }
    // Use the smallest unit in which the size is below 1,000. Calculate in hundredths, rounded down, to avoid floating
    // point.
    let hundredths = |shift: u32| (u128::from(bytes) * 100) >> shift;
    let at = (0..5).find(|&at| hundredths(10 * (at + 1)) < 100_000).unwrap_or(5);
    let value = hundredths(10 * (at + 1));
    let (whole, rest) = (value / 100, value % 100);
    let unit = UNITS[at as usize];
    let _ = match whole {
        0..=9 => write!(out, "{whole}.{rest:02} {unit}"),
        10..=99 => write!(out, "{whole}.{} {unit}", rest / 10),
        _ => write!(out, "{whole} {unit}"),
    };
}

/// Appends a number with its digits in groups of three: `1,234,567`.
pub(super) fn push_grouped(out: &mut String, number: u64) {
    let digits = number.to_string();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
}

/// A date and time in UTC, converted from a Unix time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DateTime {
    year: i64,
    month: u8,
    day: u8,
    second_of_day: u32,
}

impl DateTime {
    /// Converts a Unix time in seconds. Counts days from 1 March of year 0, so that a leap day is the last day of its
    /// year.
    pub(super) fn new(seconds: i64) -> Self {
        // Clamp to years of four digits.
        let seconds = seconds.clamp(-62_135_596_800, 253_402_300_799);
        let days = seconds.div_euclid(86_400) + 719_468;
        let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = era * 400 + year_of_era + i64::from(month <= 2);
        let narrow = |number: i64| u8::try_from(number).unwrap_or(1);
        let second_of_day = u32::try_from(seconds.rem_euclid(86_400)).unwrap_or(0);
        DateTime { year, month: narrow(month), day: narrow(day), second_of_day }
    }

    /// Appends the time in ISO 8601 format, such as `2026-11-25T10:50:31Z`.
    pub(super) fn push_iso(self, out: &mut String) {
        self.push_minute(out, 'T');
        let _ = write!(out, ":{:02}Z", self.second_of_day % 60);
    }

    /// Appends the time to the minute, such as `2026-11-25 10:50`, with `separator` between date and time.
    pub(super) fn push_minute(self, out: &mut String, separator: char) {
        let (hour, minute) = (self.second_of_day / 3600, self.second_of_day / 60 % 60);
        let _ = write!(out, "{:04}-{:02}-{:02}{separator}{hour:02}:{minute:02}", self.year, self.month, self.day);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(push: impl FnOnce(&mut String)) -> String {
        let mut out = String::new();
        push(&mut out);
        out
    }

    #[test]
    fn names_are_escaped_in_html() {
        let html = |name: &[u8]| text(|out| push_html(out, name));
        assert_eq!(html(b"<script>alert('&\"')</script>"), "&lt;script&gt;alert(&#39;&amp;&quot;&#39;)&lt;/script&gt;");
        assert_eq!(html(b"a\nb\x7f\x00"), "a\u{240a}b\u{2421}\u{2400}");
        assert_eq!(html("a\u{202e}gpj.exe\u{200b}".as_bytes()), "a\u{fffd}gpj.exe\u{fffd}");
        assert_eq!(html(b"caf\xe9 \xff"), "caf\u{fffd} \u{fffd}");
        assert_eq!(html("日本 🦀".as_bytes()), "日本 🦀");
    }

    #[test]
    fn names_are_percent_encoded_as_one_segment() {
        let segment = |name: &[u8]| text(|out| push_segment(out, name));
        assert_eq!(segment(b"a b%#?&;:/\\\"'<>\n\xff"), "a%20b%25%23%3F%26%3B%3A%2F%5C%22%27%3C%3E%0A%FF");
        assert_eq!(segment(b"javascript:alert(1)"), "javascript%3Aalert%281%29");
        assert_eq!(segment(b"plain-1.0_~.tar.gz"), "plain-1.0_~.tar.gz");
    }

    #[test]
    fn names_are_escaped_in_json() {
        assert_eq!(text(|out| push_json(out, b"a\"\\\n\x01\xff")), "\"a\\\"\\\\\\u000a\\u0001\u{fffd}\"");
    }

    #[test]
    fn sizes_have_three_significant_digits() {
        for (bytes, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.97 KiB"),
            (1024, "1.00 KiB"),
            (15_700, "15.3 KiB"),
            (1_023_000, "999 KiB"),
            (1_024_000, "0.97 MiB"),
            (1_073_741_824, "1.00 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(text(|out| push_size(out, bytes)), expected, "{bytes}");
        }
        assert_eq!(text(|out| push_grouped(out, 1_234_567)), "1,234,567");
        assert_eq!(text(|out| push_grouped(out, 12)), "12");
    }

    #[test]
    fn dates_follow_the_gregorian_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_764_067_831, "2025-11-25T10:50:31Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (i64::MAX, "9999-12-31T23:59:59Z"),
            (i64::MIN, "0001-01-01T00:00:00Z"),
        ] {
            assert_eq!(text(|out| DateTime::new(seconds).push_iso(out)), expected, "{seconds}");
        }
        assert_eq!(text(|out| DateTime::new(951_782_460).push_minute(out, ' ')), "2000-02-29 00:01");
    }
}

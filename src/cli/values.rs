//! Parsers for option values: times, sizes, host names, numbers of workers.

use std::time::Duration;

use clap::ValueEnum;

use crate::HeaderBlock;
use crate::http1::HEAD_BYTES_MAX;
use crate::httpserver::LogFormat;
use crate::r#loop::Networks;
use crate::server::LogTarget;
use crate::tls::TlsVersion;

/// Upper bound of a time. Also keeps deadlines within the range of an `Instant`.
const TIME_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Upper bound of the time that a client keeps something. Two years are usual for HSTS.
const LIFETIME_MAX: Duration = Duration::from_secs(3650 * 24 * 3600);

/// Units of time with their length in milliseconds, longest first.
const TIME_UNITS: [(&[&str], u64); 5] =
    [(&["d"], 86_400_000), (&["h"], 3_600_000), (&["m", "min"], 60_000), (&["s"], 1000), (&["ms"], 1)];

/// Splits text after its leading characters that satisfy `is_leading`.
fn split_while(text: &str, is_leading: fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|character| !is_leading(character)).unwrap_or(text.len()))
}

/// Parses one or more numbers with units, such as `1.5s` or `1m30s`. Longer units precede shorter ones.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match any_duration(text)? {
        Duration::ZERO => Err("must be greater than zero, e.g. 500ms".into()),
        time if time <= TIME_MAX => Ok(time),
        _ => Err("must be at most one year".into()),
    }
}

/// Parses a duration that may be zero, or of any length.
fn any_duration(text: &str) -> Result<Duration, String> {
    let (mut total_ms, mut rest, mut units) = (0, text.trim(), &TIME_UNITS[..]);
    loop {
        let (number, after) = split_while(rest, |character| character.is_ascii_digit() || character == '.');
        let (unit, after) = split_while(after.trim_start(), char::is_alphabetic);
        if number.is_empty() {
            return Err("must start with a number, e.g. 30s".into());
        }
        if unit.is_empty() {
            let number = number.trim_end_matches('.');
            return Err(format!("missing unit; use {number}s, {number}ms, {number}m or {number}h"));
        }
        if !TIME_UNITS.iter().any(|(names, _)| names.contains(&unit)) {
            return Err("unknown unit; use ms, s, m, h or d".into());
        }
        let found = units.iter().position(|(names, _)| names.contains(&unit));
        let position = found.ok_or("longer units must precede shorter ones, e.g. 1m30s")?;
        total_ms += milliseconds(number, units[position].1)?;
        (units, rest) = (&units[position + 1..], after.trim_start());
        if rest.is_empty() {
            break;
        }
    }
    Ok(Duration::from_millis(total_ms))
}

/// Converts a decimal number of a unit to milliseconds, which must be a whole number. Returns at most a value that
/// exceeds [`TIME_MAX`] and cannot overflow in a sum.
fn milliseconds(number: &str, unit_ms: u64) -> Result<u64, String> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_malformed = whole.is_empty() || number.ends_with('.') || fraction.contains('.');
    if is_malformed || fraction.len() > 9 {
        return Err(format!("{number} is not a number"));
    }
    // 9 digits of a fraction times a day fit.
    let fraction_ms = fraction.parse::<u64>().unwrap_or(0) * unit_ms;
    let scale = 10_u64.pow(u32::try_from(fraction.len()).unwrap_or(0));
    if !fraction_ms.is_multiple_of(scale) {
        return Err("must be a whole number of milliseconds".into());
    }
    let whole_ms = whole.parse::<u64>().unwrap_or(u64::MAX).saturating_mul(unit_ms);
    Ok(whole_ms.min(u64::MAX / 16) + fraction_ms / scale)
}

pub(super) fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split_while(text, |character| character.is_ascii_digit());
    if number.is_empty() {
        return Err("must start with a number, e.g. 64KiB".into());
    }
    if unit.starts_with('.') {
        return Err("must be a whole number of bytes, KiB, MiB or GiB".into());
    }
    let number: u64 = number.parse().map_err(|_| "too large".to_owned())?;
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        _ => return Err("unknown unit; use KiB, MiB or GiB".into()),
    };
    number.checked_mul(1 << shift).ok_or_else(|| "too large".into())
}

pub(super) fn head_size(text: &str) -> Result<usize, String> {
    match usize::try_from(size(text)?) {
        Ok(bytes) if (256..=HEAD_BYTES_MAX).contains(&bytes) => Ok(bytes),
        _ => Err("must be between 256 bytes and 64KiB".into()),
    }
}

pub(super) fn queue_size(text: &str) -> Result<usize, String> {
    match usize::try_from(size(text)?) {
        Ok(bytes @ 1024..=0x4000_0000) => Ok(bytes),
        _ => Err("must be between 1KiB and 1GiB".into()),
    }
}

pub(super) fn buffered_size(text: &str) -> Result<usize, String> {
    match usize::try_from(size(text)?) {
        Ok(bytes @ 0x10_0000..) => Ok(bytes),
        _ => Err("must be at least 1MiB".into()),
    }
}

pub(super) fn turn_size(text: &str) -> Result<usize, String> {
    match usize::try_from(size(text)?) {
        Ok(bytes @ 4096..=0x100_0000) => Ok(bytes),
        _ => Err("must be between 4KiB and 16MiB".into()),
    }
}

/// Parses the value of `--access-log`.
pub(super) fn log_target(text: &str) -> Result<LogTarget, String> {
    match text {
        "" => Err("missing file name; use - for stdout, off to disable".into()),
        _ if text == "syslog" || text.starts_with("syslog:") => {
            let address = text.trim_start_matches("syslog").trim_start_matches(':');
            address.parse().map(LogTarget::Syslog)
        }
        "-" => Ok(LogTarget::Stdout),
        "off" => Ok(LogTarget::Off),
        path => Ok(LogTarget::File(path.into())),
    }
}

/// The value of `--log-format`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LogFormatValue {
    Named(LogFormat),
    Template(String),
}

/// Parses the value of `--log-format`.
pub(super) fn log_format(text: &str) -> Result<LogFormatValue, String> {
    if text.contains('$') {
        LogFormat::check_template(text).map_err(|error| error.to_string())?;
        return Ok(LogFormatValue::Template(text.to_owned()));
    }
    LogFormat::from_str(text, false)
        .map(LogFormatValue::Named)
        .map_err(|_| "must be short, combined, json, or a template with variables such as $request".into())
}

/// Parses a value of `--log-skip`.
pub(super) fn log_skip(text: &str) -> Result<String, String> {
    if text.starts_with(['/', '*']) || text.parse::<Networks>().is_ok() {
        return Ok(text.to_owned());
    }
    Err("must be a path that begins with / or *, or a network such as 10.0.0.0/8".into())
}

/// Parses the value of `--health-path`.
pub(super) fn url_path(text: &str) -> Result<String, String> {
    let is_valid = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#".contains(&byte));
    if is_valid { Ok(text.to_owned()) } else { Err("must be the path of a URL, e.g. /healthz".into()) }
}

/// Parses the value of `--request-id`.
pub(super) fn header_name(text: &str) -> Result<http::HeaderName, String> {
    HeaderBlock::new().try_header(text, b"id").map_err(|error| format!("{error}; use e.g. X-Request-Id"))?;
    text.parse().map_err(|_| "must be the name of a header, e.g. X-Request-Id".into())
}

/// Parses a value of `--allow-host`. Other servers write the names of a domain with `*`.
pub(super) fn allowed_host(text: &str) -> Result<String, String> {
    if matches!(text, "" | "*") {
        return Err("must be a host name, e.g. localhost or .example.com; all are allowed without this option".into());
    }
    let name = text.strip_prefix("*.").map_or_else(|| text.to_owned(), |domain| format!(".{domain}"));
    if name.contains(['*', '/', '@']) || name.contains(char::is_whitespace) {
        return Err("must be a host name without scheme and path, e.g. localhost or .example.com".into());
    }
    Ok(name)
}

/// Parses the value of `--tls-min-version`.
pub(super) fn tls_version(text: &str) -> Result<TlsVersion, String> {
    match text {
        "1.2" => Ok(TlsVersion::Tls12),
        "1.3" => Ok(TlsVersion::Tls13),
        _ => Err("must be 1.2 or 1.3".into()),
    }
}

/// Parses the time of `--hsts`, which may be zero.
pub(super) fn hsts(text: &str) -> Result<Duration, String> {
    // 0s makes browsers forget the header (RFC 6797 section 6.1.1).
    if matches!(text.trim(), "0" | "0s") {
        return Ok(Duration::ZERO);
    }
    whole_seconds(text)
}

/// Parses the lifetime of something that a client keeps, in whole seconds.
pub(super) fn whole_seconds(text: &str) -> Result<Duration, String> {
    match any_duration(text)? {
        time if time.is_zero() || time.subsec_millis() != 0 => Err("must be whole seconds, e.g. 1h".into()),
        time if time > LIFETIME_MAX => Err("must be at most ten years (3650d)".into()),
        time => Ok(time),
    }
}

/// Parses the number of times that an option is given, in an environment variable, where words are accepted as for flags.
pub(super) fn repeated_flag(text: &str) -> Result<u8, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "y" | "t" => Ok(1),
        "false" | "no" | "off" | "n" | "f" => Ok(0),
        number => number.parse().map_err(|_| "must be a number such as 2, or true or false".into()),
    }
}

/// Parses the number of a port; 0 lets the system choose one.
pub(super) fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| "must be a number from 0 to 65535".into())
}

/// Parses the number of workers; `auto` and 0 mean one per core.
pub(super) fn workers(text: &str) -> Result<u16, String> {
    match text.parse() {
        _ if text == "auto" => Ok(0),
        Ok(count @ 0..=1024) => Ok(count),
        _ => Err("must be auto, or a number from 0 to 1024".into()),
    }
}

/// Parses an address or host name to listen on. Rejects one with a port.
pub(super) fn host(text: &str) -> Result<String, String> {
    match host_and_port(text) {
        Some(("", port)) => {
            Err(format!("must not include a port; use --port {port}, with --host :: for all addresses"))
        }
        Some((host, port)) => Err(format!("must not include a port; use --host {host} --port {port}")),
        None if matches!(text, "" | "*" | "all") => Err("must be an address or host name; use :: for all".into()),
        None if text.contains("://") => Err("must be an address or host name, without a scheme".into()),
        None if text.contains(',') => Err("must be one address or host name; use :: for all".into()),
        None => Ok(text.to_owned()),
    }
}

/// Splits `HOST:PORT` or `[IPV6]:PORT`; `None` if the text has no port.
fn host_and_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    // An IPv6 address without brackets has no port.
    let host = bare.or_else(|| (!host.contains(':')).then_some(host))?;
    Some((host, port.parse().ok()?))
}

/// Returns the command line that was probably meant by a word in place of a command: a directory to serve, a port, or
/// an address to listen on.
pub(super) fn meant_command(word: &str) -> Option<String> {
    if word.parse::<u16>().is_ok() {
        return Some(format!("serverd --port {word}"));
    }
    match host_and_port(word) {
        Some(("", port)) => return Some(format!("serverd --port {port}")),
        Some((host, port)) => return Some(format!("serverd --host {host} --port {port}")),
        None if word.parse::<std::net::IpAddr>().is_ok() => return Some(format!("serverd --host {word}")),
        None => {}
    }
    let is_path = word.contains(['/', '\\']) || word.starts_with('.') || std::path::Path::new(word).is_dir();
    let quote = if word.contains(char::is_whitespace) { "\"" } else { "" };
    is_path.then(|| format!("serverd files {quote}{word}{quote}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_may_have_fractions_and_several_units() {
        for (text, ms) in [
            ("500ms", 500),
            ("1.5s", 1500),
            ("1m30s", 90_000),
            ("1m 30s", 90_000),
            ("1d", 86_400_000),
            ("1h0.5m", 3_630_000),
            ("2 min", 120_000),
            ("0.001s", 1),
            ("366d", 366 * 86_400_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for (text, message) in [
            ("", "start with a number"),
            ("s", "start with a number"),
            ("-1s", "start with a number"),
            ("1m30", "use 30s"),
            ("30s1m", "must precede"),
            ("1s1s", "must precede"),
            ("1y", "unknown unit"),
            ("1.5.5s", "not a number"),
            (".5s", "not a number"),
            ("5.s", "not a number"),
            ("0.5ms", "whole number of milliseconds"),
            ("0s0ms", "greater than zero"),
            ("367d", "at most one year"),
            ("99999999999999999999d", "at most one year"),
            ("99999999999999999999d99999999999999999999h99999999999999999999s", "at most one year"),
        ] {
            let error = duration(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn hsts_is_in_whole_seconds_and_may_be_zero() {
        assert_eq!(hsts("365d"), Ok(Duration::from_secs(365 * 86_400)));
        assert_eq!((hsts("0"), hsts("0s")), (Ok(Duration::ZERO), Ok(Duration::ZERO)));
        // Two years, as the lists of browsers require.
        assert_eq!(hsts("730d"), Ok(Duration::from_secs(63_072_000)));
        for text in ["500ms", "1", "", "3651d"] {
            assert!(hsts(text).is_err(), "{text}");
        }
        assert!(whole_seconds("0s").unwrap_err().contains("e.g. 1h"));
    }

    #[test]
    fn sizes_are_whole_numbers() {
        assert_eq!((size("64KiB"), size("1 m"), size("7")), (Ok(65_536), Ok(1 << 20), Ok(7)));
        for (text, message) in [
            ("", "start with a number"),
            ("KiB", "start with a number"),
            ("1.5MiB", "whole number"),
            ("1TiB", "unknown unit"),
            ("99999999999999999999", "too large"),
            ("17179869184GiB", "too large"),
        ] {
            let error = size(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn allowed_hosts_are_names_and_domains() {
        for (text, expected) in [("localhost:80", "localhost:80"), (".a.test", ".a.test"), ("*.a.test", ".a.test")] {
            assert_eq!(allowed_host(text).as_deref(), Ok(expected));
        }
        for text in ["", "*", "a.*", "http://a.test", "a.test/", "a b"] {
            assert!(allowed_host(text).unwrap_err().contains("host name"), "{text}");
        }
    }

    #[test]
    fn the_header_of_ids_is_not_one_that_the_server_sets() {
        assert_eq!(header_name("X-Request-Id"), Ok("x-request-id".parse().unwrap()));
        for text in ["Content-Length", "connection", "Transfer-Encoding", "Date", "a b", ""] {
            assert!(header_name(text).unwrap_err().contains("X-Request-Id"), "{text}");
        }
    }

    #[test]
    fn workers_are_a_number_or_auto() {
        assert_eq!((workers("auto"), workers("0"), workers("1024")), (Ok(0), Ok(0), Ok(1024)));
        for text in ["1025", "-1", "", "many"] {
            assert!(workers(text).unwrap_err().contains("auto"), "{text}");
        }
    }

    #[test]
    fn a_host_with_a_port_is_answered_with_both_options() {
        for text in ["127.0.0.1", "::", "::1", "[::1]", "localhost", "fe80::1%eth0", "::1:8080"] {
            assert_eq!(host(text).as_deref(), Ok(text));
        }
        for (text, advice) in [
            ("127.0.0.1:8080", "--host 127.0.0.1 --port 8080"),
            ("localhost:80", "--host localhost --port 80"),
            ("[::1]:80", "--host ::1 --port 80"),
            (":8080", "use --port 8080, with --host :: for all addresses"),
            ("*", "use :: for all"),
            ("127.0.0.1,::1", "use :: for all"),
            ("http://localhost", "without a scheme"),
        ] {
            assert!(host(text).unwrap_err().ends_with(advice), "{text}");
        }
        assert!(host("").unwrap_err().contains("::"));
    }

    #[test]
    fn a_word_in_place_of_a_command_has_a_meaning() {
        for (word, command) in [
            (".", Some("serverd files .")),
            ("./my site", Some("serverd files \"./my site\"")),
            ("..", Some("serverd files ..")),
            ("/srv/www", Some("serverd files /srv/www")),
            ("src", Some("serverd files src")),
            ("8000", Some("serverd --port 8000")),
            (":8000", Some("serverd --port 8000")),
            ("0.0.0.0:80", Some("serverd --host 0.0.0.0 --port 80")),
            ("::1", Some("serverd --host ::1")),
            ("nothing", None),
        ] {
            assert_eq!(meant_command(word).as_deref(), command, "{word}");
        }
    }
}

//! Formats of access log lines: lists of pieces, each of which is text or a variable. Variables of the request are
//! written when it arrives, the others when its response ends.
//!
//! Everything a client sends is escaped, so it cannot forge lines (log injection) or send control sequences to a
//! terminal. In text formats, quotes, backslashes and bytes other than printable ASCII become `\xHH`, as in nginx. In
//! JSON, UTF-8 is written as UTF-8; quotes, backslashes, control characters and bidirectional formatting characters are
//! escaped, and a byte that is not UTF-8 becomes `\u00HH`.

use std::fmt::{self, Write as _};
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::request::RequestHead;
use crate::http1::Version;
use crate::r#loop::Peer;

/// Microseconds of a second.
const MICROS: u64 = 1_000_000;

/// Maximum length of a logged target or header value; longer ones are truncated.
const VALUE_BYTES_MAX: usize = 4096;

/// Format of the access log. Times are in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[non_exhaustive]
pub enum LogFormat {
    /// A short, human-readable line per request.
    ///
    /// It contains the time, client, method, target, status, content length and duration.
    Short,
    /// The combined log format of Apache and nginx.
    ///
    /// It is `client - user [time] "request line" status bytes "Referer" "User-Agent"`. The user is the subject of the
    /// client's certificate, or else the name that it sends with Basic authentication, with spaces escaped.
    Combined,
    /// A JSON object per request, on a line of its own.
    ///
    /// Unknown values are `null`. For a malformed request, `request` is its first line. For a client with a
    /// certificate, `client_subject` and `client_sha256` are added. docs/OPERATIONS.md lists the members.
    Json,
}

impl LogFormat {
    /// Checks a template; see [`AccessLog::template`](super::AccessLog::template).
    #[cfg(feature = "cli")]
    pub(crate) fn check_template(template: &str) -> Result<(), LogFormatError> {
        Format::compile(template).map(drop)
    }
}

/// The error for an invalid template or filter of the access log. The message says what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFormatError(String);

impl LogFormatError {
    pub(super) fn new(message: String) -> Self {
        LogFormatError(message)
    }
}

impl fmt::Display for LogFormatError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for LogFormatError {}

/// The escaping of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    /// Escaped as in nginx; `-` if unknown.
    Text,
    /// Between the quotes of a JSON string; empty if unknown.
    InJson,
    /// A JSON value; `null` if unknown.
    Json,
}

/// A compiled format.
#[derive(Clone, Debug)]
pub(super) struct Format {
    pieces: Vec<Piece>,
    /// Pieces that are the same for all requests of a connection, unless the client changes.
    runs: Vec<Vec<Piece>>,
    headers: LoggedHeaders,
    escape: Escape,
    /// A variable has a resolution below one second.
    pub(super) is_precise: bool,
    /// The id of the request is a variable.
    pub(super) has_id: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    /// A variable of the request.
    Early(Early),
    /// A variable of the response, or of the time at its end.
    Late(Late),
    /// One of [`Format::runs`], the text of which is in [`Texts::runs`].
    Run(usize),
}

impl Piece {
    /// Returns whether the piece is the same for all requests of a connection.
    fn is_constant(&self) -> bool {
        match self {
            Piece::Text(_) => true,
            Piece::Early(variable) => variable.is_of_connection(),
            Piece::Late(_) | Piece::Run(_) => false,
        }
    }
}

/// A variable that is known when the request arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Early {
    Client,
    ClientPort,
    PeerIp,
    PeerPort,
    /// Address and port of the peer.
    Peer,
    User,
    RequestLine,
    /// The method and the target.
    MethodAndTarget,
    Method,
    Target,
    Path,
    Query,
    Protocol,
    Scheme,
    Https,
    Host,
    /// The header with this index in [`LoggedHeaders`].
    Header(usize),
    Id,
    TraceId,
    Worker,
    Connection,
    RequestNumber,
    TlsVersion,
    /// In JSON, further members for the client's certificate.
    CertificateMembers,
    /// In JSON, a further member for the first line of a malformed request.
    MalformedMember,
}

/// A variable that is known when the response has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Late {
    /// As in `25/Nov/2026:11:04:51 +0000`.
    TimeLocal,
    /// As in `2026-11-25T11:04:51+00:00`.
    TimeIso,
    /// As in `2026-11-25T11:04:51.123Z`.
    TimeMillis,
    /// Seconds since 1970 with milliseconds.
    UnixMillis,
    /// The time of day, at the beginning of a line in the short format.
    Clock,
    /// The end of what is dimmed by [`Late::Clock`].
    Reset,
    Status,
    BytesIn,
    BytesOut,
    /// Length of the head and the body together.
    RequestLength,
    /// Seconds with milliseconds.
    RequestTime,
    /// Seconds with microseconds.
    Duration,
    FirstByte,
    End,
    Completion,
    /// The end of a line in the short format.
    Summary,
}

/// The variables of nginx, and those of serverd.
const EARLY: [(&str, Early); 22] = [
    ("remote_addr", Early::Client),
    ("remote_port", Early::ClientPort),
    ("realip_remote_addr", Early::PeerIp),
    ("realip_remote_port", Early::PeerPort),
    ("remote_user", Early::User),
    ("request", Early::RequestLine),
    ("request_method", Early::Method),
    ("request_uri", Early::Target),
    ("uri", Early::Path),
    ("args", Early::Query),
    ("query_string", Early::Query),
    ("server_protocol", Early::Protocol),
    ("scheme", Early::Scheme),
    ("https", Early::Https),
    ("host", Early::Host),
    ("request_id", Early::Id),
    ("connection", Early::Connection),
    ("connection_requests", Early::RequestNumber),
    ("ssl_protocol", Early::TlsVersion),
    ("trace_id", Early::TraceId),
    ("worker", Early::Worker),
    ("peer", Early::Peer),
];

const LATE: [(&str, Late); 13] = [
    ("time_local", Late::TimeLocal),
    ("time_iso8601", Late::TimeIso),
    ("time_rfc3339", Late::TimeMillis),
    ("msec", Late::UnixMillis),
    ("status", Late::Status),
    ("body_bytes_sent", Late::BytesOut),
    ("body_bytes_received", Late::BytesIn),
    ("request_length", Late::RequestLength),
    ("request_time", Late::RequestTime),
    ("duration", Late::Duration),
    ("first_byte_time", Late::FirstByte),
    ("end", Late::End),
    ("request_completion", Late::Completion),
];

const COMBINED: &str = "$remote_addr - $remote_user [$time_local] \"$request\" $status $body_bytes_sent \
    \"$http_referer\" \"$http_user_agent\"";

/// The members of a JSON line and their variables. Those of a connection follow one another, so that they are one run.
const JSON: [(&str, &str); 23] = [
    ("time", "time_rfc3339"),
    ("id", "request_id"),
    ("client", "remote_addr"),
    ("peer", "peer"),
    ("tls", "ssl_protocol"),
    ("worker", "worker"),
    ("connection", "connection"),
    ("request_number", "connection_requests"),
    ("host", "host"),
    ("user", "remote_user"),
    ("scheme", "scheme"),
    ("method", "request_method"),
    ("target", "request_uri"),
    ("protocol", "server_protocol"),
    ("status", "status"),
    ("bytes_in", "body_bytes_received"),
    ("bytes_out", "body_bytes_sent"),
    ("duration", "duration"),
    ("first_byte", "first_byte_time"),
    ("end", "end"),
    ("trace_id", "trace_id"),
    ("referer", "http_referer"),
    ("user_agent", "http_user_agent"),
];

/// The headers that a format contains.
#[derive(Clone, Debug)]
struct LoggedHeaders {
    /// Names in lower case, beginning with those of [`HOST`], [`AUTHORIZATION`] and [`TRACEPARENT`].
    names: Vec<String>,
    /// The lengths of the names: see [`Head::headers_with_lengths`](crate::http1::Head::headers_with_lengths).
    lengths: u64,
}

/// Indexes of headers that other variables are made of.
const HOST: usize = 0;
const AUTHORIZATION: usize = 1;
const TRACEPARENT: usize = 2;

/// Number of headers that are found in one pass; further ones are searched for one by one.
const FOUND_MAX: usize = 12;

/// The values of the first [`FOUND_MAX`] headers of a format.
type HeaderValues<'a> = [Option<&'a [u8]>; FOUND_MAX];

impl LoggedHeaders {
    fn new() -> Self {
        LoggedHeaders { names: ["host", "authorization", "traceparent"].map(str::to_owned).to_vec(), lengths: 0 }
    }

    /// Returns the index of a header, which is added if it is new.
    fn index(&mut self, name: &str) -> usize {
        let name = name.to_ascii_lowercase();
        self.names.iter().position(|known| *known == name).unwrap_or_else(|| {
            self.names.push(name);
            self.names.len() - 1
        })
    }

    /// Returns the values of headers with these names in a request.
    fn find<'a>(&self, head: &RequestHead<'a>) -> HeaderValues<'a> {
        let mut values = HeaderValues::default();
        for (name, value) in head.headers_with_lengths(self.lengths) {
            let mut known = self.names.iter().zip(&mut values);
            // The first of several, as in `RequestHead::header`.
            if let Some((_, found @ None)) = known.find(|(known, _)| known.as_bytes().eq_ignore_ascii_case(name)) {
                *found = Some(value);
            }
        }
        values
    }
}

fn find(name: &str, headers: &mut LoggedHeaders) -> Option<Piece> {
    let early = EARLY.iter().find(|(known, _)| *known == name).map(|(_, variable)| Piece::Early(variable.clone()));
    let late = || LATE.iter().find(|(known, _)| *known == name).map(|(_, variable)| Piece::Late(*variable));
    let header = || name.strip_prefix("http_").filter(|name| !name.is_empty());
    early.or_else(late).or_else(|| Some(Piece::Early(Early::Header(headers.index(&header()?.replace('_', "-"))))))
}

impl From<LogFormat> for Format {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Combined => Format::compile(COMBINED).expect("a valid format"),
            LogFormat::Json => Format::json(),
            LogFormat::Short => {
                let pieces = vec![
                    Piece::Late(Late::Clock),
                    Piece::Early(Early::Client),
                    Piece::Late(Late::Reset),
                    Piece::Early(Early::MethodAndTarget),
                    Piece::Late(Late::Summary),
                ];
                Format::new(pieces, LoggedHeaders::new(), Escape::Text)
            }
        }
    }
}

impl Format {
    /// Compiles a template with variables, such as `$remote_addr` or `${status}`. In a template that begins with `{`,
    /// values are escaped for JSON strings.
    pub(super) fn compile(template: &str) -> Result<Self, LogFormatError> {
        let (mut pieces, mut headers, mut rest) = (Vec::new(), LoggedHeaders::new(), template);
        while let Some(at) = rest.find('$') {
            pieces.push(Piece::Text(rest.as_bytes()[..at].to_vec()));
            let after = &rest[at + 1..];
            let (name, next) = if let Some(braced) = after.strip_prefix('{') {
                braced.split_once('}').ok_or_else(|| unknown(after))?
            } else {
                let is_end = |char: char| !char.is_ascii_alphanumeric() && char != '_';
                after.split_at(after.find(is_end).unwrap_or(after.len()))
            };
            pieces.push(find(name, &mut headers).ok_or_else(|| unknown(name))?);
            rest = next;
        }
        pieces.push(Piece::Text(rest.as_bytes().to_vec()));
        let escape = if template.starts_with('{') { Escape::InJson } else { Escape::Text };
        if template.contains(|char: char| char.is_control()) {
            return Err(LogFormatError("a format must not contain control characters".into()));
        }
        Ok(Format::new(pieces, headers, escape))
    }

    fn json() -> Self {
        let (mut pieces, mut headers) = (Vec::new(), LoggedHeaders::new());
        for (index, (name, variable)) in JSON.iter().enumerate() {
            let separator = if index == 0 { "{" } else { "," };
            pieces.push(Piece::Text(format!("{separator}\"{name}\":").into_bytes()));
            pieces.extend(find(variable, &mut headers));
        }
        pieces.push(Piece::Early(Early::CertificateMembers));
        pieces.push(Piece::Early(Early::MalformedMember));
        pieces.push(Piece::Text(b"}".to_vec()));
        Format::new(pieces, headers, Escape::Json)
    }

    fn new(mut pieces: Vec<Piece>, mut headers: LoggedHeaders, escape: Escape) -> Self {
        pieces.retain(|piece| !matches!(piece, Piece::Text(text) if text.is_empty()));
        let is_precise = pieces.iter().any(|piece| matches!(piece, Piece::Late(late) if late.is_precise()));
        let has_id = pieces.contains(&Piece::Early(Early::Id));
        headers.lengths = pieces
            .iter()
            .filter_map(|piece| match piece {
                Piece::Early(Early::Host) => Some(HOST),
                Piece::Early(Early::User) => Some(AUTHORIZATION),
                Piece::Early(Early::TraceId) => Some(TRACEPARENT),
                Piece::Early(Early::Header(index)) => Some(*index),
                _ => None,
            })
            .fold(0, |lengths, index| lengths | 1 << headers.names[index].len().min(63));
        let (pieces, runs) = join_constant(&pieces);
        Format { pieces, runs, headers, escape, is_precise, has_id }
    }

    /// Writes the texts that are the same for all requests of a connection, unless they are up to date.
    pub(super) fn fill(&self, texts: &mut Texts, connection: &ConnectionValues) {
        if texts.is_filled {
            return;
        }
        let mut runs = std::mem::take(&mut texts.runs);
        runs.resize_with(self.runs.len(), Vec::new);
        for (out, pieces) in runs.iter_mut().zip(&self.runs) {
            out.clear();
            let mut writer = Writer { out, escape: self.escape };
            for piece in pieces {
                match piece {
                    Piece::Text(text) => writer.out.extend_from_slice(text),
                    Piece::Early(variable) => writer.of_connection(variable, connection, texts),
                    Piece::Late(_) | Piece::Run(_) => {}
                }
            }
        }
        (texts.runs, texts.is_filled) = (runs, true);
    }

    /// Returns the values of the headers that the format contains.
    pub(super) fn find_headers<'a>(&self, head: &RequestHead<'a>) -> HeaderValues<'a> {
        self.headers.find(head)
    }

    /// Writes the variables of the request.
    pub(super) fn begin(&self, record: &mut LogRecord, arrival: &Arrival<'_>) {
        record.text.clear();
        record.ends.clear();
        let mut writer = Writer { out: &mut record.text, escape: self.escape };
        for piece in &self.pieces {
            match piece {
                Piece::Late(_) => record.ends.push(writer.out.len()),
                piece => self.early(&mut writer, piece, arrival),
            }
        }
    }

    /// Appends the line of a request that has ended.
    pub(super) fn end(&self, out: &mut Vec<u8>, record: &LogRecord, outcome: &Outcome<'_>) {
        let late =
            self.pieces.iter().filter_map(|piece| if let Piece::Late(late) = piece { Some(*late) } else { None });
        let mut start = 0;
        for (variable, &end) in late.zip(&record.ends) {
            out.extend_from_slice(&record.text[start..end]);
            Writer { out, escape: self.escape }.late(variable, outcome);
            start = end;
        }
        out.extend_from_slice(&record.text[start..]);
        out.push(b'\n');
    }

    /// Appends the line of a request that has ended already, without a record.
    pub(super) fn line(&self, out: &mut Vec<u8>, arrival: &Arrival<'_>, outcome: &Outcome<'_>) {
        let mut writer = Writer { out, escape: self.escape };
        for piece in &self.pieces {
            match piece {
                Piece::Late(variable) => writer.late(*variable, outcome),
                piece => self.early(&mut writer, piece, arrival),
            }
        }
        out.push(b'\n');
    }

    /// Writes a piece that is known when the request arrives.
    #[inline]
    fn early(&self, writer: &mut Writer<'_>, piece: &Piece, arrival: &Arrival<'_>) {
        match piece {
            Piece::Text(text) => writer.out.extend_from_slice(text),
            Piece::Early(variable) => writer.early(variable, arrival, &self.headers),
            Piece::Run(index) => writer.out.extend_from_slice(arrival.texts.runs.get(*index).map_or(&[], |run| run)),
            Piece::Late(_) => {}
        }
    }
}

/// Joins pieces that follow one another and are the same for all requests of a connection, if one of them is a variable.
fn join_constant(pieces: &[Piece]) -> (Vec<Piece>, Vec<Vec<Piece>>) {
    let (mut joined, mut runs) = (Vec::new(), Vec::new());
    for group in pieces.chunk_by(|a, b| a.is_constant() && b.is_constant()) {
        if group[0].is_constant() && group.iter().any(|piece| matches!(piece, Piece::Early(_))) {
            joined.push(Piece::Run(runs.len()));
            runs.push(group.to_vec());
        } else {
            joined.extend_from_slice(group);
        }
    }
    (joined, runs)
}

#[cold]
fn unknown(name: &str) -> LogFormatError {
    let names: Vec<&str> = EARLY.iter().map(|(name, _)| *name).chain(LATE.iter().map(|(name, _)| *name)).collect();
    LogFormatError(format!("unknown variable ${name}; use {} or http_NAME for a header", names.join(", ")))
}

impl Early {
    /// Returns whether the variable is the same for all requests of a connection, unless the client changes.
    fn is_of_connection(&self) -> bool {
        use Early::{Client, Connection, Peer, PeerIp, PeerPort, TlsVersion, Worker};
        matches!(self, Client | Peer | PeerIp | PeerPort | Worker | Connection | TlsVersion)
    }
}

impl Late {
    fn is_precise(self) -> bool {
        use Late::{Duration, FirstByte, RequestTime, TimeMillis, UnixMillis};
        matches!(self, TimeMillis | UnixMillis | RequestTime | Duration | FirstByte)
    }
}

/// The part of a line that is known when the request arrives, already formatted.
#[derive(Debug, Default)]
pub(super) struct LogRecord {
    text: Vec<u8>,
    /// Positions in `text` at which the other variables are inserted.
    ends: Vec<usize>,
}

/// The values of a connection that its requests share.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ConnectionValues {
    pub(super) peer: Option<Peer>,
    pub(super) tls_version: Option<&'static str>,
    pub(super) worker: usize,
    /// The number of the connection, of those of the worker.
    pub(super) number: u64,
}

/// A request that has arrived.
pub(super) struct Arrival<'a> {
    /// `None` for a malformed request.
    pub(super) head: Option<RequestHead<'a>>,
    /// Of the head, by [`Format::find_headers`].
    pub(super) headers: HeaderValues<'a>,
    /// The first line of a malformed request.
    pub(super) line: &'a [u8],
    pub(super) client: Option<SocketAddr>,
    pub(super) texts: &'a Texts,
    pub(super) id: &'a [u8],
    /// The client may have a certificate.
    pub(super) is_tls: bool,
    /// The number of the request on its connection.
    pub(super) number: u64,
    /// Omit queries.
    pub(super) drops_query: bool,
}

/// Addresses of a connection as text, which is kept for its next request.
#[derive(Debug, Default)]
pub(super) struct Texts {
    client: Option<IpAddr>,
    /// The address of the client; empty if it is unknown.
    client_text: String,
    /// The address and the port of the peer; empty if it is unknown.
    peer_text: String,
    /// The texts of [`Format::runs`], if `is_filled`.
    runs: Vec<Vec<u8>>,
    is_filled: bool,
}

impl Texts {
    pub(super) fn set_peer(&mut self, peer: Option<Peer>) {
        let canonical = |addr: SocketAddr| SocketAddr::new(addr.ip().to_canonical(), addr.port());
        set_text(&mut self.peer_text, peer.map(|peer| peer.addr().map_or(peer, |addr| Peer::Tcp(canonical(addr)))));
        (self.client, self.is_filled) = (None, false);
        set_text(&mut self.client_text, peer.filter(|peer| peer.is_unix()));
    }

    /// Sets the address of the client; without one, it is the peer on the other end of a Unix socket, if it is that.
    pub(super) fn set_client(&mut self, client: Option<IpAddr>) {
        if self.client == client {
            return;
        }
        (self.client, self.is_filled) = (client, false);
        match client {
            Some(client) => set_text(&mut self.client_text, Some(client.to_canonical())),
            None => self.client_text.clear(),
        }
    }
}

fn set_text(text: &mut String, value: Option<impl fmt::Display>) {
    text.clear();
    if let Some(value) = value {
        // Writing to a string cannot fail.
        let _ = write!(text, "{value}");
    }
}

/// A response that has ended.
pub(super) struct Outcome<'a> {
    pub(super) date: &'a Date,
    /// Milliseconds within the second.
    pub(super) millis: u64,
    pub(super) status: u16,
    pub(super) head_bytes: u64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) duration_us: u64,
    /// Time to the first byte of the response, if there was one.
    pub(super) first_byte_us: Option<u64>,
    /// The end of the response, as logged: `complete`, or the reason why it is not.
    pub(super) end: &'static str,
    /// Use terminal colors.
    pub(super) color: bool,
}

impl<'a> Arrival<'a> {
    fn target(&self) -> Option<&'a [u8]> {
        let target = self.head?.target().as_bytes();
        Some(if self.drops_query { without_query(target) } else { target })
    }

    /// Returns the value of the header with this index.
    fn header(&self, index: usize, headers: &LoggedHeaders) -> Option<&'a [u8]> {
        let value = match self.headers.get(index) {
            Some(value) => (*value)?,
            None => self.head?.header(&headers.names[index])?,
        };
        Some(if self.drops_query && headers.names[index] == "referer" { without_query(value) } else { value })
    }

    /// Returns the subject and the fingerprint of the client's certificate.
    fn identity(&self) -> Option<(&'a str, &'a str)> {
        if self.is_tls { self.head.as_ref().and_then(client_identity) } else { None }
    }
}

fn protocol(head: &RequestHead<'_>) -> &'static str {
    if head.version() == Version::Http10 { "HTTP/1.0" } else { "HTTP/1.1" }
}

fn without_query(target: &[u8]) -> &[u8] {
    &target[..memchr::memchr2(b'?', b'#', target).unwrap_or(target.len())]
}

/// Returns the user name of Basic authentication, decoded, if the credentials are well-formed.
fn basic_user(authorization: &[u8]) -> Option<Vec<u8>> {
    let (scheme, credentials) = authorization.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let mut user = decode_base64(&credentials.trim_ascii()[..credentials.trim_ascii().len().min(VALUE_BYTES_MAX)])?;
    user.truncate(memchr::memchr(b':', &user)?);
    (!user.is_empty()).then_some(user)
}

fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    let (mut out, mut bits, mut count) = (Vec::with_capacity(text.len() * 3 / 4), 0_u32, 0);
    for &byte in text {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push(u8::try_from(bits >> count & 0xff).unwrap_or(0));
        }
    }
    Some(out)
}

/// Returns the subject and the fingerprint of the client's certificate.
#[cfg(feature = "tls")]
fn client_identity<'a>(head: &RequestHead<'a>) -> Option<(&'a str, &'a str)> {
    head.client_certificate().map(|certificate| (certificate.subject.as_str(), certificate.fingerprint.as_str()))
}

/// Returns `None`: without TLS, there are no certificates.
#[cfg(not(feature = "tls"))]
fn client_identity<'a>(_: &RequestHead<'a>) -> Option<(&'a str, &'a str)> {
    None
}

/// Returns the trace id of a valid traceparent header (W3C Trace Context, section 3.2).
pub(super) fn trace_id(value: &[u8]) -> Option<&[u8]> {
    let is_hex = |bytes: &[u8]| bytes.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == b'0');
    let (fixed, rest) = value.split_first_chunk::<55>()?;
    let (version, trace, parent, flags) = (&fixed[..2], &fixed[3..35], &fixed[36..52], &fixed[53..]);
    let has_dashes = [2, 35, 52].iter().all(|&at| fixed[at] == b'-');
    // A later version may append fields.
    let is_complete = rest.is_empty() || (version != b"00" && rest[0] == b'-');
    let is_valid = has_dashes
        && is_complete
        && version != b"ff"
        && [version, trace, parent, flags].into_iter().all(is_hex)
        && !is_zero(trace)
        && !is_zero(parent);
    is_valid.then(|| &value[3..35])
}

/// Writes values.
struct Writer<'a> {
    out: &'a mut Vec<u8>,
    escape: Escape,
}

impl Writer<'_> {
    /// Writes a value that a client may have sent.
    fn text(&mut self, value: Option<&[u8]>) {
        match (self.escape, value) {
            (Escape::Text, value) => escape(self.out, value.filter(|value| !value.is_empty()).unwrap_or(b"-")),
            (Escape::InJson, value) => json_text(self.out, value.unwrap_or_default()),
            (Escape::Json, None) => self.out.extend_from_slice(b"null"),
            (Escape::Json, Some(value)) => {
                self.out.push(b'"');
                json_text(self.out, value);
                self.out.push(b'"');
            }
        }
    }

    /// Writes a value that needs no escaping and is quoted in JSON; an empty one is unknown.
    fn word(&mut self, value: &str) {
        self.word_bytes(value.as_bytes());
    }

    fn word_bytes(&mut self, value: &[u8]) {
        if value.is_empty() {
            self.text(None);
        } else if self.escape == Escape::Json {
            self.out.push(b'"');
            self.out.extend_from_slice(value);
            self.out.push(b'"');
        } else {
            self.out.extend_from_slice(value);
        }
    }

    /// Writes a value that needs no escaping and is quoted in JSON.
    fn plain(&mut self, value: Option<impl fmt::Display>) {
        let Some(value) = value else { return self.text(None) };
        // Writing to a vector cannot fail.
        let _ = if self.escape == Escape::Json { write!(self.out, "\"{value}\"") } else { write!(self.out, "{value}") };
    }

    fn number(&mut self, value: u64) {
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// Writes seconds with a fraction of `N - 1` digits.
    fn seconds<const N: usize>(&mut self, time_us: u64) {
        self.number(time_us / MICROS);
        self.out.extend_from_slice(&fraction::<N>(time_us % MICROS));
    }

    /// Writes a variable that is the same for all requests of a connection.
    fn of_connection(&mut self, variable: &Early, connection: &ConnectionValues, texts: &Texts) {
        let peer = connection.peer;
        match variable {
            Early::Client => self.word(&texts.client_text),
            Early::Peer => self.word(&texts.peer_text),
            Early::PeerIp => self.plain(peer.and_then(Peer::ip).map(|ip| ip.to_canonical())),
            Early::PeerPort => self.plain(peer.and_then(Peer::addr).map(|addr| addr.port())),
            Early::Worker => self.number(connection.worker as u64),
            Early::Connection => self.number(connection.number),
            _ => self.word(connection.tls_version.unwrap_or_default()),
        }
    }

    fn early(&mut self, variable: &Early, arrival: &Arrival<'_>, headers: &LoggedHeaders) {
        let head = arrival.head.as_ref();
        match variable {
            Early::ClientPort => self.plain(arrival.client.map(|client| client.port()).filter(|port| *port > 0)),
            Early::User => self.user(arrival, headers),
            Early::RequestLine => self.request_line(arrival),
            Early::MethodAndTarget => match head {
                Some(head) => {
                    self.text(Some(head.method_bytes()));
                    self.out.push(b' ');
                    self.text(arrival.target());
                }
                None => self.text(Some(arrival.line)),
            },
            Early::Method => self.text(head.map(RequestHead::method_bytes)),
            Early::Target => self.text(arrival.target()),
            Early::Path => self.text(head.map(|head| head.path().as_bytes())),
            Early::Query if arrival.drops_query => self.text(None),
            Early::Query => self.text(head.and_then(RequestHead::query).map(str::as_bytes)),
            Early::Protocol => self.word(head.map_or("", protocol)),
            Early::Scheme => self.word(head.map_or("", |head| if head.is_secure() { "https" } else { "http" })),
            Early::Https => self.word(if head.is_some_and(RequestHead::is_secure) { "on" } else { "" }),
            Early::Host => self.text(head.and_then(|head| head.host_of(arrival.headers[HOST]))),
            Early::Header(index) => self.text(arrival.header(*index, headers)),
            Early::Id => self.word_bytes(arrival.id),
            Early::TraceId => self.text(arrival.header(TRACEPARENT, headers).and_then(trace_id)),
            Early::RequestNumber => self.number(arrival.number),
            Early::CertificateMembers => {
                if let Some((subject, fingerprint)) = arrival.identity() {
                    self.out.extend_from_slice(b",\"client_subject\":");
                    self.text(Some(subject.as_bytes()));
                    let _ = write!(self.out, ",\"client_sha256\":\"{fingerprint}\"");
                }
            }
            Early::MalformedMember if head.is_none() => {
                self.out.extend_from_slice(b",\"request\":");
                self.text(Some(arrival.line));
            }
            Early::MalformedMember => {}
            _ => debug_assert!(variable.is_of_connection(), "these are in runs"),
        }
    }

    /// Writes the subject of the client's certificate, or the name that it sends with Basic authentication. Spaces
    /// separate the parts of a line, so they are escaped.
    fn user(&mut self, arrival: &Arrival<'_>, headers: &LoggedHeaders) {
        let subject = arrival.identity().map(|(subject, _)| subject.as_bytes().to_vec());
        let user = subject.or_else(|| arrival.header(AUTHORIZATION, headers).and_then(basic_user));
        let user = match user {
            Some(user) if self.escape == Escape::Text && user.contains(&b' ') => user,
            user => return self.text(user.as_deref()),
        };
        for (index, word) in truncated(&user).split(|&byte| byte == b' ').enumerate() {
            if index > 0 {
                self.out.extend_from_slice(b"\\x20");
            }
            escape(self.out, word);
        }
        mark_truncated(self.out, &user);
    }

    fn request_line(&mut self, arrival: &Arrival<'_>) {
        let Some(head) = &arrival.head else { return self.text(Some(arrival.line)) };
        // The parts of a value in JSON are not quoted one by one.
        let mut parts = Writer { out: self.out, escape: self.escape };
        if parts.escape == Escape::Json {
            parts.escape = Escape::InJson;
            parts.out.push(b'"');
        }
        parts.text(Some(head.method_bytes()));
        parts.out.push(b' ');
        parts.text(arrival.target());
        parts.out.push(b' ');
        parts.out.extend_from_slice(protocol(head).as_bytes());
        if self.escape == Escape::Json {
            self.out.push(b'"');
        }
    }

    fn late(&mut self, variable: Late, outcome: &Outcome<'_>) {
        let Outcome { date, millis, .. } = outcome;
        match variable {
            Late::TimeLocal => self.word(&date.common),
            Late::TimeIso => self.plain(Some(format_args!("{}+00:00", date.rfc3339))),
            Late::TimeMillis => self.time_millis(date, *millis),
            Late::UnixMillis => self.seconds::<4>(date.unix_time() * MICROS + millis * 1000),
            Late::Status => self.number(outcome.status.into()),
            Late::BytesIn => self.number(outcome.bytes_in),
            Late::BytesOut => self.number(outcome.bytes_out),
            Late::RequestLength => self.number(outcome.head_bytes + outcome.bytes_in),
            Late::RequestTime => self.seconds::<4>(outcome.duration_us),
            Late::Duration => self.seconds::<7>(outcome.duration_us),
            Late::FirstByte => match outcome.first_byte_us {
                Some(time_us) => self.seconds::<7>(time_us),
                None => self.text(None),
            },
            Late::End => self.word(outcome.end),
            Late::Completion => self.word(if outcome.end == "complete" { "OK" } else { "" }),
            Late::Clock => {
                let dim = if outcome.color { "\x1b[2m" } else { "" };
                let _ = write!(self.out, "{dim}{}Z ", &date.rfc3339[11..]);
            }
            Late::Reset => self.out.extend_from_slice(if outcome.color { b"\x1b[0m " } else { b" " }),
            Late::Summary => self.summary(outcome),
        }
    }

    fn time_millis(&mut self, date: &Date, millis: u64) {
        let mut text = *b"\"0000-00-00T00:00:00.000Z\"";
        if let Ok(date) = <&[u8; 19]>::try_from(date.rfc3339.as_bytes()) {
            text[1..20].copy_from_slice(date);
        }
        text[20..24].copy_from_slice(&fraction::<4>(millis * 1000));
        self.out.extend_from_slice(if self.escape == Escape::Json { &text } else { &text[1..25] });
    }

    fn summary(&mut self, outcome: &Outcome<'_>) {
        let (dim, reset) = if outcome.color { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        let color = if outcome.color { status_color(outcome.status) } else { "" };
        let (status, size, duration) = (outcome.status, Size(outcome.bytes_out), outcome.duration_us / 1000);
        let _ = write!(self.out, " {color}{status}{reset} {size} {dim}{duration} ms{reset}");
    }
}

/// Returns the first `N - 1` digits of a fraction of a second, after a point.
fn fraction<const N: usize>(mut micros: u64) -> [u8; N] {
    // Seven bytes have all six digits.
    (N..7).for_each(|_| micros /= 10);
    let mut text = [b'.'; N];
    for digit in text[1..].iter_mut().rev() {
        *digit = b"0123456789"[(micros % 10) as usize];
        micros /= 10;
    }
    text
}

fn status_color(status: u16) -> &'static str {
    match status {
        ..300 => "\x1b[32m",
        300..400 => "\x1b[36m",
        400..500 => "\x1b[33m",
        _ => "\x1b[31m",
    }
}

/// Returns whether a byte is escaped: a quote, a backslash, or one that is not printable ASCII.
fn needs_escape(byte: u8) -> bool {
    !(0x20..0x7f).contains(&byte) || byte == b'"' || byte == b'\\'
}

/// Returns whether no byte needs to be escaped. Examines whole chunks, of which the last two may overlap, as the
/// compiler turns them into vector instructions.
fn is_plain(value: &[u8]) -> bool {
    if let Some(last) = value.last_chunk::<16>() {
        return !value.as_chunks::<16>().0.iter().any(has_escape) && !has_escape(last);
    }
    if let (Some(first), Some(last)) = (value.first_chunk::<8>(), value.last_chunk::<8>()) {
        return !has_escape(first) && !has_escape(last);
    }
    !value.iter().any(|byte| needs_escape(*byte))
}

#[inline]
fn has_escape<const N: usize>(bytes: &[u8; N]) -> bool {
    bytes.iter().fold(false, |any, byte| any | needs_escape(*byte))
}

/// Appends a client-supplied value, escaped as in nginx.
fn escape(out: &mut Vec<u8>, value: &[u8]) {
    if value.len() <= VALUE_BYTES_MAX && is_plain(value) {
        return out.extend_from_slice(value);
    }
    let mut rest = truncated(value);
    while let Some(at) = rest.iter().position(|byte| needs_escape(*byte)) {
        out.extend_from_slice(&rest[..at]);
        let _ = write!(out, "\\x{:02X}", rest[at]);
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    mark_truncated(out, value);
}

/// Appends the text of a JSON string. A byte that is not part of valid UTF-8 is mapped to U+0080 to U+00FF (Latin-1).
fn json_text(out: &mut Vec<u8>, value: &[u8]) {
    if value.len() <= VALUE_BYTES_MAX && is_plain(value) {
        return out.extend_from_slice(value);
    }
    for chunk in truncated(value).utf8_chunks() {
        for char in chunk.valid().chars() {
            let _ = match char {
                '"' | '\\' => write!(out, "\\{char}"),
                _ if char.is_control() || reorders_text(char) => write!(out, "\\u{:04x}", u32::from(char)),
                _ => write!(out, "{char}"),
            };
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\u{byte:04x}");
        }
    }
    mark_truncated(out, value);
}

/// Returns whether a character changes the direction of text, with which a client could make a line misleading.
fn reorders_text(char: char) -> bool {
    matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Truncates a value to [`VALUE_BYTES_MAX`], but not within a UTF-8 character.
fn truncated(value: &[u8]) -> &[u8] {
    if value.len() <= VALUE_BYTES_MAX {
        return value;
    }
    let is_boundary = |at: &usize| !matches!(value[*at], 0x80..0xc0);
    // A character has at most four bytes.
    let end = (VALUE_BYTES_MAX - 3..=VALUE_BYTES_MAX).rev().find(is_boundary).unwrap_or(VALUE_BYTES_MAX);
    &value[..end]
}

fn mark_truncated(out: &mut Vec<u8>, value: &[u8]) {
    if value.len() > VALUE_BYTES_MAX {
        out.extend_from_slice(b"...");
    }
}

/// A human-readable size.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(formatter, "{} B", self.0);
        }
        let (mut tenths, mut unit) = (u128::from(self.0) * 10 / 1024, 0);
        while tenths >= 10_240 {
            tenths /= 1024;
            unit += 1;
        }
        write!(formatter, "{}.{} {}", tenths / 10, tenths % 10, units[unit])
    }
}

/// The current time in the formats of logs. Formatted again only when the second changes.
#[derive(Debug, Default)]
pub(super) struct Date {
    second: Option<u64>,
    /// `25/Nov/2026:11:04:51 +0000`
    common: String,
    /// `2026-11-25T11:04:51`
    rfc3339: String,
}

impl Date {
    /// Sets the time, in seconds since the Unix epoch.
    pub(super) fn set(&mut self, now: u64) {
        if self.second.replace(now) == Some(now) {
            return;
        }
        // Clamped to the end of the year 9999, the limit of the `httpdate` crate.
        let time = std::time::UNIX_EPOCH + Duration::from_secs(now.min(253_402_300_799));
        // "Sun, 06 Nov 1994 08:49:37 GMT"
        let text = httpdate::fmt_http_date(time);
        let (day, month, year, clock) = (&text[5..7], &text[8..11], &text[12..16], &text[17..25]);
        let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let number = months.iter().position(|name| *name == month).map_or(0, |index| index + 1);
        self.common.clear();
        self.rfc3339.clear();
        // Writing to a string cannot fail.
        let _ = write!(self.common, "{day}/{month}/{year}:{clock} +0000");
        let _ = write!(self.rfc3339, "{year}-{number:02}-{day}T{clock}");
    }

    /// Returns the time as in `2026-11-25T11:04:51`.
    #[cfg(feature = "cli")]
    pub(super) fn rfc3339(&self) -> &str {
        &self.rfc3339
    }

    fn unix_time(&self) -> u64 {
        self.second.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(value: &[u8]) -> String {
        let mut out = Vec::new();
        escape(&mut out, value);
        String::from_utf8(out).unwrap()
    }

    fn json(value: &[u8]) -> String {
        let mut out = Vec::new();
        Writer { out: &mut out, escape: Escape::Json }.text(Some(value));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn non_printable_bytes_quotes_and_backslashes_are_escaped_as_in_nginx() {
        assert_eq!(escaped(b"/a b~"), "/a b~");
        assert_eq!(escaped(b"\r\n\x1b[31m\x7f"), "\\x0D\\x0A\\x1B[31m\\x7F");
        assert_eq!(escaped("\"\\\u{e4}".as_bytes()), "\\x22\\x5C\\xC3\\xA4");
    }

    #[test]
    fn long_values_are_truncated() {
        let long = escaped(&[b'a'; VALUE_BYTES_MAX + 1]);
        assert_eq!((long.len(), long.ends_with("aaa...")), (VALUE_BYTES_MAX + 3, true));
    }

    #[test]
    fn json_strings_keep_utf_8_and_escape_control_characters() {
        assert_eq!(json("J\u{fc}rgen \u{65e5}\u{1f600}".as_bytes()), "\"J\u{fc}rgen \u{65e5}\u{1f600}\"");
        assert_eq!(json("\"\\\u{7f}\u{9b}\u{202e}".as_bytes()), "\"\\\"\\\\\\u007f\\u009b\\u202e\"");
        assert_eq!(json(b"J\xfcrgen\xc3"), "\"J\\u00fcrgen\\u00c3\"");
        let long = json(&[&[b'a'; VALUE_BYTES_MAX - 1], "\u{65e5}".as_bytes()].concat());
        assert_eq!(long, format!("\"{}...\"", "a".repeat(VALUE_BYTES_MAX - 1)));
    }

    #[test]
    fn every_byte_becomes_one_json_character() {
        let all: Vec<u8> = (0..=255).collect();
        let text = json(&all);
        assert!(text.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
        #[cfg(feature = "json")]
        {
            let back: String = serde_json::from_str(&text).unwrap();
            assert!(back.chars().map(u32::from).eq(0..=255));
        }
    }

    #[test]
    fn dates_match_the_log_formats() {
        let mut date = Date::default();
        date.set(784_111_777);
        assert_eq!(
            (date.common.as_str(), date.rfc3339.as_str()),
            ("06/Nov/1994:08:49:37 +0000", "1994-11-06T08:49:37")
        );
        date.set(0);
        assert_eq!(date.rfc3339, "1970-01-01T00:00:00");
    }

    #[test]
    fn sizes_are_human_readable() {
        let texts = [0, 1023, 1024, 1536, 1 << 20, u64::MAX].map(|bytes| Size(bytes).to_string());
        assert_eq!(texts, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "15.9 EiB"]);
    }

    #[test]
    fn the_user_of_basic_credentials_is_decoded() {
        for (value, user) in [
            ("Basic YWxpY2U6c2VjcmV0", Some("alice")),
            ("basic  YWxpY2U6Og==", Some("alice")),
            ("Basic YWxpY2U=", None),
            ("Basic OnNlY3JldA==", None),
            ("Basic !!!!", None),
            ("Bearer YWxpY2U6c2VjcmV0", None),
            ("Basi", None),
        ] {
            assert_eq!(basic_user(value.as_bytes()).as_deref(), user.map(str::as_bytes), "{value}");
        }
    }

    #[test]
    fn a_trace_id_is_parsed_strictly() {
        let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let zero = "0".repeat(32);
        for (value, is_valid) in [
            (format!("00-{trace}-{parent}-01"), true),
            (format!("cc-{trace}-{parent}-01-more"), true),
            (format!("00-{trace}-{parent}-01-more"), false),
            (format!("00-{trace}-{parent}-01 "), false),
            (format!("cc-{trace}-{parent}-01x"), false),
            (format!("ff-{trace}-{parent}-01"), false),
            (format!("00-{zero}-{parent}-01"), false),
            (format!("00-{trace}-{}-01", &zero[..16]), false),
            (format!("00-{}-{parent}-01", trace.to_uppercase()), false),
            (format!("00-{trace}_{parent}-01"), false),
            (format!("00-{trace}-{parent}-0"), false),
        ] {
            assert_eq!(trace_id(value.as_bytes()), is_valid.then_some(trace.as_bytes()), "{value}");
        }
    }

    #[test]
    fn a_template_has_variables_and_text() {
        let format = Format::compile("a $status ${request_id}b$http_x_y").unwrap();
        let header = Piece::Early(Early::Header(3));
        let text = |text: &str| Piece::Text(text.as_bytes().to_vec());
        let pieces = vec![text("a "), Piece::Late(Late::Status), text(" "), Piece::Early(Early::Id), text("b"), header];
        assert_eq!((format.pieces, format.escape, format.is_precise), (pieces, Escape::Text, false));
        assert_eq!(format.headers.names[3], "x-y");
        assert!(Format::compile("$request_time").unwrap().is_precise);
        assert_eq!(Format::compile("{\"a\":\"$host\"}").unwrap().escape, Escape::InJson);
        for template in ["$nothing", "$", "${status", "$http_"] {
            assert!(Format::compile(template).is_err(), "{template}");
        }
        assert!(Format::compile("$nothing").unwrap_err().to_string().contains("$nothing; use remote_addr"));
        assert!(Format::compile("$status\n").is_err());
    }

    #[test]
    fn durations_have_a_fixed_number_of_digits() {
        let mut out = Vec::new();
        let mut writer = Writer { out: &mut out, escape: Escape::Json };
        writer.seconds::<7>(1_002_003);
        writer.out.push(b' ');
        writer.seconds::<4>(9_999);
        assert_eq!(out, b"1.002003 0.009");
    }
}

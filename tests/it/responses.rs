//! Property test: whatever a handler returns, the output is a sequence of valid responses, one per request, according
//! to an independent parser (httparse). The application runs without a socket.

use std::io::{self, Read};

use bytes::Bytes;
use http::StatusCode;
use proptest::prelude::*;
use serverd::{Accepted, App, Flow, HttpServer, Output, Request, Response, Trailers, Wire};

/// The body of a response.
#[derive(Clone, Debug)]
enum BodyKind {
    Bytes(Vec<u8>),
    Pieces(Vec<Vec<u8>>),
    /// Pieces with a declared length, which may be wrong.
    WithLength(Vec<Vec<u8>>, u64),
    Reader(Vec<u8>),
    /// A reader that returns these bytes and then an error.
    Broken(Vec<u8>),
    WithTrailer(Vec<Vec<u8>>, String),
}

/// The response of a handler to one request.
#[derive(Clone, Debug)]
struct Plan {
    status: u16,
    content: BodyKind,
    content_type: Option<&'static str>,
    headers: Vec<(String, Vec<u8>)>,
    close: bool,
}

impl Plan {
    fn response(self) -> Response {
        let pieces = |list: Vec<Vec<u8>>| Response::stream(list.into_iter().map(Bytes::from));
        let mut response = match self.content {
            BodyKind::Bytes(bytes) => Response::text(bytes),
            BodyKind::Pieces(list) => pieces(list),
            BodyKind::WithLength(list, length) => pieces(list).length(length),
            BodyKind::Reader(bytes) => Response::reader(io::Cursor::new(bytes)),
            BodyKind::Broken(bytes) => Response::reader(io::Cursor::new(bytes).chain(Broken)),
            BodyKind::WithTrailer(list, name) => {
                let trailer = name.clone();
                pieces(list).trailers(&[&name], move || {
                    let mut trailers = Trailers::new();
                    // An invalid trailer is omitted.
                    let _ = trailers.push(trailer, "v");
                    trailers
                })
            }
        };
        if let Some(content_type) = self.content_type {
            response = response.content_type(content_type);
        }
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        response = response.with_status(StatusCode::from_u16(self.status).expect("a status code"));
        if self.close { response.close() } else { response }
    }
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("injected"))
    }
}

fn content() -> impl Strategy<Value = BodyKind> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..300);
    let pieces = move || prop::collection::vec(bytes(), 0..5);
    prop_oneof![
        bytes().prop_map(BodyKind::Bytes),
        pieces().prop_map(BodyKind::Pieces),
        (pieces(), 0_u64..400).prop_map(|(list, length)| BodyKind::WithLength(list, length)),
        bytes().prop_map(BodyKind::Reader),
        bytes().prop_map(BodyKind::Broken),
        (pieces(), name()).prop_map(|(list, name)| BodyKind::WithTrailer(list, name)),
    ]
}

/// Header names: valid, reserved by the server, and invalid.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => "[A-Za-z-]{1,12}",
        2 => prop::sample::select(vec![
            "Content-Length", "transfer-encoding", "Connection", "Date", "Trailer", "Content-Type", "Upgrade", "Host",
        ]).prop_map(str::to_owned),
        1 => "[ -~\r\n:]{0,8}",
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    let types = prop::sample::select(vec!["text/html", "a/b\r\nX-Split: c", ""]);
    let value =
        prop_oneof![3 => "[ -~]{0,20}".prop_map(String::into_bytes), 1 => prop::collection::vec(any::<u8>(), 0..6)];
    let status = prop_oneof![
        4 => Just(200_u16),
        2 => prop::sample::select(vec![100, 101, 204, 205, 304, 404, 500]),
        1 => 100_u16..=999,
    ];
    (status, content(), prop::option::of(types), prop::collection::vec((name(), value), 0..3), any::<bool>()).prop_map(
        |(status, content, content_type, headers, close)| Plan { status, content, content_type, headers, close },
    )
}

#[derive(Clone, Debug)]
struct RequestPlan {
    method: &'static str,
    minor: u8,
    headers: &'static str,
}

fn request_plan() -> impl Strategy<Value = RequestPlan> {
    let headers = vec!["", "Connection: close\r\n", "Connection: keep-alive\r\n", "TE: trailers\r\nConnection: te\r\n"];
    (
        prop::sample::select(vec!["GET", "GET", "HEAD", "POST", "OPTIONS", "CONNECT"]),
        0_u8..=1,
        prop::sample::select(headers),
    )
        .prop_map(|(method, minor, headers)| RequestPlan { method, minor, headers })
}

/// Passes the input to the server, and returns its output and final flow.
fn run(input: &[u8], mut plans: std::vec::IntoIter<Plan>) -> (Vec<u8>, Flow) {
    let mut server = HttpServer::with(move |_: &Request<'_>| plans.next().expect("a plan for each request").response());
    let (mut output, mut messages, mut sent, mut from) = (Output::new(), Vec::new(), Vec::new(), 0);
    let (mut state, _) =
        server.open(&Accepted::detached(), &mut Wire::from_bytes(b"", false, &mut output, &mut messages));
    loop {
        let mut wire = Wire::from_bytes(&input[from..], true, &mut output, &mut messages);
        let flow = server.receive(&mut state, &mut wire);
        from += wire.consumed();
        sent.extend(output.to_vec());
        output.clear();
        if !matches!(flow, Flow::Yield(_)) {
            return (sent, flow);
        }
    }
}

/// A response as parsed from the output.
#[derive(Debug)]
struct Parsed {
    headers: Vec<(String, Vec<u8>)>,
    /// The body is complete according to its framing.
    complete: bool,
    until_close: bool,
}

impl Parsed {
    fn all(&self, name: &str) -> Vec<&[u8]> {
        let named = self.headers.iter().filter(|(header, _)| header.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_slice()).collect()
    }
}

/// Parses a chunked body, and returns the input after it, or `None` if it is incomplete.
fn after_chunks(mut rest: &[u8]) -> Option<&[u8]> {
    loop {
        let httparse::Status::Complete((at, size)) = httparse::parse_chunk_size(rest).expect("a chunk size") else {
            return None;
        };
        rest = &rest[at..];
        if size == 0 {
            let mut slots = [httparse::EMPTY_HEADER; 8];
            return match httparse::parse_headers(rest, &mut slots).expect("trailers") {
                httparse::Status::Complete((end, _)) => Some(&rest[end..]),
                httparse::Status::Partial => None,
            };
        }
        let size = usize::try_from(size).expect("a small chunk");
        rest = rest.get(size..)?.strip_prefix(b"\r\n").expect("CRLF after the chunk data");
    }
}

/// Parses one response to `request`, and advances `rest` past it.
fn read(rest: &mut &[u8], request: &RequestPlan) -> Parsed {
    let mut slots = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut slots);
    let httparse::Status::Complete(end) = head.parse(rest).expect("a response head") else {
        panic!("incomplete response head: {:?}", String::from_utf8_lossy(rest));
    };
    let status = head.code.expect("a status");
    let headers = head.headers.iter().map(|header| (header.name.to_owned(), header.value.to_vec())).collect();
    let mut found = Parsed { headers, complete: true, until_close: false };
    *rest = &rest[end..];
    let tunnel = request.method == "CONNECT" && (200..300).contains(&status);
    assert!(status >= 200, "an unexpected interim response");
    let (lengths, codings) = (found.all("content-length"), found.all("transfer-encoding"));
    assert!(lengths.len() + codings.len() <= 1, "conflicting framing: {found:?}");
    assert!(codings.is_empty() || request.minor == 1, "a transfer coding for HTTP/1.0");
    assert!(status != 204 && !tunnel || lengths.is_empty() && codings.is_empty(), "framing on {status}: {found:?}");
    if request.method == "HEAD" || status == 204 || status == 304 || tunnel {
        return found;
    }
    if let [length] = lengths[..] {
        let length: usize = std::str::from_utf8(length).expect("digits").parse().expect("a number");
        found.complete = length <= rest.len();
        *rest = &rest[length.min(rest.len())..];
    } else if let [coding] = codings[..] {
        assert_eq!(coding, b"chunked");
        let after = after_chunks(rest);
        found.complete = after.is_some();
        *rest = after.unwrap_or(b"");
    } else {
        (found.until_close, *rest) = (true, b"");
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn no_handler_can_produce_an_invalid_response(exchanges in prop::collection::vec((request_plan(), plan()), 1..5)) {
        let requests: Vec<String> = exchanges
            .iter()
            .map(|(request, _)| {
                let target = if request.method == "CONNECT" { "a:1" } else { "/" };
                format!("{} {target} HTTP/1.{}\r\nHost: a\r\n{}\r\n", request.method, request.minor, request.headers)
            })
            .collect();
        let plans: Vec<Plan> = exchanges.iter().map(|(_, plan)| plan.clone()).collect();
        let (sent, flow) = run(requests.concat().as_bytes(), plans.into_iter());
        let mut rest = sent.as_slice();
        let mut found = Vec::new();
        for (request, _) in &exchanges {
            if rest.is_empty() && !found.is_empty() {
                break;
            }
            found.push(read(&mut rest, request));
        }
        prop_assert!(rest.is_empty(), "trailing bytes after the last response: {:?}", String::from_utf8_lossy(rest));
        let count = found.len();
        for (number, response) in found.iter().enumerate() {
            let says_close = response.all("connection").iter().any(|value| value.eq_ignore_ascii_case(b"close"));
            let last = number + 1 == count;
            let continues = response.complete && !response.until_close && !says_close;
            prop_assert!(last || continues, "another response after {response:?}");
            let ends = says_close || !response.complete;
            prop_assert!(count == exchanges.len() || !last || ends, "no response after {response:?}");
            prop_assert!(!response.until_close || exchanges[number].0.minor == 0 && says_close);
            for single in ["date", "server", "content-type"] {
                prop_assert!(response.all(single).len() <= 1, "{} twice: {:?}", single, response);
            }
            prop_assert_eq!(response.all("date").len(), 1);
            prop_assert!(response.all("x-split").is_empty(), "response splitting");
            // A truncated body is signalled by an early end of the stream or by a reset.
            let ends_early = matches!(flow, Flow::Linger | Flow::Abort);
            prop_assert!(response.complete || ends_early, "{flow:?} after {response:?}");
        }
    }
}

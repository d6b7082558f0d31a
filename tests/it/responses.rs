//! Whatever a handler does, what leaves the server is a sequence of responses that an independent reader reads back:
//! one for each request, with sound framing. The application runs without a socket.

use std::io::{self, Read};

use bytes::Bytes;
use http::StatusCode;
use proptest::prelude::*;
use serverd::{Accepted, App, Flow, HttpServer, Output, Request, Response, Trailers, Wire};

/// What the body of an answer is made of.
#[derive(Clone, Debug)]
enum Content {
    Bytes(Vec<u8>),
    Pieces(Vec<Vec<u8>>),
    Announced(Vec<Vec<u8>>, u64),
    Reader(Vec<u8>),
    /// So many octets, then an error.
    Broken(Vec<u8>),
    Trailed(Vec<Vec<u8>>, String),
}

/// What a handler does about one request.
#[derive(Clone, Debug)]
struct Deed {
    status: u16,
    content: Content,
    content_type: Option<&'static str>,
    fields: Vec<(String, Vec<u8>)>,
    close: bool,
}

impl Deed {
    fn response(self) -> Response {
        let pieces = |list: Vec<Vec<u8>>| Response::stream(list.into_iter().map(Bytes::from));
        let mut response = match self.content {
            Content::Bytes(bytes) => Response::text(bytes),
            Content::Pieces(list) => pieces(list),
            Content::Announced(list, length) => pieces(list).length(length),
            Content::Reader(bytes) => Response::reader(io::Cursor::new(bytes)),
            Content::Broken(bytes) => Response::reader(io::Cursor::new(bytes).chain(Broken)),
            Content::Trailed(list, name) => {
                let own = name.clone();
                pieces(list).trailers(&[&name], move || {
                    let mut trailers = Trailers::new();
                    // One that must not be sent is left out.
                    let _ = trailers.push(own, "v");
                    trailers
                })
            }
        };
        if let Some(content_type) = self.content_type {
            response = response.content_type(content_type);
        }
        for (name, value) in self.fields {
            response = response.field(name, value);
        }
        response = response.with_status(StatusCode::from_u16(self.status).expect("three digits"));
        if self.close { response.close() } else { response }
    }
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("as asked"))
    }
}

fn content() -> impl Strategy<Value = Content> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..300);
    let pieces = move || prop::collection::vec(bytes(), 0..5);
    prop_oneof![
        bytes().prop_map(Content::Bytes),
        pieces().prop_map(Content::Pieces),
        (pieces(), 0_u64..400).prop_map(|(list, length)| Content::Announced(list, length)),
        bytes().prop_map(Content::Reader),
        bytes().prop_map(Content::Broken),
        (pieces(), name()).prop_map(|(list, name)| Content::Trailed(list, name)),
    ]
}

/// Names good, bad, and the server's own.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => "[A-Za-z-]{1,12}",
        2 => prop::sample::select(vec![
            "Content-Length", "transfer-encoding", "Connection", "Date", "Trailer", "Content-Type", "Upgrade", "Host",
        ]).prop_map(str::to_owned),
        1 => "[ -~\r\n:]{0,8}",
    ]
}

fn deed() -> impl Strategy<Value = Deed> {
    let types = prop::sample::select(vec!["text/html", "a/b\r\nX-Split: c", ""]);
    let value =
        prop_oneof![3 => "[ -~]{0,20}".prop_map(String::into_bytes), 1 => prop::collection::vec(any::<u8>(), 0..6)];
    let status = prop_oneof![
        4 => Just(200_u16),
        2 => prop::sample::select(vec![100, 101, 204, 205, 304, 404, 500]),
        1 => 100_u16..=999,
    ];
    (status, content(), prop::option::of(types), prop::collection::vec((name(), value), 0..3), any::<bool>()).prop_map(
        |(status, content, content_type, fields, close)| Deed { status, content, content_type, fields, close },
    )
}

#[derive(Clone, Debug)]
struct Ask {
    method: &'static str,
    minor: u8,
    fields: &'static str,
}

fn ask() -> impl Strategy<Value = Ask> {
    let fields = vec!["", "Connection: close\r\n", "Connection: keep-alive\r\n", "TE: trailers\r\nConnection: te\r\n"];
    (
        prop::sample::select(vec!["GET", "GET", "HEAD", "POST", "OPTIONS", "CONNECT"]),
        0_u8..=1,
        prop::sample::select(fields),
    )
        .prop_map(|(method, minor, fields)| Ask { method, minor, fields })
}

/// Runs the server over these octets; what it writes, and the flow it ends with.
fn run(input: &[u8], mut deeds: std::vec::IntoIter<Deed>) -> (Vec<u8>, Flow) {
    let mut server = HttpServer::new(move |_: &Request<'_>| deeds.next().expect("a deed for each request").response());
    let (mut output, mut posts, mut sent, mut from) = (Output::new(), Vec::new(), Vec::new(), 0);
    let (mut state, _) = server.open(&Accepted::detached(), &mut Wire::over(b"", false, &mut output, &mut posts));
    loop {
        let mut wire = Wire::over(&input[from..], true, &mut output, &mut posts);
        let flow = server.receive(&mut state, &mut wire);
        from += wire.consumed();
        sent.extend(output.to_vec());
        output.clear();
        if !matches!(flow, Flow::Yield(_)) {
            return (sent, flow);
        }
    }
}

/// A response as the independent reader finds it.
#[derive(Debug)]
struct Found {
    fields: Vec<(String, Vec<u8>)>,
    /// The body ended, and not only by the end of the stream.
    whole: bool,
    until_close: bool,
}

impl Found {
    fn all(&self, name: &str) -> Vec<&[u8]> {
        let named = self.fields.iter().filter(|(own, _)| own.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_slice()).collect()
    }
}

/// Reads a chunked body; what is behind it, if it ends.
fn behind_chunks(mut rest: &[u8]) -> Option<&[u8]> {
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
        rest = rest.get(size..)?.strip_prefix(b"\r\n").expect("a line end behind the data");
    }
}

/// Reads one response to `ask`; `rest` is moved behind it.
fn read(rest: &mut &[u8], ask: &Ask) -> Found {
    let mut slots = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut slots);
    let httparse::Status::Complete(end) = head.parse(rest).expect("a response head") else {
        panic!("half a head: {:?}", String::from_utf8_lossy(rest));
    };
    let status = head.code.expect("a status");
    let fields = head.headers.iter().map(|field| (field.name.to_owned(), field.value.to_vec())).collect();
    let mut found = Found { fields, whole: true, until_close: false };
    *rest = &rest[end..];
    let tunnel = ask.method == "CONNECT" && (200..300).contains(&status);
    assert!(status >= 200, "an interim response nobody asked for");
    let (lengths, codings) = (found.all("content-length"), found.all("transfer-encoding"));
    assert!(lengths.len() + codings.len() <= 1, "two framings: {found:?}");
    assert!(codings.is_empty() || ask.minor == 1, "a transfer coding for HTTP/1.0");
    assert!(status != 204 && !tunnel || lengths.is_empty() && codings.is_empty(), "framing on {status}: {found:?}");
    if ask.method == "HEAD" || status == 204 || status == 304 || tunnel {
        return found;
    }
    if let [length] = lengths[..] {
        let length: usize = std::str::from_utf8(length).expect("digits").parse().expect("a number");
        found.whole = length <= rest.len();
        *rest = &rest[length.min(rest.len())..];
    } else if let [coding] = codings[..] {
        assert_eq!(coding, b"chunked");
        let behind = behind_chunks(rest);
        found.whole = behind.is_some();
        *rest = behind.unwrap_or(b"");
    } else {
        (found.until_close, *rest) = (true, b"");
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn no_handler_makes_an_invalid_response(exchanges in prop::collection::vec((ask(), deed()), 1..5)) {
        let requests: Vec<String> = exchanges
            .iter()
            .map(|(ask, _)| {
                let target = if ask.method == "CONNECT" { "a:1" } else { "/" };
                format!("{} {target} HTTP/1.{}\r\nHost: a\r\n{}\r\n", ask.method, ask.minor, ask.fields)
            })
            .collect();
        let deeds: Vec<Deed> = exchanges.iter().map(|(_, deed)| deed.clone()).collect();
        let (sent, flow) = run(requests.concat().as_bytes(), deeds.into_iter());
        let mut rest = sent.as_slice();
        let mut found = Vec::new();
        for (ask, _) in &exchanges {
            if rest.is_empty() && !found.is_empty() {
                break;
            }
            found.push(read(&mut rest, ask));
        }
        prop_assert!(rest.is_empty(), "octets of no response: {:?}", String::from_utf8_lossy(rest));
        let count = found.len();
        for (number, response) in found.iter().enumerate() {
            let says_close = response.all("connection").iter().any(|value| value.eq_ignore_ascii_case(b"close"));
            let last = number + 1 == count;
            prop_assert!(last || response.whole && !response.until_close && !says_close, "served on behind {response:?}");
            prop_assert!(count == exchanges.len() || !last || says_close || !response.whole, "stopped behind {response:?}");
            prop_assert!(!response.until_close || exchanges[number].0.minor == 0 && says_close);
            for single in ["date", "server", "content-type"] {
                prop_assert!(response.all(single).len() <= 1, "{} twice: {:?}", single, response);
            }
            prop_assert_eq!(response.all("date").len(), 1);
            prop_assert!(response.all("x-split").is_empty(), "a response was split");
            // A body that broke off is told by the end of the stream: an early one, or a reset.
            prop_assert!(response.whole || matches!(flow, Flow::Linger | Flow::Abort), "{flow:?} behind {response:?}");
        }
    }
}

//! Forms with files: any split of a body gives the same parts, hostile bodies get an error, and a server reads forms as
//! they arrive.

use serverd::multipart::{Error, Event, Limits, Part, Reader};
use serverd::{BodyFlow, BodyMode, BodySink, Handler, HttpServer, Request, RequestHead, Response, Trailers};

use crate::harness::{Random, on_every_backend, serve};

const TYPE: &str = "multipart/form-data; boundary=-b-";

type Parts = Vec<(Part, Vec<u8>)>;

fn reader() -> Reader {
    Reader::new(TYPE.as_bytes()).expect("a boundary")
}

/// Reads a body in these pieces.
fn read<'a>(mut reader: Reader, pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Parts, Error> {
    let (mut parts, mut is_open) = (Parts::new(), false);
    for piece in pieces {
        for event in reader.feed(piece) {
            match event? {
                Event::Part(part) => {
                    assert!(!std::mem::replace(&mut is_open, true), "a part within a part");
                    parts.push((part, Vec::new()));
                }
                Event::Data(data) => {
                    assert!(is_open && !data.is_empty());
                    parts.last_mut().expect("a part").1.extend_from_slice(data);
                }
                Event::End => assert!(std::mem::replace(&mut is_open, false), "no part ends"),
                event => panic!("{event:?}"),
            }
        }
    }
    reader.finish().map(|()| parts)
}

/// Splits `bytes` into pieces of random lengths, some of which are empty.
fn split<'a>(mut bytes: &'a [u8], random: &mut Random) -> Vec<&'a [u8]> {
    let longest = 1 + random.below(1 + bytes.len());
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        let (piece, rest) = bytes.split_at(random.below(longest + 1).min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}

/// Joins random pieces of a form, such as line endings and beginnings of the boundary.
fn fragments(random: &mut Random, count: usize) -> Vec<u8> {
    const FRAGMENTS: [&[u8]; 12] =
        [b"\r", b"\n", b"\r\n", b"-", b"--", b"\r\n--", b"\r\n---b", b"--b-", b"b", b"x", b"\0", b"\r\r\n"];
    (0..count).flat_map(|_| FRAGMENTS[random.below(FRAGMENTS.len())]).copied().collect()
}

fn has_delimiter(content: &[u8]) -> bool {
    // The start of the content is the start of a line.
    content.starts_with(b"---b-") || content.windows(7).any(|window| window == b"\r\n---b-")
}

/// Returns the contents of random parts, and a form that contains them.
fn form(random: &mut Random) -> (Vec<Vec<u8>>, Vec<u8>) {
    let count = random.below(5);
    let contents: Vec<Vec<u8>> = std::iter::repeat_with(|| {
        let count = random.below(12);
        fragments(random, count)
    })
    .filter(|content| !has_delimiter(content))
    .take(count)
    .collect();
    let mut body = b"preamble\r\n".repeat(random.below(2));
    for (at, content) in contents.iter().enumerate() {
        let padding = [" ", "\t ", ""][random.below(3)];
        body.extend(format!("---b-{padding}\r\nContent-Disposition: form-data; name=\"{at}\"").into_bytes());
        body.extend([&b"; filename=f\r\n"[..], b"\r\n"][random.below(2)]);
        body.extend(b"\r\n");
        body.extend(content);
        body.extend(b"\r\n");
    }
    body.extend(b"---b---");
    body.extend([&b""[..], b"\r\nepilogue\r\n---b-\r\n"][random.below(2)]);
    (contents, body)
}

#[test]
fn any_split_of_a_form_gives_the_same_parts() {
    let mut random = Random::new(1);
    for _ in 0..3000 {
        let (contents, body) = form(&mut random);
        let parts = read(reader(), [body.as_slice()]).expect("a form");
        let text = || String::from_utf8_lossy(&body).into_owned();
        assert!(parts.iter().map(|(_, content)| content).eq(&contents), "{:?}", text());
        assert!(parts.iter().enumerate().all(|(at, (part, _))| part.name() == at.to_string()));
        assert_eq!(read(reader(), split(&body, &mut random)).as_ref(), Ok(&parts), "{:?}", text());
        assert_eq!(read(reader(), body.chunks(1)).as_ref(), Ok(&parts), "{:?}", text());
        assert_eq!(reader().read_all(&body), Ok(parts));
    }
}

#[test]
fn any_split_of_a_hostile_body_gives_the_same_outcome() {
    let mut random = Random::new(2);
    let (mut errors, mut forms) = (0, 0);
    for _ in 0..6000 {
        let (_, mut body) = form(&mut random);
        for _ in 0..random.below(4) {
            let (at, count) = (random.below(body.len() + 1), random.below(3));
            let end = (at + random.below(8)).min(body.len());
            body.splice(at..end, fragments(&mut random, count));
        }
        let limits = Limits::default().bytes_max(40 + random.below(400) as u64).file_bytes_max(random.below(30) as u64);
        let limits = limits.header_bytes_max(50 + random.below(30)).parts_max(random.below(6));
        let outcome = read(reader().limits(limits.clone()), [body.as_slice()]);
        let other = read(reader().limits(limits), split(&body, &mut random));
        assert_eq!(outcome, other, "{:?}", String::from_utf8_lossy(&body));
        if outcome.is_ok() { forms += 1 } else { errors += 1 }
    }
    assert!(errors > 500 && forms > 500, "{errors} errors, {forms} forms");
}

#[test]
fn malformed_bodies_get_an_error() {
    let part = "---b-\r\nContent-Disposition: form-data; name=a\r\n\r\n";
    for (body, error) in [
        (String::new(), Error::Incomplete),
        ("no boundary".into(), Error::Incomplete),
        ("---b-".into(), Error::Incomplete),
        (format!("{part}content"), Error::Incomplete),
        (format!("{part}content\r\n---b-\r\n"), Error::Incomplete),
        (format!("{part}content\r\n---b--"), Error::Incomplete),
        (format!("{part}content\n---b---"), Error::Incomplete),
        ("---b-x".into(), Error::Delimiter),
        ("---b-\n".into(), Error::Delimiter),
        ("---b-\r\r\n".into(), Error::Delimiter),
        ("---b--\r\n".into(), Error::Delimiter),
        ("---b- -\r\n".into(), Error::Delimiter),
        ("---b-\r\n\r\n".into(), Error::Disposition),
        (format!("{}\n", part.trim_end()), Error::Incomplete),
        (part.replace("\r\n\r\n", "\n\n\r\n\r\n"), Error::Header),
    ] {
        assert_eq!(read(reader(), [body.as_bytes()]), Err(error), "{body:?}");
    }
    // After an error, nothing else follows.
    let mut reader = reader();
    for _ in 0..2 {
        assert!(reader.feed(b"---b-x").eq([Err(Error::Delimiter)]));
        assert_eq!(reader.finish(), Err(Error::Delimiter));
    }
}

#[test]
fn every_limit_is_exact() {
    let header = "Content-Disposition: form-data; name=a\r\n\r\n";
    let file_header = "Content-Disposition: form-data; name=a; filename=b\r\n\r\n";
    let body = format!("---b-\r\n{header}12345\r\n---b-\r\n{file_header}1234567\r\n---b---");
    let exact = || {
        let limits = Limits::default().bytes_max(body.len() as u64).text_bytes_max(5).file_bytes_max(7);
        limits.parts_max(2).header_bytes_max(file_header.len()).headers_max(1)
    };
    assert_eq!(read(reader().limits(exact()), [body.as_bytes()]).expect("within the limits").len(), 2);
    for (limits, error) in [
        (exact().bytes_max(body.len() as u64 - 1), Error::TooLarge),
        (exact().text_bytes_max(4), Error::TextTooLarge),
        (exact().file_bytes_max(6), Error::FileTooLarge),
        (exact().parts_max(1), Error::TooManyParts),
        (exact().header_bytes_max(file_header.len() - 1), Error::HeaderTooLarge),
        (exact().headers_max(0), Error::HeaderTooLarge),
    ] {
        assert_eq!(read(reader().limits(limits.clone()), [body.as_bytes()]), Err(error), "{limits:?}");
        assert_eq!(read(reader().limits(limits), body.as_bytes().chunks(1)), Err(error));
        assert_eq!(error.status(), 413);
    }
}

/// Content that consists of beginnings of the delimiter, a byte at a time.
#[test]
fn content_that_resembles_the_delimiter_is_read_in_linear_time() {
    let content = b"\r\n---b\r\r\n--".repeat(100_000);
    let body = [b"---b-\r\nContent-Disposition: form-data; name=a; filename=f\r\n\r\n", &*content, b"\r\n---b---"];
    let body = body.concat();
    for pieces in [1, 7, body.len()] {
        let parts = read(reader(), body.chunks(pieces)).expect("a form");
        assert!(parts.len() == 1 && parts[0].1 == content);
    }
}

/// Describes the parts of a form as they arrive.
struct Describe {
    reader: Reader,
    text: Vec<String>,
    bytes: usize,
}

impl BodySink for Describe {
    fn chunk(&mut self, bytes: &[u8]) -> BodyFlow {
        for event in self.reader.feed(bytes) {
            match event {
                Ok(Event::Part(part)) => self.text.push(format!("{} {:?}", part.name(), part.file_name())),
                Ok(Event::Data(data)) => self.bytes += data.len(),
                Ok(_) => self.text.push(format!(" {}\n", std::mem::take(&mut self.bytes))),
                Err(error) => return BodyFlow::Respond(error.into()),
            }
        }
        BodyFlow::Continue
    }

    fn end(self: Box<Self>, _: &Trailers) -> Response {
        self.reader.finish().map(|()| Response::text(self.text.concat())).into()
    }
}

struct Forms;

impl Handler for Forms {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        match head.multipart() {
            Ok(reader) => BodyMode::stream(
                1 << 30,
                Describe { reader: reader.limits(Limits::default().text_bytes_max(10)), text: Vec::new(), bytes: 0 },
            ),
            Err(error) => BodyMode::Reject(error.into()),
        }
    }

    fn call(&mut self, _: &Request<'_>) -> Response {
        Response::text("no body")
    }
}

fn post(content_type: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST / HTTP/1.1\r\nHost: x\r\n{content_type}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

on_every_backend! {
    over_tls_too:

    fn a_form_is_read_as_it_arrives<B>() {
        let server = serve::<B, _>(|| HttpServer::with(Forms));
        let content_type = format!("Content-Type: {TYPE}\r\n");
        let mut body = b"---b-\r\nContent-Disposition: form-data; name=\"text\"\r\n\r\nhello\r\n---b-\r\n".to_vec();
        body.extend(b"Content-Disposition: form-data; name=\"file\"; filename=\"C:\\dir\\a.bin\"\r\n");
        body.extend(b"Content-Type: application/octet-stream\r\n\r\n");
        body.extend(b"\r\n---b\r\n".repeat(50_000));
        body.extend(b"\r\n---b---\r\n");
        let mut client = server.connect();
        client.send(post(&content_type, &body)).send(post(&content_type, b"---b---"));
        assert_eq!(client.response().text(), "text None 5\nfile Some(\"a.bin\") 400000\n");
        assert_eq!(client.response().text(), "");
        let long = b"---b-\r\nContent-Disposition: form-data; name=\"text\"\r\n\r\nhello, world\r\n---b---";
        let repeated = content_type.repeat(2);
        for (content_type, body, status) in [
            (content_type.as_str(), &long[..], 413),
            (&content_type, b"---b-\r\n", 400),
            (&content_type, b"---b-\r\nA\r\n\r\n", 400),
            ("", b"---b---", 415),
            (&repeated, b"---b---", 415),
            ("Content-Type: multipart/form-data\r\n", b"---b---", 400),
        ] {
            let mut client = server.connect();
            client.send(post(content_type, body));
            assert_eq!(client.response().status, status, "{content_type:?}");
        }
    }
}

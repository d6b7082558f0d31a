//! Content that is compressed while it is sent.
//!
//! gzip comes first where the client takes both: the zstd encoder that is pure Rust makes more octets of a text than gzip
//! does at level 4, and takes as long. It is for clients that take nothing else, or prefer it.

use std::fs::File;
use std::io::{self, Cursor, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::StatusCode;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::super::outgoing::Source;
use super::super::response::Body;
use crate::httpserver::{AcceptedCodings, ContentCoding, Handler, Intake, Pool, Request, RequestHead, Response};
use crate::r#loop::read_at;

/// A shorter text gains less than the field that tells of it.
const LENGTH_MIN: u64 = 1024;

/// What is read, and about what is sent, at a time.
const PIECE_BYTES: usize = 16 * 1024;

/// zstd is made in one piece, so larger content is left to gzip.
const ZSTD_LENGTH_MAX: u64 = 1 << 20;

/// Level 6 takes twice to thrice as long for the last 3 %.
const LEVEL: u32 = 4;

/// Compresses text of more than 1 KiB by gzip or zstd for who accepts that (RFC 9110 section 12.5.3), on the threads of the
/// pool, while it is sent. Parts of content (206), content that has a coding already, answers with
/// `Cache-Control: no-transform`, and bodies that other threads push ([`Response::channel`]) stay as they are. Compressed
/// content has no length and no ranges, and its entity tag is a weak one. Where the pool is full, it goes out as it is.
///
/// # Examples
/// ```
/// use serverd::{HttpServer, Pool, layers};
///
/// let page = |_: &serverd::Request<'_>| "hello ".repeat(1000);
/// let server = HttpServer::with(layers::compress(page, Pool::new(2, 64)?));
/// # drop(server);
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn compress<H: Handler>(inner: H, pool: Pool) -> impl Handler {
    Compress { inner, pool }
}

struct Compress<H> {
    inner: H,
    pool: Pool,
}

impl<H: Handler> Handler for Compress<H> {
    fn head(&mut self, head: &RequestHead<'_>) -> Intake {
        let asked = self.asked(head);
        self.inner.head(head).map(|response| asked.compress(response))
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        let asked = self.asked(request);
        self.inner.call(request).map(|response| asked.compress(response))
    }
}

impl<H> Compress<H> {
    fn asked(&self, head: &RequestHead<'_>) -> Asked {
        let is_head = head.method_bytes() == b"HEAD";
        Asked { codings: head.accepted_codings(), is_head, pool: self.pool.clone() }
    }
}

/// What an answer has to know of its request.
struct Asked {
    codings: AcceptedCodings,
    is_head: bool,
    pool: Pool,
}

impl Asked {
    fn compress(self, response: Response) -> Response {
        // RFC 9110 sections 15.3.7 and 15.4.5: what the 200 would have said of its choice.
        if matches!(response.status, StatusCode::NOT_MODIFIED | StatusCode::PARTIAL_CONTENT) {
            return response.vary("Accept-Encoding");
        }
        if !is_compressible(&response) {
            return response;
        }
        let mut response = response.vary("Accept-Encoding");
        let coding = match self.coding(known_length(&response.body)) {
            Some(coding @ (ContentCoding::Gzip | ContentCoding::Zstd)) if self.pool.has_room() => coding,
            _ => return response,
        };
        let Some(source) = take_source(&mut response) else { return response };
        let Some(body) = self.body(coding, source) else {
            return Response::from(StatusCode::SERVICE_UNAVAILABLE).field("Retry-After", "1");
        };
        response.body = body;
        response.weaken_etag();
        response.remove_field("accept-ranges");
        response.field("Content-Encoding", coding.name().unwrap_or_default())
    }

    fn coding(&self, length: Option<u64>) -> Option<ContentCoding> {
        use ContentCoding::{Gzip, Identity, Zstd};
        let all = [Gzip, Zstd, Identity];
        match self.codings.best(&all) {
            Some(Zstd) if length.is_none_or(|length| length > ZSTD_LENGTH_MAX) => self.codings.best(&[Gzip, Identity]),
            best => best,
        }
    }

    /// Nothing where the pool has become full just now.
    fn body(&self, coding: ContentCoding, source: Box<dyn Read + Send>) -> Option<Body> {
        if self.is_head {
            return Some(Response::stream(std::iter::empty::<Bytes>()).body);
        }
        let streamed = if coding == ContentCoding::Zstd {
            self.pool.stream(std::iter::once_with(|| zstd(source)))
        } else {
            let encoder = GzEncoder::new(Vec::with_capacity(PIECE_BYTES), Compression::new(LEVEL));
            self.pool.stream(Gzip { source, encoder: Some(encoder) })
        };
        streamed.ok().map(|response| response.body)
    }
}

/// RFC 9110 section 8.3: what is text, whatever it is called.
fn is_text(content_type: &[u8]) -> bool {
    let end = content_type.iter().position(|&byte| byte == b';').unwrap_or(content_type.len());
    let media_type = content_type[..end].trim_ascii().to_ascii_lowercase();
    match media_type.as_slice() {
        // Each event of which is to be seen at once.
        b"text/event-stream" => false,
        b"application/javascript"
        | b"application/json"
        | b"application/xml"
        | b"application/wasm"
        | b"application/x-ndjson"
        | b"application/x-javascript"
        | b"application/x-sh"
        | b"application/sql"
        | b"application/rtf"
        | b"application/toml"
        | b"application/yaml" => true,
        other => other.starts_with(b"text/") || other.ends_with(b"+xml") || other.ends_with(b"+json"),
    }
}

fn is_compressible(response: &Response) -> bool {
    let status = response.status;
    let has_content = status == StatusCode::OK || status.is_client_error() || status.is_server_error();
    let content_type = response.content_type.map(str::as_bytes).or_else(|| response.field_value("content-type"));
    let no_transform = || {
        let value = response.field_value("cache-control").unwrap_or_default().to_ascii_lowercase();
        value.windows(12).any(|window| window == b"no-transform")
    };
    has_content
        && known_length(&response.body).is_none_or(|length| length >= LENGTH_MIN)
        && is_pulled(&response.body)
        && content_type.is_some_and(is_text)
        && response.field_value("content-encoding").is_none()
        && response.field_value("content-range").is_none()
        && !no_transform()
}

fn known_length(body: &Body) -> Option<u64> {
    match body {
        Body::Stream(stream) => stream.length,
        body => body.len(),
    }
}

/// Whether a body can be taken and read on another thread.
fn is_pulled(body: &Body) -> bool {
    match body {
        Body::Bytes(_) | Body::File(..) => true,
        Body::Stream(stream) => stream.is_pulled(),
        Body::Parts(_) | Body::Later(_) => false,
    }
}

/// Takes the body out of a response, as something that can be read on another thread.
fn take_source(response: &mut Response) -> Option<Box<dyn Read + Send>> {
    match std::mem::replace(&mut response.body, Body::Bytes(Bytes::new())) {
        Body::Bytes(bytes) => Some(Box::new(Cursor::new(bytes))),
        Body::File(file, range) => {
            let length = range.end.saturating_sub(range.start);
            Some(Exactly::limited(Positioned { file, at: range.start }, Some(length)))
        }
        Body::Stream(stream) => {
            let length = stream.length;
            match stream.into_source() {
                Source::Reader(reader) => Some(Exactly::limited(reader, length)),
                Source::Pieces(pieces) => Some(Exactly::limited(Joined { pieces, piece: Bytes::new() }, length)),
                Source::Queue(_) => None,
            }
        }
        Body::Parts(_) | Body::Later(_) => None,
    }
}

/// A file that others read too, each from a position of its own.
struct Positioned {
    file: Arc<File>,
    at: u64,
}

impl Read for Positioned {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = read_at(&self.file, buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Pieces as something to read.
struct Joined {
    pieces: Box<dyn Iterator<Item = io::Result<Bytes>> + Send>,
    piece: Bytes,
}

impl Read for Joined {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.next().transpose()? {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let count = self.piece.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}

/// A reader of which so much was announced: no more is read, and less is an error.
struct Exactly<R> {
    reader: R,
    left: u64,
}

impl<R: Read + Send + 'static> Exactly<R> {
    fn limited(reader: R, length: Option<u64>) -> Box<dyn Read + Send> {
        match length {
            Some(left) => Box::new(Exactly { reader, left }),
            None => Box::new(reader),
        }
    }
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.reader.read(&mut buffer[..room])?;
        if count == 0 && room > 0 {
            return Err(io::Error::other(format!("it is {} bytes shorter than announced", self.left)));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// The pieces of compressed content.
struct Gzip {
    source: Box<dyn Read + Send>,
    /// Taken at the end.
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl Gzip {
    fn piece(&mut self) -> io::Result<Option<Bytes>> {
        let mut buffer = [0; PIECE_BYTES];
        let Some(mut encoder) = self.encoder.take() else { return Ok(None) };
        loop {
            let count = match self.source.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                outcome => outcome?,
            };
            if count == 0 {
                return encoder.finish().map(|rest| Some(rest.into()));
            }
            encoder.write_all(&buffer[..count])?;
            if encoder.get_ref().len() >= PIECE_BYTES {
                let piece = std::mem::replace(encoder.get_mut(), Vec::with_capacity(PIECE_BYTES));
                self.encoder = Some(encoder);
                return Ok(Some(piece.into()));
            }
        }
    }
}

impl Iterator for Gzip {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<io::Result<Bytes>> {
        self.piece().transpose()
    }
}

fn zstd(mut source: Box<dyn Read + Send>) -> io::Result<Vec<u8>> {
    // The encoder takes errors of its source for bugs.
    let mut content = Vec::new();
    source.read_to_end(&mut content)?;
    Ok(compress_to_vec(content.as_slice(), CompressionLevel::Fastest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_told_by_its_media_type() {
        for (content_type, text) in [
            ("text/html; charset=utf-8", true),
            ("TEXT/CSS", true),
            ("image/svg+xml", true),
            ("application/json;x=y", true),
            ("application/ld+json", true),
            ("text/event-stream", false),
            ("image/png", false),
            ("application/octet-stream", false),
            ("", false),
        ] {
            assert_eq!(is_text(content_type.as_bytes()), text, "{content_type}");
        }
    }

    #[test]
    fn compressed_content_comes_in_bounded_pieces_and_is_the_same() {
        let text: Vec<u8> = (0..200_000_u32)
            .flat_map(|number| (number.wrapping_mul(2_654_435_761) >> 7).to_string().into_bytes())
            .collect();
        let encoder = Some(GzEncoder::new(Vec::new(), Compression::new(LEVEL)));
        let pieces: Vec<Bytes> =
            Gzip { source: Box::new(Cursor::new(text.clone())), encoder }.collect::<io::Result<_>>().unwrap();
        assert!(pieces.len() > 10 && pieces.iter().all(|piece| piece.len() < 4 * PIECE_BYTES), "{}", pieces.len());
        let mut back = Vec::new();
        flate2::read::GzDecoder::new(&*pieces.concat()).read_to_end(&mut back).unwrap();
        assert!(back == text);
        let small = zstd(Box::new(Cursor::new(text[..100_000].to_vec()))).unwrap();
        let mut back = Vec::new();
        ruzstd::decoding::StreamingDecoder::new(&*small).unwrap().read_to_end(&mut back).unwrap();
        assert!(back == text[..100_000] && small.len() < 90_000);
    }

    #[test]
    fn what_is_shorter_than_announced_breaks_off() {
        let mut short = Exactly::limited(Cursor::new(b"abc"), Some(5));
        assert!(short.read_to_end(&mut Vec::new()).is_err());
        let mut text = String::new();
        Exactly::limited(Cursor::new(b"abcdef"), Some(5)).read_to_string(&mut text).unwrap();
        assert_eq!(text, "abcde");
    }
}

//! Layer that compresses responses on the fly.
//!
//! gzip is preferred if the client accepts both: the pure Rust zstd encoder is no faster than gzip at level 4 and
//! compresses text less. zstd is used for clients that prefer it or do not accept gzip.

use std::fs::File;
use std::io::{self, Cursor, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::StatusCode;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::super::body_stream::Source;
use super::super::handler::{BodyMode, Handler};
use super::super::negotiation::{AcceptedCodings, ContentCoding};
use super::super::pool::Pool;
use super::super::request::{Request, RequestHead};
use super::super::response::{Body, Response};
use crate::r#loop::read_at;

/// Minimum content length. Shorter text is not worth the extra header.
const LENGTH_MIN: u64 = 1024;

/// Size of one read, and approximate size of one piece sent, in bytes.
const PIECE_BYTES: usize = 16 * 1024;

/// Maximum content length for zstd, which compresses in a single pass; larger content uses gzip.
const ZSTD_LENGTH_MAX: u64 = 1 << 20;

/// Maximum memory of all compressed responses of a pool, by the estimates below. Beyond it, responses are sent
/// uncompressed.
const BYTES_MAX: usize = 96 << 20;

/// Memory of a response that is compressed with gzip: the encoder, a piece, and the queue.
const GZIP_BYTES: usize = 768 * 1024;

/// Memory of a response that is compressed with zstd, in addition to twice its content.
const ZSTD_BYTES: usize = 768 * 1024;

/// gzip level. Level 6 takes two to three times as long to save another 3 %.
const LEVEL: u32 = 4;

/// Compresses text responses of at least 1 KiB with gzip or zstd while they are sent, if the client accepts it (RFC
/// 9110 section 12.5.3). Compression runs on the thread pool; if its queue is full, the response is sent uncompressed.
/// Responses are also sent uncompressed while those being compressed on this pool take about 96 MiB: a client that
/// reads slowly occupies an encoder and a queue.
///
/// Partial content (206), content that is already encoded, responses with `Cache-Control: no-transform`, and bodies
/// pushed by other threads ([`Response::channel`]) are not compressed. A compressed response has no Content-Length,
/// does not support ranges, and has a weak entity tag.
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
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        let compression = self.request(head);
        self.inner.head(head).map(|response| compression.compress(response))
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        let compression = self.request(request);
        self.inner.call(request).map(|response| compression.compress(response))
    }
}

impl<H> Compress<H> {
    fn request(&self, head: &RequestHead<'_>) -> CompressionRequest {
        let is_head = head.method_bytes() == b"HEAD";
        CompressionRequest { codings: head.accepted_codings(), is_head, pool: self.pool.clone() }
    }
}

/// The properties of a request that decide how its response is compressed.
struct CompressionRequest {
    codings: AcceptedCodings,
    is_head: bool,
    pool: Pool,
}

impl CompressionRequest {
    fn compress(self, response: Response) -> Response {
        // RFC 9110 sections 15.3.7 and 15.4.5: a 206 or 304 has the Vary header that the 200 would have.
        if matches!(response.status, StatusCode::NOT_MODIFIED | StatusCode::PARTIAL_CONTENT) {
            let mut response = response.vary("Accept-Encoding");
            // RFC 9110 section 15.4.5: a 304 has the entity tag that the 200 would have.
            if response.status == StatusCode::NOT_MODIFIED && self.would_compress(&response) {
                response.weaken_etag();
            }
            return response;
        }
        if !is_compressible(&response) {
            return response;
        }
        let mut response = response.vary("Accept-Encoding");
        let coding = match self.choose_coding(known_length(&response.body)) {
            Some(coding @ (ContentCoding::Gzip | ContentCoding::Zstd)) if self.pool.has_room() => coding,
            _ => return response,
        };
        let bytes = match known_length(&response.body) {
            // HEAD needs no encoder.
            _ if self.is_head => 0,
            Some(length) if coding == ContentCoding::Zstd => {
                2 * usize::try_from(length).unwrap_or(BYTES_MAX).min(BYTES_MAX) + ZSTD_BYTES
            }
            _ => GZIP_BYTES,
        };
        let Some(reservation) = self.pool.reserve(bytes, BYTES_MAX) else { return response };
        let Some(source) = take_source(&mut response) else { return response };
        let Some(body) = self.compressed_body(coding, source) else {
            return Response::from(StatusCode::SERVICE_UNAVAILABLE).header("Retry-After", "1");
        };
        response.body = body;
        if let Body::Stream(stream) = &mut response.body {
            stream.hold(Box::new(reservation));
        }
        response.weaken_etag();
        response.remove_header("accept-ranges");
        response.header("Content-Encoding", coding.name().unwrap_or_default())
    }

    /// Returns whether the 200 response in place of this 304 would be compressed.
    fn would_compress(&self, not_modified: &Response) -> bool {
        let described = not_modified.shared_headers.as_ref().and_then(|headers| headers.described());
        described.is_some_and(|(content_type, length)| {
            length >= LENGTH_MIN
                && is_compressible_type(content_type.as_bytes())
                && !forbids_transformation(not_modified)
                && matches!(self.choose_coding(Some(length)), Some(ContentCoding::Gzip | ContentCoding::Zstd))
        })
    }

    fn choose_coding(&self, length: Option<u64>) -> Option<ContentCoding> {
        use ContentCoding::{Gzip, Identity, Zstd};
        let all = [Gzip, Zstd, Identity];
        match self.codings.best(&all) {
            Some(Zstd) if length.is_none_or(|length| length > ZSTD_LENGTH_MAX) => self.codings.best(&[Gzip, Identity]),
            best => best,
        }
    }

    /// Returns `None` if the pool has become full in the meantime.
    fn compressed_body(&self, coding: ContentCoding, source: Box<dyn Read + Send>) -> Option<Body> {
        if self.is_head {
            return Some(Response::stream(std::iter::empty::<Bytes>()).body);
        }
        let streamed = if coding == ContentCoding::Zstd {
            self.pool.stream(std::iter::once_with(|| zstd(source)))
        } else {
            let encoder = GzEncoder::new(Vec::with_capacity(PIECE_BYTES), Compression::new(LEVEL));
            self.pool.stream(GzipPieces { source, encoder: Some(encoder) })
        };
        streamed.ok().map(|response| response.body)
    }
}

/// Returns whether content of a media type compresses well: text, in a broad sense.
fn is_compressible_type(content_type: &[u8]) -> bool {
    let end = content_type.iter().position(|&byte| byte == b';').unwrap_or(content_type.len());
    let media_type = content_type[..end].trim_ascii().to_ascii_lowercase();
    match media_type.as_slice() {
        // Compression would delay events.
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
    let content_type = response.content_type.map(str::as_bytes).or_else(|| response.header_value("content-type"));
    has_content
        && known_length(&response.body).is_none_or(|length| length >= LENGTH_MIN)
        && is_pulled(&response.body)
        && content_type.is_some_and(is_compressible_type)
        && response.header_value("content-encoding").is_none()
        && response.header_value("content-range").is_none()
        && !forbids_transformation(response)
}

fn forbids_transformation(response: &Response) -> bool {
    let value = response.header_value("cache-control").unwrap_or_default().to_ascii_lowercase();
    value.windows(12).any(|window| window == b"no-transform")
}

fn known_length(body: &Body) -> Option<u64> {
    match body {
        Body::Stream(stream) => stream.length,
        body => body.len(),
    }
}

/// Returns whether [`take_source`] can turn this body into a reader for another thread.
fn is_pulled(body: &Body) -> bool {
    match body {
        Body::Bytes(_) | Body::File(..) => true,
        Body::Stream(stream) => stream.is_pulled(),
        Body::Parts(_) | Body::Deferred(_) | Body::Session(_) => false,
    }
}

/// Takes the body out of a response, as a reader for another thread.
fn take_source(response: &mut Response) -> Option<Box<dyn Read + Send>> {
    match std::mem::replace(&mut response.body, Body::Bytes(Bytes::new())) {
        Body::Bytes(bytes) => Some(Box::new(Cursor::new(bytes))),
        Body::File(file, range) => {
            let length = range.end.saturating_sub(range.start);
            Some(ExactReader::limited(FileReader { file, at: range.start }, Some(length)))
        }
        Body::Stream(stream) => {
            let length = stream.length;
            match stream.into_source() {
                Source::Reader(reader) => Some(ExactReader::limited(reader, length)),
                Source::Pieces(pieces) => {
                    Some(ExactReader::limited(PieceReader { pieces, piece: Bytes::new() }, length))
                }
                Source::Queue(_) => None,
            }
        }
        Body::Parts(_) | Body::Deferred(_) | Body::Session(_) => None,
    }
}

/// Reads a shared file, independently of the position of other readers.
struct FileReader {
    file: Arc<File>,
    at: u64,
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = read_at(&self.file, buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Reads the concatenation of pieces.
struct PieceReader {
    pieces: Box<dyn Iterator<Item = io::Result<Bytes>> + Send>,
    piece: Bytes,
}

impl Read for PieceReader {
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

/// Reads exactly the declared length: ignores anything beyond it, and fails if the content is shorter.
struct ExactReader<R> {
    reader: R,
    left: u64,
}

impl<R: Read + Send + 'static> ExactReader<R> {
    fn limited(reader: R, length: Option<u64>) -> Box<dyn Read + Send> {
        match length {
            Some(left) => Box::new(ExactReader { reader, left }),
            None => Box::new(reader),
        }
    }
}

impl<R: Read> Read for ExactReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.reader.read(&mut buffer[..room])?;
        if count == 0 && room > 0 {
            return Err(io::Error::other(format!("{} bytes short of the declared length", self.left)));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// Iterator over the pieces of gzip-compressed content.
struct GzipPieces {
    source: Box<dyn Read + Send>,
    /// `None` after the end.
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl GzipPieces {
    fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        let mut buffer = [0; PIECE_BYTES];
        let Some(mut encoder) = self.encoder.take() else { return Ok(None) };
        loop {
            let count = match self.source.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
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

impl Iterator for GzipPieces {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<io::Result<Bytes>> {
        self.next_piece().transpose()
    }
}

fn zstd(mut source: Box<dyn Read + Send>) -> io::Result<Vec<u8>> {
    // The encoder panics on read errors, so read everything first.
    let mut content = Vec::new();
    source.read_to_end(&mut content)?;
    Ok(compress_to_vec(content.as_slice(), CompressionLevel::Fastest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressible_media_types_are_recognized() {
        for (content_type, expected) in [
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
            assert_eq!(is_compressible_type(content_type.as_bytes()), expected, "{content_type}");
        }
    }

    #[test]
    fn compressed_content_round_trips_in_bounded_pieces() {
        let text: Vec<u8> = (0..200_000_u32)
            .flat_map(|number| (number.wrapping_mul(2_654_435_761) >> 7).to_string().into_bytes())
            .collect();
        let encoder = Some(GzEncoder::new(Vec::new(), Compression::new(LEVEL)));
        let pieces: Vec<Bytes> =
            GzipPieces { source: Box::new(Cursor::new(text.clone())), encoder }.collect::<io::Result<_>>().unwrap();
        assert!(pieces.len() > 10 && pieces.iter().all(|piece| piece.len() < 4 * PIECE_BYTES), "{}", pieces.len());
        let mut decoded = Vec::new();
        flate2::read::GzDecoder::new(&*pieces.concat()).read_to_end(&mut decoded).unwrap();
        assert!(decoded == text);
        let small = zstd(Box::new(Cursor::new(text[..100_000].to_vec()))).unwrap();
        let mut decoded = Vec::new();
        ruzstd::decoding::StreamingDecoder::new(&*small).unwrap().read_to_end(&mut decoded).unwrap();
        assert!(decoded == text[..100_000] && small.len() < 90_000);
    }

    #[test]
    fn content_shorter_than_declared_is_an_error() {
        let mut short = ExactReader::limited(Cursor::new(b"abc"), Some(5));
        assert!(short.read_to_end(&mut Vec::new()).is_err());
        let mut text = String::new();
        ExactReader::limited(Cursor::new(b"abcdef"), Some(5)).read_to_string(&mut text).unwrap();
        assert_eq!(text, "abcde");
    }
}

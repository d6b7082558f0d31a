//! Body decoder for Content-Length and chunked framing (RFC 9112 sections 6.2 and 7.1).
//!
//! The chunked decoder is a byte-wise state machine, except that chunk data is passed through in slices. Lines must end
//! in CRLF: a bare LF is accepted only in the head (section 2.2). Bad whitespace (BWS) around the parts of a chunk
//! extension is skipped, as RFC 9110 section 5.6.3 requires.

use super::error::{Error, Limits};
use super::head::Framing;
use super::syntax::{TOKEN, VALUE};

/// Maximum length of a chunk line: the size and its extensions.
const CHUNK_LINE_BYTES_MAX: u32 = 4096;

/// Maximum total length of the chunk extensions of one body: more than any real client sends, but too little to waste
/// significant CPU time.
const EXTENSION_BYTES_MAX: u32 = 16 * 1024;

/// The position of the decoder within a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A body with Content-Length: the number of bytes remaining.
    Length(u64),
    /// In a chunk size, after `digits` digits.
    Size {
        value: u64,
        digits: u32,
    },
    /// In whitespace after a size or an extension; only `;` may follow.
    AfterSize {
        value: u64,
    },
    /// After `;`, before the name of an extension.
    BeforeName {
        value: u64,
    },
    Name {
        value: u64,
    },
    AfterName {
        value: u64,
    },
    BeforeValue {
        value: u64,
    },
    Value {
        value: u64,
    },
    Quoted {
        value: u64,
    },
    Escaped {
        value: u64,
    },
    /// After a quoted value.
    AfterQuoted {
        value: u64,
    },
    /// After the CR of a chunk line.
    SizeEnd {
        value: u64,
    },
    /// In chunk data: the number of bytes remaining.
    Data(u64),
    DataCr,
    DataLf,
    /// At the start of a trailer line or of the final empty line.
    TrailerLine,
    TrailerName,
    TrailerValue,
    TrailerEnd,
    LastLf,
    Done,
}

/// The decoder of one body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Body {
    state: State,
    /// Number of data bytes that further chunks may contain.
    allowance: u64,
    /// Length of the current chunk line so far.
    line: u32,
    /// Total length of the extensions so far.
    extensions: u32,
    /// The trailer section as received, without the final empty line. Usually empty, and then not allocated.
    trailers: Vec<u8>,
    trailer_fields: usize,
}

/// The result of decoding a piece of input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// More input is needed.
    NeedMore,
    /// A piece of the body.
    Data(&'a [u8]),
    /// The body is complete.
    End,
}

impl Body {
    /// Creates a decoder for a body of at most `allowance` bytes.
    pub(super) fn new(framing: Framing, allowance: u64) -> Result<Self, Error> {
        let state = match framing {
            Framing::None => State::Done,
            Framing::Length(length) if length > allowance => return Err(Error::BodyTooLarge),
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size { value: 0, digits: 0 },
        };
        Ok(Body { state, allowance, line: 0, extensions: 0, trailers: Vec::new(), trailer_fields: 0 })
    }

    /// Continues decoding. Returns the number of bytes consumed and a piece.
    pub(super) fn decode<'a>(&mut self, input: &'a [u8], limits: &Limits) -> Result<(usize, Piece<'a>), Error> {
        let mut at = 0;
        loop {
            match self.state {
                State::Done => return Ok((at, Piece::End)),
                State::Length(left) | State::Data(left) => {
                    let rest = &input[at..];
                    if rest.is_empty() {
                        return Ok((at, Piece::NeedMore));
                    }
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    self.take_data(left - take as u64);
                    return Ok((at + take, Piece::Data(&rest[..take])));
                }
                _ => {}
            }
            let Some(&byte) = input.get(at) else {
                return Ok((at, Piece::NeedMore));
            };
            at += 1;
            self.state = self.step(byte, limits)?;
        }
    }

    fn take_data(&mut self, left: u64) {
        self.state = match (self.state, left) {
            (State::Length(_), 0) => State::Done,
            (State::Length(_), _) => State::Length(left),
            (_, 0) => State::DataCr,
            _ => State::Data(left),
        };
    }

    /// Processes one byte of chunked framing.
    fn step(&mut self, byte: u8, limits: &Limits) -> Result<State, Error> {
        match self.state {
            State::Size { .. } => self.count_line().and_then(|()| step_size(self.state, byte)),
            State::AfterSize { .. }
            | State::BeforeName { .. }
            | State::Name { .. }
            | State::AfterName { .. }
            | State::BeforeValue { .. }
            | State::Value { .. }
            | State::Quoted { .. }
            | State::Escaped { .. }
            | State::AfterQuoted { .. } => self.count_extension().and_then(|()| step_extension(self.state, byte)),
            State::SizeEnd { value } if byte == b'\n' => self.start_chunk(value),
            State::SizeEnd { .. } => Err(Error::ChunkSize),
            State::DataCr if byte == b'\r' => Ok(State::DataLf),
            State::DataLf if byte == b'\n' => Ok(State::Size { value: 0, digits: 0 }),
            State::DataCr | State::DataLf => Err(Error::ChunkData),
            _ => self.step_trailer(byte, limits),
        }
    }

    fn count_line(&mut self) -> Result<(), Error> {
        self.line += 1;
        if self.line > CHUNK_LINE_BYTES_MAX { Err(Error::ChunkSize) } else { Ok(()) }
    }

    fn count_extension(&mut self) -> Result<(), Error> {
        self.line += 1;
        self.extensions += 1;
        if self.line > CHUNK_LINE_BYTES_MAX || self.extensions > EXTENSION_BYTES_MAX {
            return Err(Error::ChunkExtension);
        }
        Ok(())
    }

    fn start_chunk(&mut self, size: u64) -> Result<State, Error> {
        self.line = 0;
        if size == 0 {
            return Ok(State::TrailerLine);
        }
        self.allowance = self.allowance.checked_sub(size).ok_or(Error::BodyTooLarge)?;
        Ok(State::Data(size))
    }

    /// Takes the trailer section, once the body is complete.
    pub(super) fn take_trailers(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.trailers)
    }

    /// Processes one byte of the trailer section. Trailers are validated and kept separate from the headers: merging
    /// them is unsafe (RFC 9110 section 6.5.1).
    fn step_trailer(&mut self, byte: u8, limits: &Limits) -> Result<State, Error> {
        // Checked for the bytes of the final empty line too, although they are not stored.
        if self.trailers.len() >= limits.trailer_bytes_max {
            return Err(Error::TrailersTooLarge);
        }
        if !matches!(self.state, State::TrailerLine | State::LastLf) || byte != b'\r' && byte != b'\n' {
            self.trailers.push(byte);
        }
        match (self.state, byte) {
            (State::TrailerLine, b'\r') => Ok(State::LastLf),
            (State::LastLf, b'\n') => Ok(State::Done),
            (State::TrailerLine, _) if TOKEN[byte as usize] => {
                self.trailer_fields += 1;
                if self.trailer_fields > limits.headers_max {
                    Err(Error::TrailersTooLarge)
                } else {
                    Ok(State::TrailerName)
                }
            }
            (State::TrailerName, b':') | (State::TrailerValue, _) if byte == b':' || VALUE[byte as usize] => {
                Ok(State::TrailerValue)
            }
            (State::TrailerName, _) if TOKEN[byte as usize] => Ok(State::TrailerName),
            (State::TrailerValue, b'\r') => Ok(State::TrailerEnd),
            (State::TrailerEnd, b'\n') => Ok(State::TrailerLine),
            _ => Err(Error::Trailer),
        }
    }
}

fn step_size(state: State, byte: u8) -> Result<State, Error> {
    let State::Size { value, digits } = state else {
        return Err(Error::ChunkSize);
    };
    match byte {
        b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F' => {
            let digit = char::from(byte).to_digit(16).unwrap_or(0);
            // A size that overflows saturates: it exceeds any limit and never wraps.
            let value = value.checked_mul(16).map_or(u64::MAX, |shifted| shifted | u64::from(digit));
            Ok(State::Size { value, digits: digits + 1 })
        }
        _ if digits == 0 => Err(Error::ChunkSize),
        b'\r' => Ok(State::SizeEnd { value }),
        b';' => Ok(State::BeforeName { value }),
        b' ' | b'\t' => Ok(State::AfterSize { value }),
        _ => Err(Error::ChunkSize),
    }
}

/// `*( BWS ";" BWS name [ BWS "=" BWS ( token / quoted-string ) ] )`
fn step_extension(state: State, byte: u8) -> Result<State, Error> {
    let token = TOKEN[byte as usize];
    let space = matches!(byte, b' ' | b'\t');
    Ok(match (state, byte) {
        (State::AfterSize { value } | State::AfterQuoted { value }, _) if space => State::AfterSize { value },
        (State::AfterSize { value } | State::AfterQuoted { value }, b';') => State::BeforeName { value },
        // Whitespace after an extension is only allowed before another one, not at the end of the line.
        (State::AfterQuoted { value } | State::Name { value } | State::Value { value }, b'\r') => {
            State::SizeEnd { value }
        }
        (State::BeforeName { value }, _) if space => State::BeforeName { value },
        (State::BeforeName { value } | State::Name { value }, _) if token => State::Name { value },
        (State::Name { value } | State::AfterName { value }, _) if space => State::AfterName { value },
        (State::Name { value } | State::AfterName { value } | State::Value { value }, b';') => {
            State::BeforeName { value }
        }
        (State::Name { value } | State::AfterName { value }, b'=') => State::BeforeValue { value },
        (State::BeforeValue { value }, _) if space => State::BeforeValue { value },
        (State::BeforeValue { value }, b'"') => State::Quoted { value },
        (State::BeforeValue { value } | State::Value { value }, _) if token => State::Value { value },
        (State::Value { value }, _) if space => State::AfterSize { value },
        (State::Quoted { value }, b'"') => State::AfterQuoted { value },
        (State::Quoted { value }, b'\\') => State::Escaped { value },
        (State::Quoted { value } | State::Escaped { value }, _) if VALUE[byte as usize] => State::Quoted { value },
        _ => return Err(Error::ChunkExtension),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes a chunked body. Returns the data, whether the body is complete, and the number of bytes consumed.
    fn decode(input: &[u8]) -> Result<(Vec<u8>, bool, usize), Error> {
        let limits = Limits::default();
        let mut body = Body::new(Framing::Chunked, 100)?;
        let (mut data, mut at) = (Vec::new(), 0);
        loop {
            let (used, piece) = body.decode(&input[at..], &limits)?;
            at += used;
            match piece {
                Piece::NeedMore => return Ok((data, false, at)),
                Piece::Data(bytes) => data.extend_from_slice(bytes),
                Piece::End => return Ok((data, true, at)),
            }
        }
    }

    #[test]
    fn chunks_are_joined_and_the_next_request_is_left_unread() {
        let input = b"5\r\nhello\r\n0001;a=b;c\r\n!\r\n0\r\nX-T: v\r\n\r\nGET";
        let (data, complete, used) = decode(input).unwrap();
        assert_eq!((data.as_slice(), complete, used), (&b"hello!"[..], true, input.len() - 3));
    }

    #[test]
    fn extensions_may_have_whitespace_around_their_parts() {
        for line in ["1 ; a = b", "1;a=\"b;\\\" c\"", "1; a", "1;a ;b=\"\" ; c"] {
            let input = format!("{line}\r\nx\r\n0\r\n\r\n");
            assert_eq!(decode(input.as_bytes()).map(|(_, complete, _)| complete), Ok(true), "{line}");
        }
    }

    #[test]
    fn malformed_chunks_are_rejected() {
        for (input, error) in [
            (&b"\r\n"[..], Error::ChunkSize),
            (b"5g\r\n", Error::ChunkSize),
            (b"+5\r\n", Error::ChunkSize),
            (b"0x5\r\n", Error::ChunkSize),
            (b"5\n", Error::ChunkSize),
            (b"5\rh", Error::ChunkSize),
            (b"5 \r\n", Error::ChunkExtension),
            (b"5;\r\n", Error::ChunkExtension),
            (b"5;a\n", Error::ChunkExtension),
            (b"5;a\0", Error::ChunkExtension),
            (b"5;=b", Error::ChunkExtension),
            (b"1\r\nxx", Error::ChunkData),
            (b"1\r\nx\n", Error::ChunkData),
            (b"0\r\nno colon", Error::Trailer),
            (b"0\r\n: v", Error::Trailer),
            (b"0\r\na: v\n", Error::Trailer),
            (b"0\r\n\rX", Error::Trailer),
            (b"65\r\n", Error::BodyTooLarge),
            (b"10000000000000005\r\n", Error::BodyTooLarge),
            (b"fffffffffffffffe\r\n", Error::BodyTooLarge),
        ] {
            assert_eq!(decode(input), Err(error), "{:?}", String::from_utf8_lossy(input));
        }
    }

    #[test]
    fn overlong_lines_are_rejected() {
        let long = |prefix: &str, piece: &str| decode((prefix.to_owned() + &piece.repeat(20_000)).as_bytes());
        assert_eq!(long("1;a=", "x"), Err(Error::ChunkExtension));
        assert_eq!(long("", "0"), Err(Error::ChunkSize));
        assert_eq!(long("0\r\n", "X-T: v\r\n"), Err(Error::TrailersTooLarge));
        assert_eq!(long("0\r\nX-T:", "v"), Err(Error::TrailersTooLarge));
    }
}

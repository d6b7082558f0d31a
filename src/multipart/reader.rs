//! The state machine that finds the boundaries of a form, in input that may be split anywhere.
//!
//! The content of a part ends at the delimiter: CRLF, `--` and the boundary. At the end of a piece of input, a partial
//! delimiter is held back as a number of bytes rather than as a copy: if it turns out to be content, the bytes are
//! taken from the delimiter itself. CR occurs in the delimiter only at its start, so after a mismatch nothing has to be
//! compared again.

use memchr::memchr;

use super::error::{Error, Limits};
use super::part::{Part, boundary};

/// Length of the line ending with which the delimiter begins.
const LINE_END: usize = 2;

/// Reads a form from a body that arrives in pieces; see the [module](super) for an example.
#[derive(Clone, Debug)]
pub struct Reader {
    limits: Limits,
    delimiter: Vec<u8>,
    state: State,
}

#[derive(Clone, Debug)]
struct State {
    stage: Stage,
    /// Number of bytes of the delimiter at the end of the input so far.
    matched: usize,
    /// Of these, the number that were not received: the start of the body and the start of a part's content count as
    /// the start of a line.
    implied: usize,
    /// The part of the current header section that has been received.
    header: Vec<u8>,
    parts: usize,
    /// The bytes that the current part may still have, and the error beyond that.
    part_left: (u64, Error),
    /// The bytes that the body may still have.
    bytes_left: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Before the first boundary. RFC 2046 section 5.1.1 allows text there, which is ignored.
    Preamble,
    /// After a boundary.
    Boundary,
    /// After a boundary and `-`.
    BoundaryDash,
    /// After a boundary, and spaces or tabs.
    BoundaryPadding,
    /// After a boundary and CR.
    BoundaryCr,
    Header,
    Content,
    /// After the last boundary; ignored.
    Epilogue,
    Failed(Error),
}

/// An event in a form.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A part begins.
    Part(Part),
    /// A piece of the content of the current part. It may have any size but is never empty.
    Data(&'a [u8]),
    /// The current part is complete.
    End,
}

impl Reader {
    /// Creates a reader for a body with this Content-Type, which must contain the boundary.
    ///
    /// # Errors
    /// Returns an error if the type is not `multipart/form-data`, or the boundary is missing or malformed.
    ///
    /// # Examples
    /// ```
    /// use serverd::multipart::Reader;
    ///
    /// let form = b"--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nhello\r\n--x--\r\n";
    /// let parts = Reader::new(b"multipart/form-data; boundary=x")?.read_all(form)?;
    /// assert_eq!((parts[0].0.name(), parts[0].1.as_slice()), ("a", &b"hello"[..]));
    /// # Ok::<(), serverd::multipart::Error>(())
    /// ```
    pub fn new(content_type: &[u8]) -> Result<Self, Error> {
        let delimiter = [b"\r\n--", boundary(content_type)?.as_slice()].concat();
        let limits = Limits::default();
        let state = State {
            stage: Stage::Preamble,
            matched: LINE_END,
            implied: LINE_END,
            header: Vec::new(),
            parts: 0,
            part_left: (0, Error::TextTooLarge),
            bytes_left: limits.bytes_max,
        };
        Ok(Reader { limits, delimiter, state })
    }

    /// Sets the limits. Call it before the first piece of the body.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.state.bytes_left = limits.bytes_max;
        self.limits = limits;
        self
    }

    /// Returns the events in the next piece of the body. All of them have to be taken: what is left when the iterator
    /// is dropped is lost. After an error, the only event is that error again.
    pub fn feed<'a>(&'a mut self, input: &'a [u8]) -> Events<'a> {
        let allowed = usize::try_from(self.state.bytes_left).unwrap_or(usize::MAX).min(input.len());
        let is_too_large = allowed < input.len();
        self.state.bytes_left -= allowed as u64;
        let Reader { limits, delimiter, state } = self;
        Events { limits, delimiter, state, input: &input[..allowed], is_too_large, is_over: false }
    }

    /// Checks that the form is complete. Call it at the end of the body.
    ///
    /// # Errors
    /// Returns an error if the last boundary has not been received, or the earlier error if there was one.
    pub fn finish(&self) -> Result<(), Error> {
        match self.state.stage {
            Stage::Epilogue => Ok(()),
            Stage::Failed(error) => Err(error),
            _ => Err(Error::Incomplete),
        }
    }

    /// Returns all parts of a body that is in memory, with their content.
    ///
    /// # Errors
    /// Returns an error if the body is malformed or exceeds a limit.
    pub fn read_all(mut self, body: &[u8]) -> Result<Vec<(Part, Vec<u8>)>, Error> {
        let mut parts: Vec<(Part, Vec<u8>)> = Vec::new();
        for event in self.feed(body) {
            match (event?, parts.last_mut()) {
                (Event::Part(part), _) => parts.push((part, Vec::new())),
                (Event::Data(data), Some((_, content))) => content.extend_from_slice(data),
                _ => {}
            }
        }
        self.finish().map(|()| parts)
    }
}

/// The events in a piece of a form; see [`Reader::feed`].
#[derive(Debug)]
pub struct Events<'a> {
    limits: &'a Limits,
    delimiter: &'a [u8],
    state: &'a mut State,
    input: &'a [u8],
    /// The input exceeded the limit of the body, and was cut.
    is_too_large: bool,
    is_over: bool,
}

impl<'a> Iterator for Events<'a> {
    type Item = Result<Event<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let event = self.next_event();
        if !matches!(event, Some(Ok(_))) {
            self.is_over = true;
        }
        if let Some(Err(error)) = event {
            self.state.stage = Stage::Failed(error);
        }
        event
    }
}

impl std::iter::FusedIterator for Events<'_> {}

impl<'a> Events<'a> {
    fn next_event(&mut self) -> Option<Result<Event<'a>, Error>> {
        loop {
            match self.state.stage {
                Stage::Failed(error) => return Some(Err(error)),
                Stage::Preamble => match self.content() {
                    None | Some(Event::Part(_)) => break,
                    Some(Event::Data(_)) => {}
                    Some(Event::End) => self.state.stage = Stage::Boundary,
                },
                Stage::Content => match self.content() {
                    None => break,
                    Some(Event::Data(data)) => return Some(self.count(data)),
                    Some(event) => {
                        self.state.stage = Stage::Boundary;
                        return Some(Ok(event));
                    }
                },
                Stage::Header => match self.header() {
                    Ok(None) => break,
                    Ok(Some(part)) => return Some(Ok(Event::Part(part))),
                    Err(error) => return Some(Err(error)),
                },
                Stage::Epilogue => {
                    self.input = &[];
                    break;
                }
                stage => {
                    let Some((&byte, rest)) = self.input.split_first() else { break };
                    self.input = rest;
                    match after_boundary(stage, byte) {
                        Some(stage) => self.state.stage = stage,
                        None => return Some(Err(Error::Delimiter)),
                    }
                }
            }
        }
        self.is_too_large.then_some(Err(Error::TooLarge))
    }

    /// Returns the next piece of content, or [`Event::End`] after the delimiter. Returns `None` at the end of the
    /// input.
    fn content(&mut self) -> Option<Event<'a>> {
        loop {
            if self.state.matched == 0 {
                let at = find(self.delimiter, self.input);
                if at > 0 {
                    let (data, rest) = self.input.split_at(at);
                    self.input = rest;
                    return Some(Event::Data(data));
                }
            }
            let (held, expected) = self.delimiter.split_at(self.state.matched);
            let count = common_prefix(self.input, expected);
            if count < expected.len() && count == self.input.len() {
                self.input = &[];
                self.state.matched += count;
                return None;
            }
            self.state.matched = 0;
            let implied = std::mem::take(&mut self.state.implied);
            if count == expected.len() {
                self.input = &self.input[count..];
                return Some(Event::End);
            }
            if held.len() > implied {
                return Some(Event::Data(&held[implied..]));
            }
        }
    }

    /// Counts a piece of content towards the limit of its part.
    fn count(&mut self, data: &'a [u8]) -> Result<Event<'a>, Error> {
        let (left, error) = &mut self.state.part_left;
        *left = left.checked_sub(data.len() as u64).ok_or(*error)?;
        Ok(Event::Data(data))
    }

    /// Collects the header section of a part, up to an empty line. Returns the part once it is complete.
    fn header(&mut self) -> Result<Option<Part>, Error> {
        let header = &mut self.state.header;
        while !header.ends_with(b"\r\n\r\n") && header.as_slice() != b"\r\n" {
            let count = memchr(b'\n', self.input).map_or(self.input.len(), |at| at + 1);
            if count == 0 {
                return Ok(None);
            }
            if header.len() + count > self.limits.header_bytes_max {
                return Err(Error::HeaderTooLarge);
            }
            let (line, rest) = self.input.split_at(count);
            header.extend_from_slice(line);
            self.input = rest;
        }
        self.state.parts += 1;
        if self.state.parts > self.limits.parts_max {
            return Err(Error::TooManyParts);
        }
        let part = Part::parse(header, self.limits.headers_max)?;
        header.clear();
        self.state.part_left = if part.is_file() {
            (self.limits.file_bytes_max, Error::FileTooLarge)
        } else {
            (self.limits.text_bytes_max, Error::TextTooLarge)
        };
        self.state.stage = Stage::Content;
        (self.state.matched, self.state.implied) = (LINE_END, LINE_END);
        Ok(Some(part))
    }
}

/// Returns the stage after a byte that follows a boundary, if that is allowed there.
fn after_boundary(stage: Stage, byte: u8) -> Option<Stage> {
    match (stage, byte) {
        (Stage::Boundary, b'-') => Some(Stage::BoundaryDash),
        (Stage::BoundaryDash, b'-') => Some(Stage::Epilogue),
        (Stage::Boundary | Stage::BoundaryPadding, b' ' | b'\t') => Some(Stage::BoundaryPadding),
        (Stage::Boundary | Stage::BoundaryPadding, b'\r') => Some(Stage::BoundaryCr),
        (Stage::BoundaryCr, b'\n') => Some(Stage::Header),
        _ => None,
    }
}

fn common_prefix(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

/// Returns the position of the delimiter in `input`, or of a partial one at the end of `input`; otherwise the length of
/// `input`.
fn find(delimiter: &[u8], input: &[u8]) -> usize {
    let mut from = 0;
    while let Some(at) = memchr(b'\r', &input[from..]).map(|at| from + at) {
        let count = common_prefix(&input[at..], delimiter);
        if count == delimiter.len() || at + count == input.len() {
            return at;
        }
        from = at + count;
    }
    input.len()
}

//! What answers requests, and what it decides on the head alone.

use super::later::Responder;
use super::reader::BodyReader;
use super::{Request, RequestHead, Response, Trailers};

/// Answers requests; one value per worker, so its state needs no lock. A closure `FnMut(&Request<'_>) -> R` is a
/// handler, where `R` is a [`Response`] or becomes one.
///
/// # Examples
/// ```
/// use serverd::{Handler, HttpServer, Intake, Request, RequestHead, Response, StatusCode};
///
/// struct Counter(u64);
///
/// impl Handler for Counter {
///     fn head(&mut self, head: &RequestHead<'_>) -> Intake {
///         if head.path() == "/upload" { Intake::Collect(64 << 20) } else { Intake::Default }
///     }
///
///     fn call(&mut self, _request: &Request<'_>) -> Response {
///         self.0 += 1;
///         Response::text(format!("{}\n", self.0))
///     }
/// }
///
/// let server = HttpServer::with(Counter(0));
/// # drop(server);
/// ```
pub trait Handler {
    /// Decides on the head alone what is to become of the body, before the client is told to send it. Called only
    /// for requests that have one.
    fn head(&mut self, _head: &RequestHead<'_>) -> Intake {
        Intake::Default
    }

    /// Answers a whole request.
    fn call(&mut self, request: &Request<'_>) -> Response;
}

/// What is to become of the body of a request.
#[non_exhaustive]
pub enum Intake {
    /// Collect it, up to [`Limits::body_bytes_max`](crate::http1::Limits), then [`Handler::call`].
    Default,
    /// Collect it, up to so many octets; more is answered 413.
    Collect(u64),
    /// Answer now and do not read it. The connection is closed afterwards, as nobody can tell where the next
    /// request would begin.
    Refuse(Response),
    /// Take it as it comes; see [`Intake::stream`] and [`Intake::fold`].
    Stream {
        /// More octets than this are answered 413.
        bytes_max: u64,
        /// What takes them, and answers.
        upload: Box<dyn Upload>,
    },
    /// Read it on another thread; see [`Intake::read`].
    Read {
        /// More octets than this are answered 413.
        bytes_max: u64,
        /// What starts the reading.
        start: Box<dyn FnOnce(BodyReader, Responder)>,
    },
}

impl Intake {
    /// Takes the body as it comes, up to so many octets.
    pub fn stream(bytes_max: u64, upload: impl Upload + 'static) -> Self {
        Intake::Stream { bytes_max, upload: Box::new(upload) }
    }

    /// Takes the body as it comes, up to so many octets, by a closure for each piece and one for the answer.
    ///
    /// # Examples
    /// ```
    /// use serverd::{Handler, Intake, Request, RequestHead, Response};
    ///
    /// struct Count;
    ///
    /// impl Handler for Count {
    ///     fn head(&mut self, _: &RequestHead<'_>) -> Intake {
    ///         Intake::fold(1 << 40, 0_u64, |sum, piece| *sum += piece.len() as u64, |sum| format!("{sum} bytes\n"))
    ///     }
    ///
    ///     fn call(&mut self, _: &Request<'_>) -> Response {
    ///         Response::text("no body\n")
    ///     }
    /// }
    /// ```
    pub fn fold<S: 'static, R: Into<Response>>(
        bytes_max: u64,
        state: S,
        each: impl FnMut(&mut S, &[u8]) + 'static,
        end: impl FnOnce(S) -> R + 'static,
    ) -> Self {
        Intake::stream(bytes_max, Fold { state, each, end })
    }

    /// Reads the body on another thread, which also answers. `start` is called at once, on the thread of the loop, and
    /// has to hand both on to a thread: [`BodyReader`] is a [`Read`](std::io::Read) that waits for the client. The
    /// client waits for a reader that is slow: at most 256 KiB are taken ahead of it.
    ///
    /// # Examples
    /// ```
    /// use serverd::{Handler, Intake, Request, RequestHead, Response, StatusCode};
    /// use std::io;
    ///
    /// struct Discard;
    ///
    /// impl Handler for Discard {
    ///     fn head(&mut self, _: &RequestHead<'_>) -> Intake {
    ///         Intake::read(1 << 40, |mut body, responder| {
    ///             std::thread::spawn(move || match io::copy(&mut body, &mut io::sink()) {
    ///                 Ok(bytes) => responder.respond(format!("{bytes} bytes\n")),
    ///                 Err(_) => responder.respond(StatusCode::BAD_REQUEST), // the client is gone
    ///             });
    ///         })
    ///     }
    ///
    ///     fn call(&mut self, _: &Request<'_>) -> Response {
    ///         Response::text("no body\n")
    ///     }
    /// }
    /// ```
    pub fn read(bytes_max: u64, start: impl FnOnce(BodyReader, Responder) + 'static) -> Self {
        Intake::Read { bytes_max, start: Box::new(start) }
    }

    /// Changes the answer that comes of this decision alone: a refusal, or that of a body which is taken as it comes or
    /// read elsewhere. A body that is collected is answered by [`Handler::call`], whose answer is not changed here. What
    /// wraps handlers uses this beside [`Response::map`], so that it sees every answer.
    #[must_use]
    pub fn map(self, change: impl FnOnce(Response) -> Response + Send + 'static) -> Self {
        match self {
            Intake::Default | Intake::Collect(_) => self,
            Intake::Refuse(response) => Intake::Refuse(response.map(change)),
            Intake::Stream { bytes_max, upload } => Intake::stream(bytes_max, Mapped { upload, change: Some(change) }),
            Intake::Read { bytes_max, start } => {
                Intake::read(bytes_max, |body, responder| start(body, responder.map(change)))
            }
        }
    }
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Intake::Default => formatter.write_str("Default"),
            Intake::Collect(bytes_max) => write!(formatter, "Collect({bytes_max})"),
            Intake::Refuse(response) => write!(formatter, "Refuse({response:?})"),
            Intake::Stream { bytes_max, .. } => write!(formatter, "Stream({bytes_max})"),
            Intake::Read { bytes_max, .. } => write!(formatter, "Read({bytes_max})"),
        }
    }
}

/// Takes the body of one request as it comes, on the thread of the loop. Dropped before its end when the connection
/// ends, or the body turns out too large, too slow or malformed.
pub trait Upload {
    /// A piece of the body came. Pieces have any size, and none is empty.
    fn chunk(&mut self, bytes: &[u8]) -> Take;

    /// The body is whole: answer. The trailers are those of a body that came in chunks.
    fn end(self: Box<Self>, trailers: &Trailers) -> Response;
}

/// What is to follow a piece of a body.
#[derive(Debug)]
pub enum Take {
    /// The next one.
    More,
    /// Nothing: answer now and read no further. The connection is closed afterwards.
    Answer(Response),
}

/// An upload whose answer is changed.
struct Mapped<F> {
    upload: Box<dyn Upload>,
    /// Taken by the answer.
    change: Option<F>,
}

fn changed<F>(response: Response, change: Option<F>) -> Response
where
    F: FnOnce(Response) -> Response + Send + 'static,
{
    if let Some(change) = change { response.map(change) } else { response }
}

impl<F: FnOnce(Response) -> Response + Send + 'static> Upload for Mapped<F> {
    fn chunk(&mut self, bytes: &[u8]) -> Take {
        match self.upload.chunk(bytes) {
            Take::More => Take::More,
            Take::Answer(response) => Take::Answer(changed(response, self.change.take())),
        }
    }

    fn end(self: Box<Self>, trailers: &Trailers) -> Response {
        let Mapped { upload, change } = *self;
        changed(upload.end(trailers), change)
    }
}

/// [`Intake::fold`].
struct Fold<S, E, F> {
    state: S,
    each: E,
    end: F,
}

impl<S, E, F, R> Upload for Fold<S, E, F>
where
    E: FnMut(&mut S, &[u8]),
    F: FnOnce(S) -> R,
    R: Into<Response>,
{
    fn chunk(&mut self, bytes: &[u8]) -> Take {
        (self.each)(&mut self.state, bytes);
        Take::More
    }

    fn end(self: Box<Self>, _: &Trailers) -> Response {
        (self.end)(self.state).into()
    }
}

/// For handlers that are chosen while the program runs.
impl Handler for Box<dyn Handler> {
    fn head(&mut self, head: &RequestHead<'_>) -> Intake {
        (**self).head(head)
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        (**self).call(request)
    }
}

impl<F, R> Handler for F
where
    F: FnMut(&Request<'_>) -> R,
    R: Into<Response>,
{
    #[allow(clippy::inline_always, reason = "a response is large, and a call would copy it")]
    #[inline(always)]
    fn call(&mut self, request: &Request<'_>) -> Response {
        self(request).into()
    }
}

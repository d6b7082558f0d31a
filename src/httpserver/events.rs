//! Server-sent events (HTML Living Standard, section 9.2): a stream of text events, which browsers read with
//! `EventSource`.

use std::fmt::Write as _;

use super::body_sender::{SendError, Sender};
use super::response::Response;

/// A server-sent event.
///
/// # Examples
/// ```
/// use serverd::ServerEvent;
///
/// let event = ServerEvent::new("two\nlines").name("greeting").id("7");
/// assert_eq!(event.to_string(), "event: greeting\nid: 7\ndata: two\ndata: lines\n\n");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerEvent {
    /// The lines other than `data`.
    text: String,
    data: String,
}

impl ServerEvent {
    /// Creates an event with `data`, which may have any number of lines.
    pub fn new(data: impl AsRef<str>) -> Self {
        let mut event = ServerEvent::default();
        // CR, LF and CRLF each end a line.
        for line in data.as_ref().replace("\r\n", "\n").split(['\n', '\r']) {
            let _ = writeln!(event.data, "data: {line}");
        }
        event
    }

    /// Sets the event type, for which the page adds a listener. The default is `message`.
    #[must_use]
    pub fn name(self, name: impl AsRef<str>) -> Self {
        self.line("event", name.as_ref())
    }

    /// Sets the event id, which a client sends as Last-Event-ID when it reconnects.
    #[must_use]
    pub fn id(self, id: impl AsRef<str>) -> Self {
        // Clients ignore an id that contains NUL.
        let id = id.as_ref().replace('\0', "");
        self.line("id", &id)
    }

    /// Sets the delay before a client reconnects.
    #[must_use]
    pub fn retry(self, delay: std::time::Duration) -> Self {
        self.line("retry", &delay.as_millis().to_string())
    }

    /// Appends a line. Line breaks in the value would start another line, so they become spaces.
    fn line(mut self, name: &str, value: &str) -> Self {
        let _ = writeln!(self.text, "{name}: {}", value.replace(['\n', '\r'], " "));
        self
    }
}

impl std::fmt::Display for ServerEvent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(formatter, "{}{}", self.text, self.data)
    }
}

/// Sends the events of one response, from any thread. Created by [`Response::events`].
#[derive(Debug)]
pub struct EventSender {
    sender: Sender,
}

impl EventSender {
    /// Sends an event.
    ///
    /// # Errors
    /// Returns an error if the queue is full because the client is slow, or if the client has disconnected.
    pub fn send(&self, event: &ServerEvent) -> Result<(), SendError> {
        self.sender.send(event.to_string())
    }

    /// Sends a comment line, which clients ignore. Sent every 15 seconds or so, it keeps proxies from closing an idle
    /// stream and helps to detect clients that have disconnected.
    ///
    /// # Errors
    /// Returns an error if the queue is full because the client is slow, or if the client has disconnected.
    pub fn keep_alive(&self) -> Result<(), SendError> {
        self.sender.send(":\n\n")
    }

    /// Returns the underlying [`Sender`], which reports whether the queue is full, the connection is closed or the
    /// server is shutting down, and accepts callbacks for these events.
    pub fn sender(&self) -> &Sender {
        &self.sender
    }

    /// Ends the stream. The client reconnects, unless the page closes its `EventSource`.
    pub fn finish(self) {
        self.sender.finish();
    }
}

impl Response {
    /// Creates a 200 (OK) response with a stream of server-sent events.
    ///
    /// # Examples
    /// ```
    /// use serverd::{HttpServer, Response, ServerEvent};
    /// use std::{thread, time::Duration};
    ///
    /// let server = HttpServer::new(|_| {
    ///     let (response, events) = Response::events();
    ///     thread::spawn(move || {
    ///         while !events.sender().is_draining() && events.send(&ServerEvent::new("tick")).is_ok() {
    ///             thread::sleep(Duration::from_secs(1));
    ///         }
    ///         events.finish();
    ///     });
    ///     response
    /// });
    /// # drop(server);
    /// ```
    pub fn events() -> (Self, EventSender) {
        let (response, sender) = Response::channel();
        let response = response.content_type("text/event-stream").header("Cache-Control", "no-store");
        (response, EventSender { sender })
    }
}

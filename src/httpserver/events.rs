//! Server-sent events (HTML Living Standard, section 9.2): a stream of small texts that browsers read by themselves.

use std::fmt::Write as _;

use super::{Response, SendError, Sender};

/// One event.
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
    text: String,
    data: String,
}

impl ServerEvent {
    /// An event with this text, of any number of lines.
    pub fn new(data: impl AsRef<str>) -> Self {
        let mut event = ServerEvent::default();
        // The format takes CR, LF and both together for a line end.
        for line in data.as_ref().replace("\r\n", "\n").split(['\n', '\r']) {
            let _ = writeln!(event.data, "data: {line}");
        }
        event
    }

    /// What the page listens for; without it, `message`.
    #[must_use]
    pub fn name(self, name: impl AsRef<str>) -> Self {
        self.line("event", name.as_ref())
    }

    /// What a client sends as Last-Event-ID when it comes back.
    #[must_use]
    pub fn id(self, id: impl AsRef<str>) -> Self {
        // The standard has clients ignore an id with NUL in it.
        let id = id.as_ref().replace('\0', "");
        self.line("id", &id)
    }

    /// How long a client waits before it comes back.
    #[must_use]
    pub fn retry(self, delay: std::time::Duration) -> Self {
        self.line("retry", &delay.as_millis().to_string())
    }

    /// A line of its own: line ends in the value would begin another field, and become spaces.
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

/// Sends events on one response, from any thread. Made by [`Response::events`].
#[derive(Debug)]
pub struct EventSender {
    sender: Sender,
}

impl EventSender {
    /// Sends an event.
    ///
    /// # Errors
    /// When the client is too slow for now, or gone.
    pub fn send(&self, event: &ServerEvent) -> Result<(), SendError> {
        self.sender.send(event.to_string())
    }

    /// Sends a line that clients ignore. One every 15 seconds or so keeps proxies from closing a quiet stream, and finds
    /// out that a client is gone.
    ///
    /// # Errors
    /// When the client is too slow for now, or gone.
    pub fn keep_alive(&self) -> Result<(), SendError> {
        self.sender.send(":\n\n")
    }

    /// What is underneath: whether it is full, closed or draining, and who wants to hear of that.
    pub fn sender(&self) -> &Sender {
        &self.sender
    }

    /// Ends the stream. The client comes back, unless the page closes it.
    pub fn finish(self) {
        self.sender.finish();
    }
}

impl Response {
    /// 200 (OK) with a stream of server-sent events.
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
        let response = response.content_type("text/event-stream").field("Cache-Control", "no-store");
        (response, EventSender { sender })
    }
}

//! Server-sent events: a page that shows the server's uptime, updated for all clients by one timer on the loop.
//!
//!     cargo run --example sse
//!     curl -N http://127.0.0.1:8888/events          # or open http://127.0.0.1:8888/ in a browser

use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serverd::{DefaultLoop, EventSender, HttpServer, Response, Router, ServerEvent, StatusCode};

const PAGE: &str = r#"<!doctype html>
<html lang="en">
<title>Server-sent events</title>
<p>The server has been running for <output id="seconds">?</output> seconds.
<script>
  new EventSource("/events").addEventListener("tick", (event) => {
    document.getElementById("seconds").value = event.data;
  });
</script>
"#;

/// Maximum number of concurrent event streams.
const SUBSCRIBERS_MAX: usize = 1000;

type Subscribers = Arc<Mutex<Vec<EventSender>>>;

fn subscribe(subscribers: &Subscribers) -> Response {
    let mut subscribers = subscribers.lock().unwrap_or_else(PoisonError::into_inner);
    if subscribers.len() >= SUBSCRIBERS_MAX {
        return Response::from(StatusCode::SERVICE_UNAVAILABLE).header("Retry-After", "10");
    }
    let (response, events) = Response::events();
    subscribers.push(events);
    response
}

/// Sends an event to all clients. Removes clients that have disconnected or are too slow, and ends all streams on
/// graceful shutdown.
fn tick(subscribers: &Subscribers, seconds: u64) {
    let event = ServerEvent::new(seconds.to_string()).name("tick").id(seconds.to_string());
    let mut subscribers = subscribers.lock().unwrap_or_else(PoisonError::into_inner);
    for events in std::mem::take(&mut *subscribers) {
        if events.sender().is_draining() {
            events.finish();
        } else if events.send(&event).is_ok() {
            subscribers.push(events);
        }
    }
}

fn main() -> std::io::Result<()> {
    let subscribers = Subscribers::default();
    let for_timer = Arc::clone(&subscribers);
    let router = Router::new()
        .get("/", |_| Response::new(StatusCode::OK).content_type("text/html; charset=utf-8").body(PAGE))
        .get("/events", move |_| subscribe(&subscribers));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8888".into());
    let listener = TcpListener::bind(address)?;
    println!("listening on http://{}", listener.local_addr()?);
    let mut server = DefaultLoop::new(listener, None, HttpServer::with(router))?;
    let start = Instant::now();
    server.handle().call_every(Duration::from_secs(1), move || tick(&for_timer, start.elapsed().as_secs()));
    server.run()
}

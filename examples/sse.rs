//! Server-sent events: a page that shows a clock of the server's, and one timer of the loop for all who look.
//!
//!     cargo run --example sse
//!     curl -N http://127.0.0.1:8888/events          # or open http://127.0.0.1:8888/ in a browser

use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serverd::{EventSender, HttpServer, Poller, Response, Router, SelectLoop, ServerEvent, StatusCode};

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

/// Who may look at once.
const LISTENERS_MAX: usize = 1000;

type Listeners = Arc<Mutex<Vec<EventSender>>>;

fn subscribe(listeners: &Listeners) -> Response {
    let mut listeners = listeners.lock().unwrap_or_else(PoisonError::into_inner);
    if listeners.len() >= LISTENERS_MAX {
        return Response::from(StatusCode::SERVICE_UNAVAILABLE).field("Retry-After", "10");
    }
    let (response, events) = Response::events();
    listeners.push(events);
    response
}

/// Tells everybody; who is gone or does not keep up is forgotten, and in a drain everybody gets an end.
fn tick(listeners: &Listeners, seconds: u64) {
    let event = ServerEvent::new(seconds.to_string()).name("tick").id(seconds.to_string());
    let mut listeners = listeners.lock().unwrap_or_else(PoisonError::into_inner);
    for events in std::mem::take(&mut *listeners) {
        if events.sender().is_draining() {
            events.finish();
        } else if events.send(&event).is_ok() {
            listeners.push(events);
        }
    }
}

fn main() -> std::io::Result<()> {
    let listeners = Listeners::default();
    let ours = Arc::clone(&listeners);
    let router = Router::new()
        .get("/", |_| Response::new(StatusCode::OK).content_type("text/html; charset=utf-8").body(PAGE))
        .get("/events", move |_| subscribe(&ours));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8888".into());
    let listener = TcpListener::bind(address)?;
    println!("listening on http://{}", listener.local_addr()?);
    let mut server = SelectLoop::new(listener, None, HttpServer::with(router))?;
    let start = Instant::now();
    server.handle().call_every(Duration::from_secs(1), move || tick(&listeners, start.elapsed().as_secs()));
    server.run()
}

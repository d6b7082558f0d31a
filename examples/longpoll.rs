//! Long polling: a request for the next message waits until there is one, but at most 25 seconds.
//!
//!     cargo run --example longpoll
//!     curl http://127.0.0.1:8888/next                     # waits; 204 (No Content) means: ask again
//!     curl -d 'hello, world' http://127.0.0.1:8888/say    # sends a message to everyone who waits
//!
//! A waiting request takes less than a kilobyte and no thread. A client that disconnects by ending its side (FIN), as curl
//! does, counts as waiting until its 25 seconds are over, since it may still read, unless `LoopLimits::answer_half_closed`
//! is false.

use std::cell::RefCell;
use std::net::TcpListener;
use std::rc::Rc;
use std::time::Duration;

use serverd::{DefaultLoop, HttpServer, Request, Responder, Response, Router, StatusCode};

/// A little less than the time after which proxies give up.
const WAIT_MAX: Duration = Duration::from_secs(25);

/// Maximum number of waiting requests.
const WAITING_MAX: usize = 10_000;

/// All handlers run on one thread, so their state needs no lock.
type Waiting = Rc<RefCell<Vec<Responder>>>;

fn next(waiting: &Waiting) -> Response {
    let mut waiting = waiting.borrow_mut();
    if waiting.len() >= WAITING_MAX {
        // Clients that have disconnected or waited too long.
        waiting.retain(|responder| !responder.is_closed());
    }
    if waiting.len() >= WAITING_MAX {
        return Response::from(StatusCode::SERVICE_UNAVAILABLE).header("Retry-After", "10");
    }
    let (response, responder) = Response::later_within(WAIT_MAX, StatusCode::NO_CONTENT);
    waiting.push(responder);
    response
}

fn say(waiting: &Waiting, request: &Request<'_>) -> Response {
    let message = request.body().to_vec();
    let mut receivers = waiting.take();
    receivers.retain(|responder| !responder.is_closed());
    let count = receivers.len();
    for responder in receivers {
        responder.respond(Response::text(message.clone()));
    }
    Response::text(format!("sent to {count}\n"))
}

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8888".into());
    let listener = TcpListener::bind(address)?;
    println!("listening on http://{}", listener.local_addr()?);
    let waiting = Waiting::default();
    let speaking = Rc::clone(&waiting);
    let router =
        Router::new().get("/next", move |_| next(&waiting)).post("/say", move |request| say(&speaking, request));
    DefaultLoop::new(listener, None, HttpServer::with(router))?.run()
}

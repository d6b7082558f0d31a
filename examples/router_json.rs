//! A small service with routes and JSON: notes that are kept in memory, by a worker that owns them.
//!
//!     cargo run --example router_json
//!     curl -d '{"text": "buy milk"}' http://127.0.0.1:8888/notes
//!     curl http://127.0.0.1:8888/notes/1

use std::cell::RefCell;
use std::net::TcpListener;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use serverd::{HttpServer, Poller, Request, Response, Router, SelectLoop, StatusCode, layers};

/// Beyond this the oldest notes are forgotten.
const NOTES_MAX: usize = 1000;

#[derive(Deserialize)]
struct NewNote {
    text: String,
}

#[derive(Clone, Serialize)]
struct Note {
    id: usize,
    text: String,
}

fn add(notes: &RefCell<Vec<Note>>, request: &Request<'_>) -> Response {
    let new: NewNote = match request.json() {
        Ok(new) => new,
        Err(error) => return error.into(),
    };
    let mut notes = notes.borrow_mut();
    let note = Note { id: notes.last().map_or(1, |last| last.id + 1), text: new.text };
    if notes.len() == NOTES_MAX {
        notes.remove(0);
    }
    notes.push(note.clone());
    Response::json(&note).with_status(StatusCode::CREATED).field("Location", format!("/notes/{}", note.id))
}

fn find(notes: &RefCell<Vec<Note>>, request: &Request<'_>) -> Response {
    let Ok(id) = request.parameter::<usize>("id") else { return StatusCode::NOT_FOUND.into() };
    match notes.borrow().iter().find(|note| note.id == id) {
        Some(note) => Response::json(note),
        None => StatusCode::NOT_FOUND.into(),
    }
}

fn main() -> std::io::Result<()> {
    let notes = Rc::new(RefCell::new(Vec::new()));
    let (list, adding, finding) = (Rc::clone(&notes), Rc::clone(&notes), notes);
    let router = Router::new()
        .get("/notes", move |_| Response::json(&*list.borrow()))
        .post("/notes", move |request| add(&adding, request))
        .get("/notes/{id}", move |request| find(&finding, request));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8888".into());
    let listener = TcpListener::bind(address)?;
    println!("listening on http://{}", listener.local_addr()?);
    SelectLoop::new(listener, None, HttpServer::with(layers::log(router)))?.run()
}

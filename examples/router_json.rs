//! A small JSON service with routes: stores notes in memory, without locks because a single worker owns them.
//!
//!     cargo run --example router_json
//!     curl -d '{"text": "buy milk"}' http://127.0.0.1:8888/notes
//!     curl http://127.0.0.1:8888/notes/1

use std::cell::RefCell;
use std::net::TcpListener;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use serverd::{HttpServer, Request, Response, Router, SelectLoop, StatusCode, layers};

/// Maximum number of notes; beyond it the oldest are deleted.
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
    Response::json(&note).with_status(StatusCode::CREATED).header("Location", format!("/notes/{}", note.id))
}

fn find(notes: &RefCell<Vec<Note>>, request: &Request<'_>) -> Response {
    let Ok(id) = request.param::<usize>("id") else { return StatusCode::NOT_FOUND.into() };
    match notes.borrow().iter().find(|note| note.id == id) {
        Some(note) => Response::json(note),
        None => StatusCode::NOT_FOUND.into(),
    }
}

fn main() -> std::io::Result<()> {
    let notes = Rc::new(RefCell::new(Vec::new()));
    let (for_list, for_add, for_find) = (Rc::clone(&notes), Rc::clone(&notes), notes);
    let router = Router::new()
        .get("/notes", move |_| Response::json(&*for_list.borrow()))
        .post("/notes", move |request| add(&for_add, request))
        .get("/notes/{id}", move |request| find(&for_find, request));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8888".into());
    let listener = TcpListener::bind(address)?;
    println!("listening on http://{}", listener.local_addr()?);
    SelectLoop::new(listener, None, HttpServer::with(layers::log(router)))?.run()
}

//! A REST API with JSON: a list of tasks.
//!
//!     cargo run --example json_api
//!     curl -i -d '{"title": "buy milk"}' http://127.0.0.1:8888/tasks
//!     curl http://127.0.0.1:8888/tasks
//!     curl -X PUT -d '{"title": "buy milk", "done": true}' http://127.0.0.1:8888/tasks/1
//!
//! The tasks are in memory, but are accessed as a database would be: on a thread pool, as its calls block.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serverd::{DefaultLoop, HttpServer, Pool, Request, Response, Router, StatusCode, layers};

const NOT_FOUND: StatusCode = StatusCode::NOT_FOUND;
const TASKS_MAX: usize = 10_000;

#[derive(Clone, Deserialize, Serialize)]
struct Task {
    title: String,
    #[serde(default)]
    done: bool,
}

/// A task as clients see it.
#[derive(Serialize)]
struct Entry<'a> {
    id: u64,
    #[serde(flatten)]
    task: &'a Task,
}

/// Stands in for a database.
#[derive(Default)]
struct Store {
    tasks: BTreeMap<u64, Task>,
    last_id: u64,
}

#[derive(Clone)]
struct Api {
    store: Arc<Mutex<Store>>,
    pool: Pool,
}

type Outcome = Result<Response, Response>;

impl Api {
    /// Accesses the store on a thread of the pool. If too many requests wait for a thread, the response is a 503.
    fn access<R: Into<Response>>(&self, work: impl FnOnce(&mut Store) -> R + Send + 'static) -> Response {
        let store = Arc::clone(&self.store);
        let work = move || work(&mut store.lock().unwrap_or_else(PoisonError::into_inner)).into();
        self.pool.offload(work, |response: Response| response)
    }

    /// Creates the handler of a route.
    fn handler<R>(&self, handle: fn(&Api, &Request<'_>) -> R) -> impl FnMut(&Request<'_>) -> R + use<R> {
        let api = self.clone();
        move |request| handle(&api, request)
    }

    fn list(&self, _: &Request<'_>) -> Response {
        self.access(|store| {
            let entries: Vec<_> = store.tasks.iter().map(|(&id, task)| Entry { id, task }).collect();
            Response::json(&entries)
        })
    }

    fn create(&self, request: &Request<'_>) -> Outcome {
        let task: Task = request.json()?;
        Ok(self.access(move |store| {
            if store.tasks.len() >= TASKS_MAX {
                return Response::error(StatusCode::INSUFFICIENT_STORAGE, "too many tasks\n");
            }
            store.last_id += 1;
            let id = store.last_id;
            let response = Response::json(&Entry { id, task: &task }).with_status(StatusCode::CREATED);
            store.tasks.insert(id, task);
            response.header("Location", format!("/tasks/{id}"))
        }))
    }

    fn get(&self, request: &Request<'_>) -> Outcome {
        let id = request.param("id")?;
        Ok(self.access(move |store| {
            store.tasks.get(&id).map_or(NOT_FOUND.into(), |task| Response::json(&Entry { id, task }))
        }))
    }

    fn replace(&self, request: &Request<'_>) -> Outcome {
        let (id, new): (_, Task) = (request.param("id")?, request.json()?);
        Ok(self.access(move |store| {
            let Some(task) = store.tasks.get_mut(&id) else { return NOT_FOUND.into() };
            *task = new;
            Response::json(&Entry { id, task })
        }))
    }

    fn delete(&self, request: &Request<'_>) -> Outcome {
        let id: u64 = request.param("id")?;
        Ok(self.access(move |store| store.tasks.remove(&id).map_or(NOT_FOUND, |_| StatusCode::NO_CONTENT)))
    }
}

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8888".into());
    let listener = TcpListener::bind(address)?;
    println!("listening on http://{}", listener.local_addr()?);
    let api = Api { store: Arc::default(), pool: Pool::new(4, 100)? };
    let router = Router::new()
        .get("/tasks", api.handler(Api::list))
        .post("/tasks", api.handler(Api::create))
        .get("/tasks/{id}", api.handler(Api::get))
        .put("/tasks/{id}", api.handler(Api::replace))
        .delete("/tasks/{id}", api.handler(Api::delete));
    DefaultLoop::new(listener, None, HttpServer::with(layers::log(router)))?.run()
}

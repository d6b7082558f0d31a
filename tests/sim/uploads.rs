//! Uploads whose sink waits after each chunk: the handler's time does not count towards the body timeout, the client's
//! does.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use serverd::{BodyFlow, BodyMode, BodySink, Handle, Handler, Request, RequestHead, Response, Trailers};

use super::client::{Client, Step};
use super::{run_clients, send};

/// A closure whose server also receives uploads to `/wait/DELAY`, each chunk of which takes DELAY milliseconds.
pub(super) struct Uploads<F> {
    handle: Rc<RefCell<Option<Handle>>>,
    others: F,
}

impl<F> Uploads<F> {
    pub(super) fn new(handle: &Rc<RefCell<Option<Handle>>>, others: F) -> Self {
        Uploads { handle: Rc::clone(handle), others }
    }
}

impl<F: FnMut(&Request<'_>) -> Response> Handler for Uploads<F> {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        let Some(delay) = head.path().strip_prefix("/wait/") else { return BodyMode::Default };
        let delay = Duration::from_millis(delay.parse().expect("a number"));
        let handle = self.handle.borrow().clone().expect("the loop is running");
        BodyMode::stream(u64::MAX, Waiting { handle, delay, bytes: 0 })
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        (self.others)(request)
    }
}

struct Waiting {
    handle: Handle,
    delay: Duration,
    bytes: usize,
}

impl BodySink for Waiting {
    fn chunk(&mut self, bytes: &[u8]) -> BodyFlow {
        self.bytes += bytes.len();
        let (flow, resume) = BodyFlow::wait();
        self.handle.call_later(self.delay, move || resume.resume());
        flow
    }

    fn end(self: Box<Self>, _: &Trailers) -> Response {
        Response::text(format!("{} bytes", self.bytes))
    }
}

fn put(delay_ms: u64, bytes: usize) -> Vec<u8> {
    format!("PUT /wait/{delay_ms} HTTP/1.1\r\nHost: x\r\nContent-Length: {bytes}\r\n\r\n").into_bytes()
}

/// Runs one client with many seeds, on both kinds of backends.
fn run(script: &[Step]) {
    for seed in 0..50 {
        let clients = || vec![(0, Client::new("uploading", script.to_vec()).more_memory(1024 * 1024))];
        run_clients::<false>(seed, 10, clients(), None);
        run_clients::<true>(seed, 10, clients(), None);
    }
}

#[test]
fn an_upload_may_take_any_time_while_its_sink_waits() {
    run(&[
        send([put(3_600_000, 200_000), vec![b'x'; 200_000]].concat()),
        Step::Mark,
        Step::Response(200, "200000 bytes".into()),
    ]);
}

#[test]
fn an_upload_whose_sink_waits_may_pause_as_any_other() {
    let part = || send(vec![b'x'; 50_000]);
    let script = vec![send(put(100, 150_000)), part(), Step::Pause(25_000), part(), Step::Pause(25_000), part()];
    run(&[script, vec![Step::Response(200, "150000 bytes".into())]].concat());
}

/// Pausing after each byte must not allow a client any low rate.
#[test]
fn a_client_that_drips_is_cut_off_although_its_sink_waits() {
    for interval_ms in [20, 900, 2500] {
        run(&[
            send(put(1, 1_000_000)),
            Step::Mark,
            Step::Drip(interval_ms),
            Step::Response(408, "request body".into()),
            Step::Took(4_000, 9_000),
            Step::Finish,
            Step::End,
        ]);
    }
}

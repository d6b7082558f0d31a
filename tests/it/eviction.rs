//! At the connection limit, and out of file descriptors, the connection that has been idle longest is closed for a new
//! one; one with a request in flight never is.

use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use serverd::{HttpServer, LoopLimits, Request, Responder, Response, Timeouts};

use crate::harness::{Backend, Client, Server, WAIT_MAX, on_every_backend, serve_with};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// Longer than the accuracy of the order of idle connections.
const APART: Duration = Duration::from_millis(250);

fn serve<B: Backend>(connections_max: usize) -> Server {
    let limits = LoopLimits::default().connections_max(connections_max);
    serve_with::<B, _>(Timeouts::default(), limits, || HttpServer::new(|_: &Request<'_>| Response::text("hello")))
}

fn request(client: &mut Client) {
    client.send(GET);
    assert_eq!(client.response().text(), "hello");
}

on_every_backend! {
    fn the_connection_that_has_been_idle_longest_gives_way<B>() {
        let server = serve::<B>(3);
        let mut clients: Vec<Client> = (0..3).map(|_| server.connect()).collect();
        for client in &mut clients {
            request(client);
            std::thread::sleep(APART);
        }
        request(&mut clients[0]);
        // The order is now 1, 2, 0.
        for closed in [1, 2, 0] {
            std::thread::sleep(APART);
            let mut new = server.connect();
            request(&mut new);
            clients[closed].expect_close();
            clients.push(new);
        }
        clients[3..].iter_mut().for_each(request);
    }

    fn a_connection_that_awaits_its_first_byte_gives_way_too<B>() {
        let server = serve::<B>(3);
        let mut silent = server.connect();
        // Once this one is served, the first one has been accepted.
        let mut busy = server.connect();
        request(&mut busy);
        busy.send(GET.trim_end());
        std::thread::sleep(APART);
        let mut idle = server.connect();
        request(&mut idle);
        std::thread::sleep(APART);
        let mut new = server.connect();
        request(&mut new);
        silent.expect_close();
        request(&mut idle);
        busy.send("\r\n\r\n");
        assert_eq!(busy.response().text(), "hello");
    }

    fn a_connection_without_an_idle_timeout_gives_way_too<B>() {
        let limits = LoopLimits::default().connections_max(1);
        let timeouts = Timeouts::default().idle(None).silent(None);
        let server = serve_with::<B, _>(timeouts, limits, || HttpServer::new(|_: &Request<'_>| Response::text("hello")));
        for _ in 0..5 {
            request(&mut server.connect());
            let mut silent = server.connect();
            request(&mut server.connect());
            silent.expect_close();
        }
    }

    fn many_new_clients_are_served_although_all_connections_are_idle<B>() {
        let server = serve::<B>(40);
        let mut clients: Vec<Client> = (0..40).map(|_| server.connect()).collect();
        clients.iter_mut().for_each(request);
        let mut new: Vec<Client> = (0..40).map(|_| server.connect()).collect();
        for client in &mut new {
            client.send(GET);
        }
        for client in &mut new {
            assert_eq!(client.response().text(), "hello");
        }
        for client in &mut clients {
            client.expect_close();
        }
    }

    fn connections_with_a_request_in_flight_stay<B>() {
        let (send, responders) = mpsc::channel();
        let limits = LoopLimits::default().connections_max(4);
        let app = move || HttpServer::new(handler(send));
        let server = serve_with::<B, _>(Timeouts::default(), limits, app);
        let mut head = server.connect();
        head.send(GET.trim_end());
        let mut upload = server.connect();
        upload.begin_upload(5);
        let mut deferred = server.connect();
        deferred.send("GET /later HTTP/1.1\r\nHost: x\r\n\r\n");
        let responder = responders.recv_timeout(WAIT_MAX).expect("a request");
        let mut download = server.connect();
        download.send("GET /large HTTP/1.1\r\nHost: x\r\n\r\n");
        download.read(1);
        let mut new = server.connect();
        new.send(GET);
        assert_eq!(new.line_within(Duration::from_millis(150)), None, "accepted beyond the limit");
        // Once it is idle, the connection of the upload gives way.
        upload.send("12345");
        assert_eq!(upload.response().text(), "hello");
        assert_eq!(new.response().text(), "hello");
        upload.expect_close();
        responder.respond(Response::text("late"));
        assert_eq!(deferred.response().text(), "late");
        head.send("\r\n\r\n");
        assert_eq!(head.response().text(), "hello");
        download.read(LARGE_BYTES);
    }

    // Pipelined requests beyond those of one turn are in flight, although the connection is between two messages.
    fn a_connection_with_pipelined_requests_stays<B>() {
        let server = serve::<B>(1);
        let mut pipelining = server.connect();
        pipelining.send(GET.repeat(500));
        let mut new = server.connect();
        new.send(GET);
        for _ in 0..500 {
            assert_eq!(pipelining.response().text(), "hello");
        }
        assert_eq!(new.response().text(), "hello");
        pipelining.expect_close();
    }
}

const LARGE_BYTES: usize = 16 << 20;

fn handler(deferred: Sender<Responder>) -> impl FnMut(&Request<'_>) -> Response {
    move |request| match request.path() {
        "/later" => {
            let (response, responder) = Response::later();
            deferred.send(responder).expect("the test is waiting");
            response
        }
        "/large" => Response::text(vec![b'x'; LARGE_BYTES]),
        _ => Response::text("hello"),
    }
}

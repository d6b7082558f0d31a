//! The limit on the memory of all connections' buffers: incomplete input, and output that clients do not read.

use std::io::{Read, Write};
use std::net::TcpListener;

use serverd::{HttpServer, LoopLimits, Request, Response, Timeouts};

use crate::harness::{Backend, Client, Server, on_every_backend, retry, serve_on, serve_with};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const LIMIT: usize = 1 << 20;

/// Starts a server whose sockets have small send buffers.
fn serve<B: Backend>() -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket2::SockRef::from(&listener).set_send_buffer_size(8 * 1024).expect("the socket is open");
    let limits = LoopLimits::default().buffered_bytes_max(LIMIT);
    let app = || HttpServer::new(|_: &Request<'_>| Response::text(vec![b'x'; 16_000]));
    serve_on::<B, _>(listener, Timeouts::default(), limits, app)
}

fn request(server: &Server) {
    let mut client = server.connect();
    client.send(GET);
    assert_eq!(client.response().status, 200);
}

/// Returns the number of clients whose connections are closed, once that is at least `count`.
fn await_closed(clients: &[Client], count: usize) -> usize {
    retry(|| {
        let closed = clients.iter().filter(|client| is_closed(client)).count();
        if closed >= count { Ok(closed) } else { Err(format!("{closed} of {count} are closed")) }
    })
}

fn is_closed(client: &Client) -> bool {
    client.socket.set_nonblocking(true).expect("the socket is open");
    let closed = match (&client.socket).write(b"x") {
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        Ok(_) => matches!(client.socket.peek(&mut [0]), Ok(0)),
    };
    client.socket.set_nonblocking(false).expect("the socket is open");
    closed
}

on_every_backend! {
    fn the_last_response_is_sent_without_memory_for_the_input_behind_its_request<B>() {
        let limits = LoopLimits::default().buffered_bytes_max(1000);
        let app = || HttpServer::new(|_: &Request<'_>| "last");
        let server = serve_with::<B, _>(Timeouts::default(), limits, app);
        let mut client = server.connect();
        let request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        client.send([request.to_vec(), vec![b'x'; 30_000]].concat());
        assert_eq!(client.response().text(), "last");
        client.expect_close();
    }

    fn incomplete_heads_of_all_connections_have_a_limit<B>() {
        let server = serve::<B>();
        let head = format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}", "x".repeat(40_000));
        let mut clients: Vec<Client> = (0..60).map(|_| server.connect()).collect();
        for client in &mut clients {
            // Fails if the server has closed the connection.
            let _ = client.socket.write_all(head.as_bytes());
        }
        // 60 heads take more than twice the limit.
        let closed = await_closed(&clients, 60 - LIMIT / 40_000);
        assert!(closed < 60, "all are closed");
        request(&server);
        drop(clients);
        let mut client = server.connect();
        client.send(&head).send("\r\n\r\n");
        assert_eq!(client.response().status, 200, "the memory is available again");
    }

    fn output_that_is_not_read_has_a_limit<B>() {
        let server = serve::<B>();
        let mut clients: Vec<Client> = (0..60).map(|_| server.connect()).collect();
        for client in &mut clients {
            socket2::SockRef::from(&client.socket).set_recv_buffer_size(4096).expect("the socket is open");
            client.send(GET.repeat(40));
        }
        // Each has about 64 KiB of responses waiting.
        let closed = await_closed(&clients, 20);
        assert!(closed < 60, "all are closed");
        request(&server);
        drop(clients);
        let mut client = server.connect();
        client.send(GET.repeat(40));
        for _ in 0..40 {
            assert_eq!(client.response().status, 200, "the memory is available again");
        }
        client.finish();
        let mut rest = Vec::new();
        client.socket.read_to_end(&mut rest).expect("the end of the stream");
    }
}

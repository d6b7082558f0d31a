//! Shutting down loses nothing that was accepted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serverd::r#loop::Limits;
use serverd::{HttpServer, Request, Response, Timeouts};

use crate::harness::{Client, on_every_backend, serve, serve_with};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

fn hello() -> HttpServer<impl FnMut(&Request<'_>) -> Response> {
    HttpServer::new(|_: &Request<'_>| Response::text("hello"))
}

on_every_backend! {
    fn what_is_under_way_is_finished_and_the_last_answer_says_close<B>() {
        let server = serve::<B, _>(hello);
        let mut upload = server.connect();
        upload.send("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(upload.answer().status, 100);
        let mut idle = server.connect();
        idle.send(GET);
        assert_eq!(idle.answer().field("connection"), None);
        server.handle.drain();
        // A keep-alive connection gets one more request answered.
        idle.send(GET);
        let answer = idle.answer();
        assert_eq!(answer.text(), "hello");
        if answer.field("connection") == Some("close") {
            idle.expect_close();
        }
        upload.send("hello");
        let answer = upload.answer();
        assert_eq!((answer.status, answer.field("connection")), (200, Some("close")));
        upload.expect_close();
        server.drain();
    }

    fn idle_and_silent_connections_are_closed_after_a_moment<B>() {
        let server = serve::<B, _>(hello);
        let mut silent = server.connect();
        let mut idle = server.connect();
        idle.send(GET);
        idle.answer();
        let start = Instant::now();
        server.drain();
        silent.expect_close();
        idle.expect_close();
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }

    fn who_waits_in_the_listen_queue_is_served<B>() {
        let server = serve::<B, _>(hello);
        let mut clients: Vec<Client> = (0..100).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.send(GET);
        }
        server.drain();
        for client in &mut clients {
            assert_eq!(client.answer().text(), "hello");
            client.expect_close();
        }
    }

    fn a_large_answer_on_its_way_arrives_whole<B>() {
        let large = vec![b'x'; 8 << 20];
        let app = move || HttpServer::new(move |_: &Request<'_>| Response::text(large.clone()));
        let server = serve::<B, _>(app);
        let mut client = server.connect();
        client.send(GET);
        client.read(1);
        server.handle.drain();
        assert!(client.rest().len() > 8 << 20);
        server.drain();
    }

    fn a_stuck_client_delays_the_end_no_longer_than_the_limit<B>() {
        let limits = Limits { drain: Duration::from_millis(300), ..Limits::default() };
        let server = serve_with::<B, _>(Timeouts::default(), limits, hello);
        let mut stuck = server.connect();
        stuck.send("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(stuck.answer().status, 100);
        let start = Instant::now();
        server.drain();
        assert!(start.elapsed() >= Duration::from_millis(300));
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }

    fn busy_clients_lose_no_answer<B>() {
        let server = serve::<B, _>(hello);
        let (answered, lost) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let go = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..16)
            .map(|_| {
                let mut client = server.connect();
                let (answered, lost, go) = (Arc::clone(&answered), Arc::clone(&lost), Arc::clone(&go));
                std::thread::spawn(move || loop {
                    client.send(GET);
                    let answer = client.answer();
                    if answer.text() != "hello" {
                        lost.fetch_add(1, Ordering::SeqCst);
                    }
                    answered.fetch_add(1, Ordering::SeqCst);
                    go.store(true, Ordering::SeqCst);
                    if answer.field("connection") == Some("close") {
                        return;
                    }
                })
            })
            .collect();
        while !go.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        server.drain();
        for thread in threads {
            thread.join().expect("every request was answered, and the last answer said close");
        }
        assert!(answered.load(Ordering::SeqCst) >= 16);
        assert_eq!(lost.load(Ordering::SeqCst), 0);
    }
}

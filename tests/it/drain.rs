//! Graceful shutdown: no accepted request is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serverd::{HttpServer, LoopLimits, Request, Response, Timeouts};

use crate::harness::{Client, on_every_backend, serve, serve_with, wait_for};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

fn hello() -> HttpServer<impl serverd::Handler> {
    HttpServer::new(|_: &Request<'_>| Response::text("hello"))
}

on_every_backend! {
    over_tls_too:

    fn in_flight_requests_are_finished_and_the_last_response_says_close<B>() {
        let server = serve::<B, _>(hello);
        let mut upload = server.connect();
        upload.begin_upload(5);
        let mut idle = server.connect();
        idle.send(GET);
        assert_eq!(idle.response().header("connection"), None);
        server.handle.drain();
        // A keep-alive connection is still served one more request once the loop has noticed the shutdown.
        loop {
            idle.send(GET);
            let response = idle.response();
            assert_eq!(response.text(), "hello");
            if response.header("connection") == Some("close") {
                break;
            }
        }
        idle.expect_close();
        upload.send("hello");
        let response = upload.response();
        assert_eq!((response.status, response.header("connection")), (200, Some("close")));
        upload.expect_close();
        server.drain();
    }

    #[plain_tcp]
    fn idle_and_silent_connections_are_closed_after_a_grace_period<B>() {
        let server = serve::<B, _>(hello);
        let mut silent = server.connect();
        let mut idle = server.connect();
        idle.send(GET);
        idle.response();
        let start = Instant::now();
        server.drain();
        silent.expect_close();
        idle.expect_close();
        // The timeout of a silent connection is 10 s.
        assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
    }

    fn connections_in_the_listen_queue_are_served<B>() {
        let server = serve::<B, _>(hello);
        let mut clients: Vec<Client> = (0..100).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.send(GET);
        }
        server.handle.drain();
        for client in &mut clients {
            assert_eq!(client.response().text(), "hello");
            client.expect_close();
        }
        server.drain();
    }

    fn a_large_response_in_progress_is_sent_completely<B>() {
        let large = vec![b'x'; 8 << 20];
        let app = move || HttpServer::new(move |_: &Request<'_>| Response::text(large.clone()));
        let server = serve::<B, _>(app);
        let mut client = server.connect();
        client.send(GET);
        client.read(1);
        server.handle.drain();
        assert!(client.read_to_end().len() > 8 << 20);
        server.drain();
    }

    fn a_stuck_client_delays_shutdown_no_longer_than_the_limit<B>() {
        let limits = LoopLimits::default().drain(Duration::from_millis(300));
        let server = serve_with::<B, _>(Timeouts::default(), limits, hello);
        let mut stuck = server.connect();
        stuck.begin_upload(5);
        let start = Instant::now();
        server.drain();
        assert!(start.elapsed() >= Duration::from_millis(300));
        // The default limit is 30 s.
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }

    fn a_loop_without_connections_ends_within_5_ms<B>() {
        // The shortest of many, because another process may take the processor for longer.
        let mut times = (0..2000).map(|_| {
            let server = serve::<B, _>(hello);
            let start = Instant::now();
            server.drain();
            start.elapsed()
        });
        assert!(times.any(|time| time < Duration::from_millis(5)));
    }

    #[plain_tcp]
    fn drain_within_closes_idle_and_silent_connections_at_once<B>() {
        let server = serve::<B, _>(hello);
        let mut clients: Vec<Client> = (0..5).map(|_| server.connect()).collect();
        for client in &mut clients[1..] {
            client.send(GET);
            client.response();
        }
        // A request that has arrived is served.
        clients[1].send(GET);
        let start = Instant::now();
        server.handle.drain_within(Duration::from_secs(10));
        assert_eq!(clients[1].response().text(), "hello");
        for client in &mut clients {
            client.expect_close();
        }
        assert!(start.elapsed() < Duration::from_millis(900), "{:?}", start.elapsed());
        server.drain();
    }

    fn drain_within_shortens_a_graceful_shutdown_in_progress<B>() {
        let server = serve::<B, _>(hello);
        let mut stuck = server.connect();
        stuck.begin_upload(5);
        let mut idle = server.connect();
        idle.send(GET);
        idle.response();
        let start = Instant::now();
        server.handle.drain();
        server.handle.drain_within(Duration::from_millis(500));
        server.handle.drain_within(Duration::from_secs(3600));
        idle.expect_close();
        assert!(start.elapsed() < Duration::from_millis(900), "{:?}", start.elapsed());
        server.drain();
        assert!(start.elapsed() >= Duration::from_millis(500), "{:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }

    fn busy_clients_lose_no_response<B>() {
        let server = serve::<B, _>(hello);
        let (responses, lost) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let started = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..16)
            .map(|_| {
                let mut client = server.connect();
                let (responses, lost, started) = (Arc::clone(&responses), Arc::clone(&lost), Arc::clone(&started));
                std::thread::spawn(move || loop {
                    client.send(GET);
                    let response = client.response();
                    if response.text() != "hello" {
                        lost.fetch_add(1, Ordering::SeqCst);
                    }
                    responses.fetch_add(1, Ordering::SeqCst);
                    started.store(true, Ordering::SeqCst);
                    if response.header("connection") == Some("close") {
                        return;
                    }
                })
            })
            .collect();
        wait_for("there is no response", || started.load(Ordering::SeqCst));
        server.drain();
        for thread in threads {
            thread.join().expect("every request got a response, and the last one said close");
        }
        assert!(responses.load(Ordering::SeqCst) >= 16);
        assert_eq!(lost.load(Ordering::SeqCst), 0);
    }
}

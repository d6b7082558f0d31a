//! Closures on a loop: in its next turn, later, again and again, from any thread; and what a pause lets through.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use serverd::{App, ConnId, Ending, Flow, Handle, HttpServer, Phase, Remote, Request, Response, Wire};

use crate::harness::{PATIENCE, RESET_IS_AN_END, on_every_backend, serve, skipped_under_wine};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

fn hello() -> HttpServer<impl FnMut(&Request<'_>) -> Response> {
    HttpServer::new(|_: &Request<'_>| Response::text("hello"))
}

/// Pauses at the first byte, and tells when connections end.
struct Pauser(mpsc::Sender<String>);

impl App for Pauser {
    type State = ();
    type Letter = ();

    fn start(&mut self, _: Remote<()>) {}

    fn open(&mut self, _: &serverd::Accepted<'_>, _wire: &mut Wire<'_, ()>) -> ((), Flow) {
        ((), Flow::Read(Phase::Open))
    }

    fn receive(&mut self, _state: &mut (), wire: &mut Wire<'_, ()>) -> Flow {
        wire.output().extend(b"paused\n");
        Flow::Pause
    }

    fn letter(&mut self, _state: &mut (), _letter: (), _wire: &mut Wire<'_, ()>) -> Flow {
        Flow::Pause
    }

    fn drained(&mut self, _state: &mut (), _wire: &mut Wire<'_, ()>) -> Flow {
        Flow::Pause
    }

    fn timer(&mut self, _state: &mut (), _phase: Phase, _wire: &mut Wire<'_, ()>) -> Flow {
        Flow::Close
    }

    fn drain(&mut self, _state: &mut (), _wire: &mut Wire<'_, ()>) -> Flow {
        Flow::Close
    }

    fn closed(&mut self, _: ConnId, _state: (), ending: Ending) {
        self.0.send(format!("{:?}", ending.reason)).expect("the test waits");
    }

    fn end_of_turn(&mut self, _: &mut Vec<(ConnId, ())>) {}
}

on_every_backend! {
    fn deferred_closures_run_in_order_on_the_thread_of_the_loop<B>() {
        let server = serve::<B, _>(hello);
        let (send, seen) = mpsc::channel();
        for number in 0..100 {
            let send = send.clone();
            server.handle.defer(move || {
                let name = std::thread::current().id();
                send.send((number, name)).expect("the test waits");
            });
        }
        let seen: Vec<_> = (0..100).map(|_| seen.recv_timeout(PATIENCE).expect("called")).collect();
        assert!(seen.iter().enumerate().all(|(at, (number, _))| at == *number));
        assert!(seen.iter().all(|(_, name)| *name == seen[0].1 && *name != std::thread::current().id()));
    }

    fn a_closure_for_later_is_never_called_early<B>() {
        let server = serve::<B, _>(hello);
        let (send, seen) = mpsc::channel();
        let start = Instant::now();
        for delay in [30, 10, 20] {
            let send = send.clone();
            server.handle.call_later(Duration::from_millis(delay), move || {
                send.send((delay, start.elapsed())).expect("the test waits");
            });
        }
        for expected in [10, 20, 30] {
            let (delay, after) = seen.recv_timeout(PATIENCE).expect("called");
            assert_eq!(delay, expected);
            assert!(after >= Duration::from_millis(delay), "{after:?}");
        }
    }

    fn closures_repeat_until_they_are_cancelled_and_may_use_the_handle<B>() {
        let server = serve::<B, _>(hello);
        let (send, seen) = mpsc::channel();
        let handle = server.handle.clone();
        let inner = send.clone();
        let timer = server.handle.call_every(Duration::from_millis(1), move || {
            let inner = inner.clone();
            // The test may have seen enough.
            handle.defer(move || {
                let _ = inner.send(());
            });
        });
        for _ in 0..5 {
            seen.recv_timeout(PATIENCE).expect("called again");
        }
        timer.cancel();
        drop(send);
        // The channel ends when the closure is dropped, a period after it was cancelled.
        let end = Instant::now() + PATIENCE;
        while seen.recv_timeout(PATIENCE).is_ok() {
            assert!(Instant::now() < end, "it goes on");
        }
    }

    fn a_closure_that_panics_costs_nobody_a_connection<B>() {
        let server = serve::<B, _>(hello);
        let mut client = server.connect();
        server.handle.defer(|| panic!("as asked"));
        client.send(GET);
        assert_eq!(client.answer().text(), "hello");
    }

    fn many_timers_do_not_disturb_requests<B>() {
        let server = serve::<B, _>(hello);
        let (send, seen) = mpsc::channel();
        let add = |handle: &Handle, number: u64| {
            let send = send.clone();
            handle.call_later(Duration::from_millis(number % 50), move || send.send(number).expect("the test waits"));
        };
        let mut client = server.connect();
        for number in 0..5000 {
            add(&server.handle, number);
            if number % 100 == 0 {
                client.send(GET);
                assert_eq!(client.answer().text(), "hello");
            }
        }
        let mut numbers: Vec<u64> = (0..5000).map(|_| seen.recv_timeout(PATIENCE).expect("called")).collect();
        numbers.sort_unstable();
        assert!(numbers.iter().enumerate().all(|(at, number)| at as u64 == *number));
    }

    fn stop_from_a_closure_ends_the_loop<B>() {
        let server = serve::<B, _>(hello);
        let mut client = server.connect();
        client.send(GET);
        client.answer();
        let handle = server.handle.clone();
        server.handle.call_later(Duration::from_millis(1), move || handle.stop());
        client.expect_close();
    }

    fn a_reset_is_noticed_during_a_pause<B>() {
        if skipped_under_wine(RESET_IS_AN_END) {
            return;
        }
        let (send, closed) = mpsc::channel();
        let server = serve::<B, _>(move || Pauser(send));
        let mut client = server.connect();
        client.send("x");
        assert_eq!(client.read(7), b"paused\n");
        client.reset();
        assert!(closed.recv_timeout(PATIENCE).expect("noticed").starts_with("Error"));
    }

    fn a_pause_outlasts_the_end_of_input_and_takes_in_little<B>() {
        let (send, closed) = mpsc::channel();
        let server = serve::<B, _>(move || Pauser(send));
        let mut client = server.connect();
        client.send("x");
        assert_eq!(client.read(7), b"paused\n");
        // Far more than is read ahead and than sockets hold: somebody has to wait.
        client.socket.set_nonblocking(true).expect("alive");
        let (piece, mut taken, mut refused) = (vec![b'x'; 100_000], 0, 0);
        while taken < 64 << 20 && refused < 1000 {
            if let Ok(count) = std::io::Write::write(&mut client.socket, &piece) {
                taken += count;
            } else {
                refused += 1;
                std::thread::yield_now();
            }
        }
        assert!(taken < 64 << 20, "everything was read during a pause");
        client.socket.set_nonblocking(false).expect("alive");
        client.finish();
        let (send_turn, turned) = mpsc::channel();
        for _ in 0..50 {
            let send_turn = send_turn.clone();
            server.handle.defer(move || send_turn.send(()).expect("the test waits"));
            turned.recv_timeout(PATIENCE).expect("turned");
        }
        assert!(closed.try_recv().is_err());
    }
}

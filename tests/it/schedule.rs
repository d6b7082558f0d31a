//! Scheduled closures: deferred, delayed and periodic, from any thread. Also pausing a connection.

use std::net::TcpListener;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use serverd::{
    App, CloseInfo, ConnId, EventLoop, Flow, Handle, HttpServer, LoopLimits, Phase, Request, Response, Timeouts, Turn,
    Wire,
};

use crate::harness::{RESET_READS_AS_EOF, WAIT_MAX, on_every_backend, serve, skipped_under_wine, wait_for};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

fn hello() -> HttpServer<impl serverd::Handler> {
    HttpServer::new(|_: &Request<'_>| Response::text("hello"))
}

/// Pauses at the first byte, and reports when connections close.
struct Pauser(mpsc::Sender<String>);

impl App for Pauser {
    type State = ();
    type Message = ();

    fn open(&mut self, _: &serverd::Accepted<'_>, _wire: &mut Wire<'_, ()>) -> ((), Flow) {
        ((), Flow::Read(Phase::Unlimited))
    }

    fn receive(&mut self, _state: &mut (), wire: &mut Wire<'_, ()>) -> Flow {
        wire.output().extend(b"paused\n");
        Flow::Pause
    }

    fn closed(&mut self, _: ConnId, _state: (), info: CloseInfo) {
        self.0.send(format!("{:?}", info.reason)).expect("open channel");
    }
}

/// Closes all connections; its messages are counted.
struct Closer;

impl App for Closer {
    type State = ();
    type Message = Arc<()>;

    fn open(&mut self, _: &serverd::Accepted<'_>, _: &mut Wire<'_, Arc<()>>) -> ((), Flow) {
        ((), Flow::Close)
    }

    fn receive(&mut self, (): &mut (), _: &mut Wire<'_, Arc<()>>) -> Flow {
        Flow::Close
    }
}

on_every_backend! {
    fn a_loop_that_has_ended_runs_no_more_and_keeps_nothing<B>() {
        let listener = || TcpListener::bind("127.0.0.1:0").expect("a free port");
        for stop in [Handle::stop, |handle: &Handle| handle.drain_within(Duration::ZERO)] {
            let (timeouts, limits) = (Timeouts::default(), LoopLimits::default());
            let mut event_loop = EventLoop::<B, _>::with_limits(timeouts, limits, Closer).expect("a loop");
            let first = listener();
            let address = first.local_addr().expect("an address");
            B::listen(&mut event_loop, first).expect("listens");
            let (handle, remote) = (event_loop.handle(), event_loop.remote());
            let alive = Arc::new(());
            let send_all = || {
                let [once, every, context, named, message, late] = [(); 6].map(|()| Arc::clone(&alive));
                let own = handle.clone();
                handle.call_later(WAIT_MAX, move || drop((once, own)));
                let own = handle.clone();
                handle.call_every(WAIT_MAX, move || { let _ = (&every, &own); });
                handle.connect(address, WAIT_MAX, context);
                handle.connect(("localhost", 1), WAIT_MAX, named);
                remote.send(ConnId::detached(0), message);
                remote.send_later(WAIT_MAX, ConnId::detached(0), late);
            };
            send_all();
            assert!(Arc::strong_count(&alive) > 1, "nothing is lost before the end");
            stop(&handle);
            event_loop.run().expect("the loop ends");
            // A thread that resolves a name may hold its context for a moment.
            wait_for("everything is dropped at the end", || Arc::strong_count(&alive) == 1);
            send_all();
            assert_eq!(Arc::strong_count(&alive), 1, "everything sent after the end is dropped at once");
            let (send, called) = mpsc::channel::<()>();
            handle.defer(move || send.send(()).expect("the test waits"));
            assert_eq!(called.recv_timeout(WAIT_MAX), Err(RecvTimeoutError::Disconnected));
            assert_eq!(event_loop.turn().expect("no error"), Turn::Over);
            event_loop.run().expect("returns at once");
            assert!(B::listen(&mut event_loop, listener()).is_err(), "no client would be served");
        }
    }

    fn deferred_closures_run_in_order_on_the_loop_thread<B>() {
        let server = serve::<B, _>(hello);
        let (send, seen) = mpsc::channel();
        for number in 0..100 {
            let send = send.clone();
            server.handle.defer(move || {
                let thread = std::thread::current().id();
                send.send((number, thread)).expect("open channel");
            });
        }
        let seen: Vec<_> = (0..100).map(|_| seen.recv_timeout(WAIT_MAX).expect("called")).collect();
        assert!(seen.iter().enumerate().all(|(at, (number, _))| at == *number));
        assert!(seen.iter().all(|(_, thread)| *thread == seen[0].1 && *thread != std::thread::current().id()));
    }

    fn a_delayed_closure_is_never_called_early<B>() {
        let server = serve::<B, _>(hello);
        let (send, seen) = mpsc::channel();
        let start = Instant::now();
        for delay in [30, 10, 20] {
            let send = send.clone();
            server.handle.call_later(Duration::from_millis(delay), move || {
                send.send((delay, start.elapsed())).expect("open channel");
            });
        }
        // In any order, as this thread may be interrupted between the calls.
        let mut delays = [(); 3].map(|()| {
            let (delay, after) = seen.recv_timeout(WAIT_MAX).expect("called");
            assert!(after >= Duration::from_millis(delay), "{after:?}");
            delay
        });
        delays.sort_unstable();
        assert_eq!(delays, [10, 20, 30]);
    }

    fn periodic_closures_repeat_until_cancelled_and_can_use_the_handle<B>() {
        let server = serve::<B, _>(hello);
        let (send, seen) = mpsc::channel();
        let handle = server.handle.clone();
        let inner = send.clone();
        let timer = server.handle.call_every(Duration::from_millis(1), move || {
            let inner = inner.clone();
            // The test may have dropped the receiver.
            handle.defer(move || {
                let _ = inner.send(());
            });
        });
        for _ in 0..5 {
            seen.recv_timeout(WAIT_MAX).expect("called again");
        }
        timer.cancel();
        drop(send);
        // The channel ends when the closure is dropped, a period after it was cancelled.
        let end = Instant::now() + WAIT_MAX;
        while seen.recv_timeout(WAIT_MAX).is_ok() {
            assert!(Instant::now() < end, "the closure is still called");
        }
    }

    fn a_panicking_closure_closes_no_connection<B>() {
        let server = serve::<B, _>(hello);
        let mut client = server.connect();
        server.handle.defer(|| panic!("intended"));
        client.send(GET);
        assert_eq!(client.response().text(), "hello");
    }

    fn many_timers_do_not_delay_requests<B>() {
        let server = serve::<B, _>(hello);
        let (send, seen) = mpsc::channel();
        let add = |handle: &Handle, number: u64| {
            let send = send.clone();
            handle.call_later(Duration::from_millis(number % 50), move || send.send(number).expect("open channel"));
        };
        let mut client = server.connect();
        for number in 0..5000 {
            add(&server.handle, number);
            if number % 100 == 0 {
                client.send(GET);
                assert_eq!(client.response().text(), "hello");
            }
        }
        let mut numbers: Vec<u64> = (0..5000).map(|_| seen.recv_timeout(WAIT_MAX).expect("called")).collect();
        numbers.sort_unstable();
        assert!(numbers.iter().enumerate().all(|(at, number)| at as u64 == *number));
    }

    fn stop_from_a_closure_ends_the_loop<B>() {
        let server = serve::<B, _>(hello);
        let mut client = server.connect();
        client.send(GET);
        client.response();
        let handle = server.handle.clone();
        server.handle.call_later(Duration::from_millis(1), move || handle.stop());
        client.expect_close();
    }

    fn a_reset_is_detected_during_a_pause<B>() {
        if skipped_under_wine(RESET_READS_AS_EOF) {
            return;
        }
        let (send, closed) = mpsc::channel();
        let server = serve::<B, _>(move || Pauser(send));
        let mut client = server.connect();
        client.send("x");
        assert_eq!(client.read(7), b"paused\n");
        client.reset();
        assert!(closed.recv_timeout(WAIT_MAX).expect("closed").starts_with("Error"));
    }

    fn a_paused_connection_survives_the_end_of_input_and_buffers_little<B>() {
        let (send, closed) = mpsc::channel();
        let server = serve::<B, _>(move || Pauser(send));
        let mut client = server.connect();
        client.send("x");
        assert_eq!(client.read(7), b"paused\n");
        // Far more than the loop and the socket buffers hold, so that writing has to block.
        client.socket.set_nonblocking(true).expect("open socket");
        let (piece, mut written, mut blocked) = (vec![b'x'; 100_000], 0, 0);
        while written < 64 << 20 && blocked < 1000 {
            if let Ok(count) = std::io::Write::write(&mut client.socket, &piece) {
                written += count;
            } else {
                blocked += 1;
                // Without a pause, as this waits for no condition: the loop gets the time to read more, if it does.
                std::thread::yield_now();
            }
        }
        assert!(written < 64 << 20, "all input was read during a pause");
        client.socket.set_nonblocking(false).expect("open socket");
        client.finish();
        let (send_called, called) = mpsc::channel();
        for _ in 0..50 {
            let send_called = send_called.clone();
            server.handle.defer(move || send_called.send(()).expect("open channel"));
            called.recv_timeout(WAIT_MAX).expect("called");
        }
        assert!(closed.try_recv().is_err());
    }
}

//! The process and its environment: signals, file descriptors, ports.
#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{Client, WAIT_MAX, program};
use crate::process::{Running, backends, run, serverd};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// Starts the server from a shell script, after the commands in `preparation`.
fn start_after(preparation: &str, arguments: &str) -> Running {
    let server = program(env!("CARGO_BIN_EXE_serverd"));
    let words: Vec<&str> =
        [server.get_program()].into_iter().chain(server.get_args()).filter_map(|word| word.to_str()).collect();
    let script = format!("{preparation}; exec {} {arguments}", words.join(" "));
    let mut command = Command::new("sh");
    command.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Running::spawn(&mut command)
}

/// Sends a request and checks the response.
fn request(client: &mut Client) {
    client.send(GET);
    assert_eq!(client.response().status, 200);
}

/// Returns the CPU time that the server has used, in clock ticks (1/100 s).
fn cpu_ticks(server: &Running) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.child.id())).expect("the process is running");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("a name in parentheses").1.split(' ').collect();
    fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum()
}

fn wait_until_stopped(server: &Running) {
    let start = Instant::now();
    let status =
        || std::fs::read_to_string(format!("/proc/{}/stat", server.child.id())).expect("the process is running");
    while !status().contains(") T ") {
        assert!(start.elapsed() < WAIT_MAX, "the server is not stopped");
        std::thread::yield_now();
    }
}

#[test]
fn a_hangup_signal_does_not_stop_the_server() {
    for backend in backends() {
        let server = Running::start(&["--port", "0", "--backend", backend]);
        let mut client = server.connect();
        request(&mut client);
        for _ in 0..3 {
            server.signal("HUP");
        }
        request(&mut client);
        server.signal("TERM");
        assert_eq!(server.wait().0, Some(0));
    }
}

#[test]
fn a_second_signal_of_another_kind_exits_too_and_determines_the_exit_code() {
    let server = Running::start(&["--port", "0"]);
    let mut stuck = server.connect();
    stuck.send("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    assert_eq!(stuck.response().status, 100);
    let mut idle = server.connect();
    server.signal("TERM");
    idle.expect_close();
    server.signal("HUP");
    server.signal("INT");
    assert_eq!(server.wait().0, Some(128 + 2));
}

#[test]
fn connections_survive_a_stopped_and_continued_process() {
    for backend in backends() {
        let server = Running::start(&["--port", "0", "--backend", backend, "--workers", "2"]);
        let mut client = server.connect();
        request(&mut client);
        server.signal("STOP");
        wait_until_stopped(&server);
        client.send(GET);
        let mut new_client = server.connect();
        new_client.send(GET);
        client.socket.set_read_timeout(Some(Duration::from_millis(50))).expect("the socket is open");
        assert!(client.socket.peek(&mut [0]).is_err(), "a stopped server responds");
        client.socket.set_read_timeout(Some(WAIT_MAX)).expect("the socket is open");
        server.signal("CONT");
        assert_eq!(client.response().status, 200);
        assert_eq!(new_client.response().status, 200);
        server.signal("TERM");
        assert_eq!(server.wait().0, Some(0));
    }
}

#[test]
fn writing_to_a_reset_connection_does_not_kill_the_server() {
    let server = start_after("trap '' HUP", "--port 0 --max-body 16MiB");
    for _ in 0..20 {
        let mut client = server.connect();
        let _ = client.socket.write_all(GET.repeat(2000).as_bytes());
        client.reset();
    }
    request(&mut server.connect());
    server.signal("TERM");
    assert_eq!(server.wait().0, Some(0));
}

#[test]
fn closed_standard_descriptors_are_not_reused_for_sockets() {
    for closed in ["<&-", "2>&-", "<&- 2>&-"] {
        let server = start_after(&format!("exec {closed}"), "--port 0 -v");
        let mut client = server.connect();
        request(&mut client);
        for descriptor in 0..3 {
            let link = std::fs::read_link(format!("/proc/{}/fd/{descriptor}", server.child.id()));
            let target = link.expect("open").to_string_lossy().into_owned();
            assert!(!target.starts_with("socket:") && !target.contains("anon_inode"), "{descriptor} is {target}");
        }
        drop(client);
        server.signal("TERM");
        assert_eq!(server.wait().0, Some(0), "{closed}");
    }
}

#[test]
fn a_second_server_on_the_same_port_fails_to_start() {
    for (first, second) in [("1", "1"), ("2", "1"), ("1", "2"), ("2", "2")] {
        let server = Running::start(&["--port", "0", "--workers", first]);
        let port = server.address().rsplit_once(':').expect("a port").1.to_owned();
        let (code, text) = run(&["--port", &port, "--workers", second]);
        assert_eq!(code, Some(1), "{first} and {second} workers");
        assert_eq!(
            text,
            format!(
                "serverd: cannot listen on 127.0.0.1:{port}: the port is in use; stop the process using it or \
                 choose another with --port\n"
            )
        );
        request(&mut server.connect());
    }
}

#[test]
fn the_soft_file_descriptor_limit_is_raised_to_the_hard_limit() {
    let server = start_after("ulimit -S -n 40", "--port 0");
    let mut clients: Vec<Client> = (0..100).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(request);
    clients.iter_mut().for_each(request);
}

#[test]
fn the_default_connection_limit_fits_the_file_descriptor_limit() {
    for workers in ["1", "2"] {
        let server = start_after("ulimit -n 60", &format!("--port 0 --workers {workers}"));
        let mut clients: Vec<Client> = (0..30).map(|_| server.connect()).collect();
        clients.iter_mut().for_each(request);
        let mut waiting: Vec<Client> = (0..30).map(|_| server.connect()).collect();
        for client in &mut waiting {
            client.send(GET);
        }
        let last = &mut waiting[29];
        last.socket.set_read_timeout(Some(Duration::from_millis(100))).expect("the socket is open");
        assert!(last.socket.peek(&mut [0]).is_err(), "60 connections with 60 descriptors");
        // The waiting clients are served as others disconnect.
        drop(clients);
        for mut client in waiting {
            client.socket.set_read_timeout(Some(WAIT_MAX)).expect("the socket is open");
            assert_eq!(client.response().status, 200);
        }
    }
}

#[test]
fn the_connection_limit_applies_to_all_workers_together() {
    for backend in backends() {
        let server = Running::start(&["--port", "0", "--backend", backend, "--workers", "3", "--max-connections", "4"]);
        let mut accepted: Vec<Client> = (0..4).map(|_| server.connect()).collect();
        accepted.iter_mut().for_each(request);
        let mut waiting: Vec<Client> = (0..8).map(|_| server.connect()).collect();
        for client in &mut waiting {
            client.send(GET);
        }
        for client in &mut waiting {
            client.socket.set_read_timeout(Some(Duration::from_millis(30))).expect("the socket is open");
            assert!(client.socket.peek(&mut [0]).is_err(), "accepted beyond the limit");
            client.socket.set_read_timeout(Some(WAIT_MAX)).expect("the socket is open");
        }
        accepted.iter_mut().for_each(request);
        drop(accepted);
        // The kernel chooses the order; each client disconnects once it has been served.
        let responses: Vec<_> =
            waiting.into_iter().map(|mut client| std::thread::spawn(move || client.response().status)).collect();
        for response in responses {
            assert_eq!(response.join().expect("no panic"), 200);
        }
    }
}

#[test]
fn running_out_of_file_descriptors_pauses_accepting_until_some_are_free() {
    for backend in backends() {
        let mut server = start_after("ulimit -n 40", &format!("--port 0 --backend {backend} --max-connections 1000"));
        let mut held: Vec<Client> = (0..20).map(|_| server.connect()).collect();
        held.iter_mut().for_each(request);
        let mut waiting: Vec<TcpStream> = (0..40).map(|_| server.connect().socket).collect();
        let before = (Instant::now(), cpu_ticks(&server));
        while before.0.elapsed() < Duration::from_secs(2) {
            held.iter_mut().for_each(request);
            std::thread::sleep(Duration::from_millis(100));
        }
        let used = cpu_ticks(&server) - before.1;
        assert!(used <= 20, "{backend} used {used} ticks (1/100 s) of CPU time in 2 s without descriptors");
        held.clear();
        for socket in waiting.drain(..) {
            let mut client = Client::from_socket(socket);
            request(&mut client);
        }
        server.signal("TERM");
        let mut text = String::new();
        server.child.stderr.take().expect("piped").read_to_string(&mut text).expect("text");
        let warnings = text.matches("cannot accept").count();
        let seconds = usize::try_from(before.0.elapsed().as_secs()).expect("small");
        assert!((1..=seconds + 2).contains(&warnings), "{warnings} in {seconds} s: {text}");
        assert!(text.contains("raise the limit"), "{text}");
        assert_eq!(server.wait().0, Some(0));
    }
}

#[test]
fn a_burst_of_clients_waits_in_the_accept_queue_and_is_served() {
    for backend in backends() {
        let server = Running::start(&["--port", "0", "--backend", backend]);
        server.signal("STOP");
        wait_until_stopped(&server);
        let mut clients: Vec<Client> = (0..500).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.send(GET);
        }
        server.signal("CONT");
        for client in &mut clients {
            assert_eq!(client.response().status, 200);
        }
    }
}

#[test]
fn select_serves_more_than_a_thousand_clients_and_suggests_epoll_once() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("the soft limit can be raised");
    if maximum.is_some_and(|maximum| maximum < 3000) {
        return println!("skipped: no more than {maximum:?} descriptors here");
    }
    let mut server = Running::start(&["--port", "0", "--backend", "select"]);
    let mut clients: Vec<Client> = (0..1200).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(request);
    clients.iter_mut().for_each(request);
    drop(clients);
    let mut again: Vec<Client> = (0..1200).map(|_| server.connect()).collect();
    again.iter_mut().for_each(request);
    server.signal("TERM");
    let mut text = String::new();
    server.child.stderr.take().expect("piped").read_to_string(&mut text).expect("text");
    assert_eq!(text.matches("--backend epoll").count(), 1, "{text}");
    assert_eq!(server.wait().0, Some(0));
}

#[test]
fn usage_errors_exit_with_2_and_start_up_errors_with_1() {
    for (arguments, code, hint) in [
        (&["--max-connections", "0"][..], 2, "--help"),
        (&["--drain-timeout", "5"], 2, "missing unit; use 5s"),
        (&["--no-such-option"], 2, "--help"),
        (&["--host", "192.0.2.1", "--port", "0"], 1, "192.0.2.1"),
    ] {
        let output = serverd(arguments).output().expect("the binary runs");
        let text = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(hint), "{text}");
    }
}

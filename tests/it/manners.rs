//! How the process behaves towards the system it runs on: signals, descriptors, ports.
#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{Client, PATIENCE, program};
use crate::process::{Running, backends, run, serverd};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// Starts the server from a shell, after some words of preparation.
fn start_after(preparation: &str, arguments: &str) -> Running {
    let server = program(env!("CARGO_BIN_EXE_serverd"));
    let words: Vec<&str> =
        [server.get_program()].into_iter().chain(server.get_args()).filter_map(|word| word.to_str()).collect();
    let script = format!("{preparation}; exec {} {arguments}", words.join(" "));
    let mut command = Command::new("sh");
    command.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Running::spawn(&mut command)
}

fn ask(client: &mut Client) {
    client.send(GET);
    assert_eq!(client.answer().status, 200);
}

/// Clock ticks (a hundredth of a second) of processor time used so far.
fn ticks(server: &Running) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.child.id())).expect("a live process");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("a name in brackets").1.split(' ').collect();
    fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum()
}

fn wait_until_stopped(server: &Running) {
    let start = Instant::now();
    let status = || std::fs::read_to_string(format!("/proc/{}/stat", server.child.id())).expect("a live process");
    while !status().contains(") T ") {
        assert!(start.elapsed() < PATIENCE, "the server does not stop");
        std::thread::yield_now();
    }
}

#[test]
fn a_hangup_changes_nothing() {
    for backend in backends() {
        let server = Running::start(&["--port", "0", "--backend", backend]);
        let mut client = server.connect();
        ask(&mut client);
        for _ in 0..3 {
            server.signal("HUP");
        }
        ask(&mut client);
        server.signal("TERM");
        assert_eq!(server.wait().0, Some(0));
    }
}

#[test]
fn a_second_signal_of_another_kind_ends_too_and_is_named_by_the_exit_code() {
    let server = Running::start(&["--port", "0"]);
    let mut stuck = server.connect();
    stuck.send("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    assert_eq!(stuck.answer().status, 100);
    let mut idle = server.connect();
    server.signal("TERM");
    idle.expect_close();
    server.signal("HUP");
    server.signal("INT");
    assert_eq!(server.wait().0, Some(128 + 2));
}

#[test]
fn a_stop_and_a_continue_are_survived() {
    for backend in backends() {
        let server = Running::start(&["--port", "0", "--backend", backend, "--workers", "2"]);
        let mut client = server.connect();
        ask(&mut client);
        server.signal("STOP");
        wait_until_stopped(&server);
        client.send(GET);
        let mut newcomer = server.connect();
        newcomer.send(GET);
        client.socket.set_read_timeout(Some(Duration::from_millis(50))).expect("alive");
        assert!(client.socket.peek(&mut [0]).is_err(), "a stopped server answers");
        client.socket.set_read_timeout(Some(PATIENCE)).expect("alive");
        server.signal("CONT");
        assert_eq!(client.answer().status, 200);
        assert_eq!(newcomer.answer().status, 200);
        server.signal("TERM");
        assert_eq!(server.wait().0, Some(0));
    }
}

#[test]
fn a_client_that_goes_away_while_it_is_written_to_raises_no_signal() {
    let server = start_after("trap '' HUP", "--port 0 --max-body 16MiB");
    for _ in 0..20 {
        let mut client = server.connect();
        let _ = client.socket.write_all(GET.repeat(2000).as_bytes());
        client.reset();
    }
    ask(&mut server.connect());
    server.signal("TERM");
    assert_eq!(server.wait().0, Some(0));
}

#[test]
fn standard_descriptors_that_are_closed_do_not_become_sockets() {
    for closed in ["<&-", "2>&-", "<&- 2>&-"] {
        let server = start_after(&format!("exec {closed}"), "--port 0 -v");
        let mut client = server.connect();
        ask(&mut client);
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
fn two_servers_do_not_share_a_port_unnoticed() {
    for (first, second) in [("1", "1"), ("2", "1"), ("1", "2"), ("2", "2")] {
        let server = Running::start(&["--port", "0", "--workers", first]);
        let port = server.address().rsplit_once(':').expect("a port").1.to_owned();
        let (code, text) = run(&["--port", &port, "--workers", second]);
        assert_eq!(code, Some(1), "{first} and {second} workers");
        assert_eq!(
            text,
            format!(
                "serverd: cannot listen on 127.0.0.1:{port}: the port is taken; stop who uses it or choose another \
                 with --port\n"
            )
        );
        ask(&mut server.connect());
    }
}

#[test]
fn the_soft_limit_of_descriptors_is_raised_to_the_hard_one() {
    let server = start_after("ulimit -S -n 40", "--port 0");
    let mut clients: Vec<Client> = (0..100).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(ask);
    clients.iter_mut().for_each(ask);
}

#[test]
fn by_default_no_more_connections_are_held_than_descriptors_suffice_for() {
    for workers in ["1", "2"] {
        let server = start_after("ulimit -n 60", &format!("--port 0 --workers {workers}"));
        let mut clients: Vec<Client> = (0..30).map(|_| server.connect()).collect();
        clients.iter_mut().for_each(ask);
        let mut outside: Vec<Client> = (0..30).map(|_| server.connect()).collect();
        for client in &mut outside {
            client.send(GET);
        }
        let last = &mut outside[29];
        last.socket.set_read_timeout(Some(Duration::from_millis(100))).expect("alive");
        assert!(last.socket.peek(&mut [0]).is_err(), "60 connections with 60 descriptors");
        // Everybody has a turn as others leave.
        drop(clients);
        for mut client in outside {
            client.socket.set_read_timeout(Some(PATIENCE)).expect("alive");
            assert_eq!(client.answer().status, 200);
        }
    }
}

#[test]
fn the_cap_on_connections_is_one_for_all_workers() {
    for backend in backends() {
        let server = Running::start(&["--port", "0", "--backend", backend, "--workers", "3", "--max-connections", "4"]);
        let mut inside: Vec<Client> = (0..4).map(|_| server.connect()).collect();
        inside.iter_mut().for_each(ask);
        let mut outside: Vec<Client> = (0..8).map(|_| server.connect()).collect();
        for client in &mut outside {
            client.send(GET);
        }
        for client in &mut outside {
            client.socket.set_read_timeout(Some(Duration::from_millis(30))).expect("alive");
            assert!(client.socket.peek(&mut [0]).is_err(), "let in over the cap");
            client.socket.set_read_timeout(Some(PATIENCE)).expect("alive");
        }
        inside.iter_mut().for_each(ask);
        drop(inside);
        // Which of them comes first is the kernel's choice; each leaves when it was served.
        let answers: Vec<_> =
            outside.into_iter().map(|mut client| std::thread::spawn(move || client.answer().status)).collect();
        for answer in answers {
            assert_eq!(answer.join().expect("an answer"), 200);
        }
    }
}

#[test]
fn without_a_descriptor_left_the_server_rests_and_recovers_by_itself() {
    for backend in backends() {
        let mut server = start_after("ulimit -n 40", &format!("--port 0 --backend {backend} --max-connections 1000"));
        let mut held: Vec<Client> = (0..20).map(|_| server.connect()).collect();
        held.iter_mut().for_each(ask);
        let mut waiting: Vec<TcpStream> = (0..40).map(|_| server.connect().socket).collect();
        let before = (Instant::now(), ticks(&server));
        while before.0.elapsed() < Duration::from_secs(2) {
            held.iter_mut().for_each(ask);
            std::thread::sleep(Duration::from_millis(100));
        }
        let used = ticks(&server) - before.1;
        assert!(used <= 20, "{used} hundredths of a second in two seconds of {backend} without descriptors");
        held.clear();
        for socket in waiting.drain(..) {
            let mut client = Client::over(socket);
            ask(&mut client);
        }
        server.signal("TERM");
        let mut text = String::new();
        server.child.stderr.take().expect("piped").read_to_string(&mut text).expect("text");
        let complaints = text.matches("cannot accept").count();
        let seconds = usize::try_from(before.0.elapsed().as_secs()).expect("few");
        assert!((1..=seconds + 2).contains(&complaints), "{complaints} in {seconds} s: {text}");
        assert!(text.contains("raise the limit"), "{text}");
        assert_eq!(server.wait().0, Some(0));
    }
}

#[test]
fn a_burst_of_clients_waits_in_the_queue_and_is_answered() {
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
            assert_eq!(client.answer().status, 200);
        }
    }
}

#[test]
fn select_holds_more_than_a_thousand_clients_and_names_epoll_once() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("the soft limit is ours to raise");
    if maximum.is_some_and(|maximum| maximum < 3000) {
        return println!("skipped: no more than {maximum:?} descriptors here");
    }
    let mut server = Running::start(&["--port", "0", "--backend", "select"]);
    let mut clients: Vec<Client> = (0..1200).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(ask);
    clients.iter_mut().for_each(ask);
    drop(clients);
    let mut again: Vec<Client> = (0..1200).map(|_| server.connect()).collect();
    again.iter_mut().for_each(ask);
    server.signal("TERM");
    let mut text = String::new();
    server.child.stderr.take().expect("piped").read_to_string(&mut text).expect("text");
    assert_eq!(text.matches("--backend epoll").count(), 1, "{text}");
    assert_eq!(server.wait().0, Some(0));
}

#[test]
fn usage_errors_are_2_and_start_errors_1() {
    for (arguments, code, hint) in [
        (&["--max-connections", "0"][..], 2, "--help"),
        (&["--drain-timeout", "5"], 2, "give a unit: 5s"),
        (&["--no-such-option"], 2, "--help"),
        (&["--host", "192.0.2.1", "--port", "0"], 1, "192.0.2.1"),
    ] {
        let output = serverd(arguments).output().expect("the binary runs");
        let text = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(hint), "{text}");
    }
}

//! The real binary: its flags, its start line, its exit codes, its signals, and real clients.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};

use crate::harness::{Client, program, skipped_under_wine};

const TEXT: &str = "this is response from server";

/// tests/platforms/windows.sh and console.py tell such a server to end from outside.
pub(crate) const NO_CTRL_BREAK: &str = "it has no Ctrl-Break, the one event that goes to one process";

pub(crate) fn serverd(arguments: &[&str]) -> Command {
    let mut command = program(env!("CARGO_BIN_EXE_serverd"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    #[cfg(windows)]
    crate::console::group(&mut command);
    command
}

/// A running server, killed when dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) line: String,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Running {
    pub(crate) fn start(arguments: &[&str]) -> Running {
        Running::spawn(&mut serverd(arguments))
    }

    /// Starts the server by a command of its own, whose stdout is piped.
    pub(crate) fn spawn(command: &mut Command) -> Running {
        let mut child = command.spawn().expect("the binary starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a start line");
        Running { child, line, stdout }
    }

    /// `127.0.0.1:PORT`, from the start line.
    pub(crate) fn address(&self) -> &str {
        self.line.split("://").nth(1).and_then(|rest| rest.split(' ').next()).expect("an address")
    }

    pub(crate) fn connect(&self) -> Client {
        Client::new(self.address().parse().expect("an address"))
    }

    #[cfg(unix)]
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// Ctrl-Break, which unlike Ctrl-C can be sent to one process; the signals of Unix are one event there.
    #[cfg(windows)]
    pub(crate) fn signal(&self, _name: &str) {
        crate::console::send_break(&self.child);
    }

    /// Waits for the end; returns the exit code and what else came on stdout.
    pub(crate) fn wait(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("text");
        (self.child.wait().expect("an end").code(), rest)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already where the test waited for it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn backends() -> &'static [&'static str] {
    match cfg!(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll)) {
        true if cfg!(target_os = "linux") => &["kqueue", "epoll", "select"],
        true => &["kqueue", "select"],
        false if cfg!(target_os = "linux") => &["epoll", "select"],
        false => &["select"],
    }
}

pub(crate) fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = serverd(arguments).output().expect("the binary runs");
    (status.code(), String::from_utf8(stderr).expect("text"))
}

/// Runs a client program; `None`, with a printed reason, where it is not installed.
fn client(program: &str, arguments: &[&str], input: &str) -> Option<String> {
    use std::io::Write;
    let spawned = Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            println!("skipped: {program} does not run here ({error})");
            return None;
        }
    };
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("the client reads");
    Some(String::from_utf8(child.wait_with_output().expect("an end").stdout).expect("text"))
}

#[test]
fn the_start_line_tells_address_backend_and_workers() {
    for backend in backends() {
        let server = Running::start(&["--port", "0", "--backend", backend]);
        assert!(server.line.starts_with("serverd: listening on http://127.0.0.1:"), "{}", server.line);
        assert!(server.line.ends_with(&format!(" ({backend}, 1 worker)\n")), "{}", server.line);
        assert!(!server.address().ends_with(":0"));
    }
}

#[test]
fn echo_and_chat_say_what_they_are_and_drain_at_a_signal() {
    for backend in backends() {
        let server = Running::start(&["echo", "--port", "0", "--backend", backend]);
        assert!(server.line.starts_with("serverd: echo on tcp://127.0.0.1:"), "{}", server.line);
        assert!(server.line.ends_with(&format!(" ({backend}, 1 worker)\n")), "{}", server.line);
        let mut client = server.connect();
        client.send("abc");
        assert_eq!(client.read(3), b"abc");

        let options = ["chat", "-p", "0", "-b", backend, "-w", "2", "--max-members", "2", "--history", "0"];
        let server = Running::start(&options);
        assert!(server.line.starts_with("serverd: chat on tcp://127.0.0.1:"), "{}", server.line);
        let (mut one, mut other) = (server.connect(), server.connect());
        assert!(one.line().starts_with("* Welcome, guest") && other.line().starts_with("* Welcome, guest"));
        let mut third = server.connect();
        assert_eq!(third.line(), "* The chat is full; come back later.");
        if skipped_under_wine(NO_CTRL_BREAK) {
            return;
        }
        server.signal("TERM");
        for client in [&mut one, &mut other] {
            while client.line() != "* The server is going down. Goodbye." {}
            client.expect_close();
        }
        assert_eq!(server.wait(), (Some(0), String::new()));
    }
}

#[test]
fn every_method_has_its_answer() {
    for backend in backends() {
        let server = Running::start(&["-p", "0", "-b", backend]);
        let mut client = server.connect();
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            client.send(format!("{method} /any/path HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"));
            let answer = client.answer();
            assert_eq!((answer.status, answer.text().as_str()), (200, TEXT), "{method}");
            assert_eq!(answer.field("content-type"), Some("text/plain; charset=utf-8"));
            assert_eq!(answer.field("server"), Some("serverd"));
        }
        client.send("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.answer_to("HEAD").field("content-length"), Some("28"));
        client.send("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer = client.answer();
        assert_eq!(answer.status, 204);
        assert!(answer.field("allow").is_some_and(|allow| allow.contains("GET, HEAD")));
        client.send("TRACE / HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer = client.answer();
        assert_eq!((answer.status, answer.field("allow").is_some()), (405, true));
        client.send("BREW / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.answer().status, 501);
        client.send("CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n");
        let answer = client.answer();
        assert_eq!((answer.status, answer.field("connection")), (405, Some("close")));
        client.expect_close();
    }
}

#[test]
fn curl_is_answered() {
    for backend in backends() {
        let server = Running::start(&["--port", "0", "--backend", backend]);
        let url = format!("http://{}/", server.address());
        let Some(text) = client("curl", &["-sSi", "-m", "10", &url], "") else {
            return;
        };
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.ends_with(&format!("\r\nContent-Length: 28\r\n\r\n{TEXT}")), "{text}");
    }
}

#[test]
fn netcat_is_answered_also_when_it_closes_its_half_at_once() {
    for backend in backends() {
        let server = Running::start(&["--port", "0", "--backend", backend]);
        let (host, port) = server.address().rsplit_once(':').expect("host and port");
        for request in ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET / HTTP/1.1\nHost: x\n\n"] {
            let Some(text) = client("nc", &["-N", host, port], request) else {
                return;
            };
            assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with(TEXT), "{text}");
        }
    }
}

#[test]
fn another_text_and_two_workers() {
    for backend in backends() {
        let server = Running::start(&["--workers", "2", "--port", "0", "--backend", backend, "http", "--body", "hi"]);
        assert!(server.line.contains("2 workers"), "{}", server.line);
        for _ in 0..20 {
            let mut client = server.connect();
            client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
            assert_eq!(client.answer().text(), "hi");
        }
    }
}

#[test]
fn a_taken_port_an_unknown_host_and_a_foreign_backend_are_told_in_one_sentence() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    for workers in ["1", "2"] {
        let (code, text) = run(&["--port", &port, "--workers", workers]);
        assert_eq!(code, Some(1), "{text}");
        assert_eq!(
            text,
            format!(
                "serverd: cannot listen on 127.0.0.1:{port}: the port is taken; stop who uses it or choose another with --port\n"
            )
        );
    }
    let (code, text) = run(&["--host", "no.such.host.invalid"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.starts_with("serverd: cannot find the host") && text.lines().count() == 1, "{text}");
    for (backend, systems) in [("epoll", "Linux"), ("kqueue", "macOS and the BSDs")] {
        if !backends().contains(&backend) {
            let sentence =
                format!("serverd: {backend} is for {systems}; use --backend select, or leave the option out\n");
            assert_eq!(run(&["--backend", backend]), (Some(1), sentence));
        }
    }
}

#[test]
fn wrong_usage_exits_2() {
    let (code, text) = run(&["--port", "many"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("--port"), "{text}");
}

#[test]
fn the_text_of_the_command_line_wins_over_that_of_the_environment() {
    for (arguments, text) in [
        (&["--body", "line", "http"][..], "line"),
        (&["http", "--body", "line"], "line"),
        (&["--body", "line"], "line"),
        (&["http"], "variable"),
    ] {
        let mut command = serverd(arguments);
        let server = Running::spawn(command.args(["-p", "0"]).env("SERVERD_BODY", "variable"));
        let mut client = server.connect();
        client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.answer().text(), text, "{arguments:?}");
    }
}

/// Runs with these variables, and an address of nobody (RFC 5737), so that what is understood ends with exit code 1.
pub(crate) fn run_with(variables: &[(&str, &str)], arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = serverd(arguments);
    let output = command.args(["--host", "192.0.2.1"]).envs(variables.iter().copied()).output();
    let Output { status, stderr, .. } = output.expect("the binary runs");
    (status.code(), String::from_utf8(stderr).expect("text"))
}

#[test]
fn a_flag_in_the_environment_is_yes_or_no_in_every_usual_word() {
    for word in ["1", "0", "yes", "no", "on", "off", "true", "false"] {
        let (code, text) = run_with(&[("SERVERD_QUIET", word)], &[]);
        assert_eq!(code, Some(1), "{word}: {text}");
    }
    let (code, text) = run_with(&[("SERVERD_QUIET", "perhaps")], &[]);
    assert_eq!((code, text.contains("--quiet")), (Some(2), true), "{text}");
}

#[test]
fn quiet_and_verbose_exclude_each_other_but_the_command_line_wins() {
    let both = [("SERVERD_QUIET", "1"), ("SERVERD_VERBOSE", "1")];
    for (variables, arguments) in
        [(&both[..1], &["-v"][..]), (&both[1..], &["-q"]), (&both[..], &["-v"]), (&both[..], &["echo", "-q"])]
    {
        let (code, text) = run_with(variables, arguments);
        assert_eq!(code, Some(1), "{variables:?} {arguments:?}: {text}");
    }
    let (code, text) = run_with(&[("SERVERD_QUIET", "no"), ("SERVERD_VERBOSE", "1")], &[]);
    assert_eq!(code, Some(1), "{text}");
    let (code, text) = run_with(&both, &[]);
    assert_eq!((code, text.contains("SERVERD_QUIET")), (Some(2), true), "{text}");
}

#[test]
fn a_wrong_value_from_the_environment_is_told_with_the_name_of_its_variable() {
    for (name, command) in [
        ("SERVERD_PORT", "http"),
        ("SERVERD_BACKEND", "echo"),
        ("SERVERD_QUIET", "http"),
        ("SERVERD_HEAD_TIMEOUT", "http"),
        ("SERVERD_MAX_ROOMS", "chat"),
    ] {
        let (code, text) = run_with(&[(name, "wrong")], &[command]);
        assert_eq!((code, text.contains(&format!("variable {name}\n"))), (Some(2), true), "{text}");
    }
    let (code, text) = run_with(&[("SERVERD_PORT", "wrong")], &["--port", "many"]);
    assert_eq!((code, text.contains("SERVERD_PORT")), (Some(2), false), "{text}");
}

#[test]
fn an_empty_variable_is_as_good_as_none() {
    let variables = ["PORT", "WORKERS", "QUIET", "VERBOSE", "BACKEND", "IDLE_TIMEOUT", "ACCESS_LOG", "BODY"];
    let variables = variables.map(|name| format!("SERVERD_{name}"));
    let variables: Vec<(&str, &str)> = variables.iter().map(|name| (&**name, "")).collect();
    let (code, text) = run_with(&variables, &[]);
    assert_eq!(code, Some(1), "{text}");
}

#[test]
fn an_address_in_the_variable_of_the_port_is_ignored_and_on_the_command_line_refused() {
    let (code, text) = run_with(&[("SERVERD_PORT", "tcp://10.96.0.1:8888")], &[]);
    assert_eq!(code, Some(1), "{text}");
    let (code, text) = run(&["--port", "tcp://10.96.0.1:8888"]);
    assert_eq!(code, Some(2), "{text}");
    let mut command = serverd(&["--help"]);
    let output = command.env("SERVERD_PORT", "tcp://10.96.0.1:8888").output().expect("the binary runs");
    assert!(String::from_utf8_lossy(&output.stdout).contains("[env: SERVERD_PORT]"), "{output:?}");
}

#[test]
fn signals_drain_and_exit_0() {
    if skipped_under_wine(NO_CTRL_BREAK) {
        return;
    }
    for backend in backends() {
        for signal in ["INT", "TERM"] {
            let server = Running::start(&["--port", "0", "--backend", backend]);
            let mut idle = server.connect();
            idle.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
            idle.answer();
            // A request that is under way is finished.
            let mut busy = server.connect();
            busy.send("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
            assert_eq!(busy.answer().status, 100);
            server.signal(signal);
            busy.send("ab");
            let answer = busy.answer();
            assert_eq!((answer.status, answer.text().as_str()), (200, TEXT));
            idle.expect_close();
            assert_eq!(server.wait(), (Some(0), String::new()), "{backend} {signal}");
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn an_end_as_told_leaves_nothing_on_standard_error() {
    for backend in backends() {
        for command in ["http", "echo", "chat"] {
            let mut server = Running::start(&[command, "--port", "0", "--backend", backend, "--workers", "2"]);
            server.signal("TERM");
            let mut text = String::new();
            server.child.stderr.take().expect("piped").read_to_string(&mut text).expect("text");
            assert_eq!(text, "", "{command} {backend}");
            assert_eq!(server.wait().0, Some(0));
        }
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    if skipped_under_wine(NO_CTRL_BREAK) {
        return;
    }
    let server = Running::start(&["--port", "0"]);
    let mut stuck = server.connect();
    stuck.send("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    assert_eq!(stuck.answer().status, 100);
    let mut idle = server.connect();
    server.signal("TERM");
    // Once a silent connection is closed the first signal has been taken.
    idle.expect_close();
    server.signal("TERM");
    assert_eq!(server.wait().0, Some(if cfg!(windows) { 130 } else { 128 + 15 }));
}

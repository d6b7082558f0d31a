//! The binary: options, environment variables, start line, exit codes, signals, and responses to curl and netcat.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::process::{Child, Command, Output, Stdio};

#[cfg(unix)]
use crate::harness::WAIT_MAX;
use crate::harness::{Client, program, skipped_under_wine};

const TEXT: &str = "this is response from server";

/// The reason for skipping tests under Wine. tests/platforms/windows.sh and console.py test the shutdown there.
pub(crate) const NO_CTRL_BREAK: &str = "it has no Ctrl-Break, the only event that can be sent to a single process";

pub(crate) fn serverd(arguments: &[&str]) -> Command {
    let mut command = program(env!("CARGO_BIN_EXE_serverd"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    #[cfg(windows)]
    crate::console::new_process_group(&mut command);
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

    /// Runs `command`, which must start a server with piped stdout, and reads the start line.
    pub(crate) fn spawn(command: &mut Command) -> Running {
        let mut child = command.spawn().expect("the binary starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a start line");
        Running { child, line, stdout }
    }

    /// Reads another line of stdout; empty at its end.
    pub(crate) fn next_line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("valid UTF-8");
        line
    }

    /// Returns `127.0.0.1:PORT` from the start line.
    pub(crate) fn address(&self) -> &str {
        self.line.split("://").nth(1).and_then(|rest| rest.split(' ').next()).expect("an address")
    }

    pub(crate) fn socket_addr(&self) -> SocketAddr {
        self.address().parse().expect("an address")
    }

    pub(crate) fn connect(&self) -> Client {
        Client::new(self.socket_addr())
    }

    /// Opens a connection with a request that is in flight: the server waits for the two bytes of its body.
    pub(crate) fn connect_in_flight(&self) -> Client {
        let mut client = self.connect();
        client.begin_upload(2);
        client
    }

    /// Starts a server and sends it a first SIGTERM, which it has handled, but not finished, when this returns: the
    /// request of the returned client is in flight.
    pub(crate) fn start_draining() -> (Running, Client) {
        let server = Running::start(&["--port", "0"]);
        let stuck = server.connect_in_flight();
        let mut idle = server.connect();
        server.signal("TERM");
        idle.expect_close();
        (server, stuck)
    }

    #[cfg(unix)]
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// Sends Ctrl-Break for any signal: unlike Ctrl-C, it can be sent to a single process.
    #[cfg(windows)]
    pub(crate) fn signal(&self, _name: &str) {
        crate::console::send_break(&self.child);
    }

    /// Shuts the server down with SIGTERM; its exit code must be 0. Returns what it has written to stderr, which must
    /// be piped.
    #[cfg(unix)]
    pub(crate) fn stop_and_log(mut self) -> String {
        let start = std::time::Instant::now();
        self.signal("TERM");
        let mut log = String::new();
        self.child.stderr.take().expect("piped").read_to_string(&mut log).expect("valid UTF-8");
        assert_eq!(self.wait().0, Some(0), "{log}");
        assert!(start.elapsed() < WAIT_MAX, "the server took {:?} to exit", start.elapsed());
        log
    }

    /// Waits for the process to exit. Returns its exit code and the rest of stdout.
    pub(crate) fn wait(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("valid UTF-8");
        (self.child.wait().expect("it exits").code(), rest)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails if the process has already exited.
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

/// Runs the binary until it exits. Returns its exit code and stderr.
pub(crate) fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = serverd(arguments).output().expect("the binary runs");
    (status.code(), String::from_utf8(stderr).expect("valid UTF-8"))
}

/// Runs a client program and returns its output, or prints a reason and returns `None` if it is not installed.
fn client(program: &str, arguments: &[&str], input: &str) -> Option<String> {
    use std::io::Write;
    let spawned = Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            println!("skipped: cannot run {program} ({error})");
            return None;
        }
    };
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("the client reads");
    Some(String::from_utf8(child.wait_with_output().expect("it exits").stdout).expect("valid UTF-8"))
}

#[test]
fn the_start_line_contains_address_backend_and_workers() {
    for backend in backends() {
        let server = Running::start(&["--port", "0", "--backend", backend]);
        assert!(server.line.starts_with("serverd: listening on http://127.0.0.1:"), "{}", server.line);
        assert!(server.line.ends_with(&format!(" ({backend}, 1 worker)\n")), "{}", server.line);
        assert!(!server.address().ends_with(":0"));
    }
}

#[test]
fn echo_and_chat_print_a_start_line_and_drain_on_a_signal() {
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
        assert_eq!(third.line(), "* The chat is full; try again later.");
        if skipped_under_wine(NO_CTRL_BREAK) {
            return;
        }
        server.signal("TERM");
        for client in [&mut one, &mut other] {
            while client.line() != "* The server is shutting down. Goodbye." {}
            client.expect_close();
        }
        assert_eq!(server.wait(), (Some(0), String::new()));
    }
}

#[test]
fn every_method_gets_the_right_response() {
    for backend in backends() {
        let server = Running::start(&["-p", "0", "-b", backend]);
        let mut client = server.connect();
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            client.send(format!("{method} /any/path HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"));
            let response = client.response();
            assert_eq!((response.status, response.text().as_str()), (200, TEXT), "{method}");
            assert_eq!(response.header("content-type"), Some("text/plain; charset=utf-8"));
            assert_eq!(response.header("server"), Some("serverd"));
        }
        client.send("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.response_to("HEAD").header("content-length"), Some("28"));
        client.send("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n");
        let response = client.response();
        assert_eq!(response.status, 204);
        assert!(response.header("allow").is_some_and(|allow| allow.contains("GET, HEAD")));
        client.send("TRACE / HTTP/1.1\r\nHost: x\r\n\r\n");
        let response = client.response();
        assert_eq!((response.status, response.header("allow").is_some()), (405, true));
        client.send("BREW / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.response().status, 501);
        client.send("CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n");
        let response = client.response();
        assert_eq!((response.status, response.header("connection")), (405, Some("close")));
        client.expect_close();
    }
}

#[test]
fn curl_gets_a_response() {
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
fn netcat_gets_a_response_even_after_a_half_close() {
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
fn the_body_option_applies_to_all_workers() {
    for backend in backends() {
        let server = Running::start(&["--workers", "2", "--port", "0", "--backend", backend, "http", "--body", "hi"]);
        assert!(server.line.contains("2 workers"), "{}", server.line);
        for _ in 0..20 {
            let mut client = server.connect();
            client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
            assert_eq!(client.response().text(), "hi");
        }
    }
}

#[test]
fn a_used_port_an_unknown_host_and_an_unavailable_backend_are_one_line_errors() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    for workers in ["1", "2"] {
        let (code, text) = run(&["--port", &port, "--workers", workers]);
        assert_eq!(code, Some(1), "{text}");
        assert_eq!(
            text,
            format!(
                "serverd: cannot listen on 127.0.0.1:{port}: the port is in use; stop the process using it or choose another with --port\n"
            )
        );
    }
    let (code, text) = run(&["--host", "no.such.host.invalid"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.starts_with("serverd: cannot resolve host") && text.lines().count() == 1, "{text}");
    for (backend, systems) in [("epoll", "Linux"), ("kqueue", "macOS and the BSDs")] {
        if !backends().contains(&backend) {
            let sentence =
                format!("serverd: {backend} is available on {systems} only; use --backend select or omit the option\n");
            assert_eq!(run(&["--backend", backend]), (Some(1), sentence));
        }
    }
}

#[test]
fn a_usage_error_exits_2() {
    let (code, text) = run(&["--port", "many"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("--port"), "{text}");
}

#[test]
fn the_body_on_the_command_line_overrides_the_environment() {
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
        assert_eq!(client.response().text(), text, "{arguments:?}");
    }
}

/// Runs the binary with environment variables and a documentation address (RFC 5737) that it cannot listen on. A valid
/// configuration therefore exits with 1, an invalid one with 2.
pub(crate) fn run_with(variables: &[(&str, &str)], arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = serverd(arguments);
    let output = command.args(["--host", "192.0.2.1"]).envs(variables.iter().copied()).output();
    let Output { status, stderr, .. } = output.expect("the binary runs");
    (status.code(), String::from_utf8(stderr).expect("valid UTF-8"))
}

#[test]
fn flags_in_the_environment_accept_the_usual_boolean_words() {
    for word in ["1", "0", "yes", "no", "on", "off", "true", "false"] {
        let (code, text) = run_with(&[("SERVERD_QUIET", word)], &[]);
        assert_eq!(code, Some(1), "{word}: {text}");
    }
    let (code, text) = run_with(&[("SERVERD_QUIET", "perhaps")], &[]);
    assert_eq!((code, text.contains("--quiet")), (Some(2), true), "{text}");
    for word in ["2", "0", "true", "off"] {
        let (code, text) = run_with(&[("SERVERD_VERBOSE", word)], &[]);
        assert_eq!(code, Some(1), "{word}: {text}");
    }
    let (code, text) = run_with(&[("SERVERD_VERBOSE", "perhaps")], &[]);
    assert_eq!((code, text.contains("SERVERD_VERBOSE")), (Some(2), true), "{text}");
}

#[test]
fn quiet_and_verbose_conflict_unless_the_command_line_decides() {
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
fn an_invalid_value_from_the_environment_is_reported_with_its_variable() {
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
fn an_empty_variable_counts_as_unset() {
    let variables = ["PORT", "WORKERS", "QUIET", "VERBOSE", "BACKEND", "IDLE_TIMEOUT", "ACCESS_LOG", "BODY"];
    let variables = variables.map(|name| format!("SERVERD_{name}"));
    let variables: Vec<(&str, &str)> = variables.iter().map(|name| (&**name, "")).collect();
    let (code, text) = run_with(&variables, &[]);
    assert_eq!(code, Some(1), "{text}");
}

#[test]
fn former_variable_names_are_used_while_the_current_ones_are_unset() {
    let former = ("SERVERD_SPREAD", "wrong");
    let (code, text) = run_with(&[former], &[]);
    assert_eq!((code, text.contains("variable SERVERD_SPREAD\n")), (Some(2), true), "{text}");
    assert_eq!(run_with(&[("SERVERD_SPREAD", "fewest"), ("SERVERD_MAX_FIELDS", "9")], &[]).0, Some(1));
    assert_eq!(run_with(&[former, ("SERVERD_BALANCE", "least-connections")], &[]).0, Some(1));
    assert_eq!(run_with(&[former], &["--balance", "auto"]).0, Some(1));
}

#[test]
fn unknown_variables_are_reported_and_those_of_service_links_are_not() {
    let links = [
        ("SERVERD_PORT", "tcp://10.96.0.1:8888"),
        ("SERVERD_HTTPS_PORT", "tcp://10.96.0.1:443"),
        ("SERVERD_SERVICE_HOST", "10.96.0.1"),
        ("SERVERD_SERVICE_PORT_HTTP", "8888"),
        ("SERVERD_PORT_8888_TCP_ADDR", "10.96.0.1"),
        ("SERVERD_DIR", "of another command"),
        ("SERVERD_MAX_FIELDS", "9"),
        ("SERVERD_EMPTY", ""),
    ];
    let (code, text) = run_with(&links, &[]);
    assert_eq!((code, text.lines().count()), (Some(1), 1), "{text}");
    let (code, text) = run_with(&[&links[..], &[("SERVERD_PROT", "80"), ("SERVERD_DEBUG", "1")]].concat(), &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("unknown environment variables: SERVERD_DEBUG, SERVERD_PROT; "), "{text}");
    let mut check = serverd(&["check", "127.0.0.1:1"]);
    let output = check.env("SERVERD_PROT", "80").output().expect("the binary runs");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("SERVERD_PROT"), "{output:?}");
}

#[test]
fn the_variable_port_is_used_if_serverd_port_is_not_set() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let run = |variables: &[(&str, &str)]| {
        let output = serverd(&[]).envs(variables.iter().copied()).output().expect("the binary runs");
        String::from_utf8(output.stderr).expect("valid UTF-8")
    };
    let in_use = format!("127.0.0.1:{port}: the port is in use");
    for variables in [
        &[("PORT", port.as_str())][..],
        &[("PORT", &port), ("SERVERD_PORT", "")],
        &[("PORT", &port), ("SERVERD_PORT", "tcp://10.96.0.1:8888")],
        &[("PORT", "many"), ("SERVERD_PORT", &port)],
    ] {
        let text = run(variables);
        assert!(text.contains(&in_use), "{variables:?}: {text}");
    }
    assert!(run(&[("PORT", "many")]).contains("variable PORT\n"));
}

#[test]
fn an_address_as_the_port_is_ignored_in_the_environment_and_rejected_on_the_command_line() {
    let (code, text) = run_with(&[("SERVERD_PORT", "tcp://10.96.0.1:8888")], &[]);
    assert_eq!(code, Some(1), "{text}");
    let (code, text) = run(&["--port", "tcp://10.96.0.1:8888"]);
    assert_eq!(code, Some(2), "{text}");
    let mut command = serverd(&["--help"]);
    let output = command.env("SERVERD_PORT", "tcp://10.96.0.1:8888").output().expect("the binary runs");
    assert!(String::from_utf8_lossy(&output.stdout).contains("[env: SERVERD_PORT]"), "{output:?}");
}

#[test]
fn signals_shut_down_gracefully_with_exit_code_0() {
    if skipped_under_wine(NO_CTRL_BREAK) {
        return;
    }
    for backend in backends() {
        for signal in ["INT", "TERM", "QUIT"] {
            let server = Running::start(&["--port", "0", "--backend", backend]);
            let mut idle = server.connect();
            idle.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
            idle.response();
            // An in-flight request is finished.
            let mut busy = server.connect_in_flight();
            server.signal(signal);
            busy.send("ab");
            let response = busy.response();
            assert_eq!((response.status, response.text().as_str()), (200, TEXT));
            idle.expect_close();
            assert_eq!(server.wait(), (Some(0), String::new()), "{backend} {signal}");
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_clean_shutdown_prints_nothing_to_stderr() {
    for backend in backends() {
        for command in ["http", "echo", "chat"] {
            let server = Running::start(&[command, "--port", "0", "--backend", backend, "--workers", "2"]);
            let text = server.stop_and_log();
            // Running as root is worth a warning.
            let rest: Vec<_> = text.lines().filter(|line| !line.contains("running as root")).collect();
            assert_eq!(rest, [""; 0], "{command} {backend}");
            let is_root = rustix::process::geteuid().is_root();
            assert_eq!(text.matches("as another user").count(), usize::from(is_root), "{text}");
        }
    }
}

#[test]
fn a_host_name_is_listened_on_at_all_of_its_addresses() {
    let mut addresses: Vec<_> = ("localhost", 0).to_socket_addrs().expect("every system has it").collect();
    addresses.sort();
    addresses.dedup();
    addresses.retain(|address| TcpListener::bind(address).is_ok());
    for workers in ["1", "2"] {
        for balance in ["auto", "least-connections"] {
            let options = ["--host", "localhost", "-p", "0", "--workers", workers, "--balance", balance];
            let mut server = Running::start(&options);
            let mut found = vec![server.address().parse::<SocketAddr>().expect("an address")];
            for _ in 1..addresses.len() {
                server.line.clear();
                server.stdout.read_line(&mut server.line).expect("another start line");
                found.push(server.address().parse().expect("an address"));
            }
            assert!(found.iter().all(|address| address.port() == found[0].port()), "{found:?}");
            found.sort();
            assert!(found.iter().map(SocketAddr::ip).eq(addresses.iter().map(SocketAddr::ip)), "{found:?}");
            for address in found {
                let mut client = Client::new(address);
                client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
                assert_eq!(client.response().text(), TEXT);
            }
            if !cfg!(windows) {
                server.signal("TERM");
                assert_eq!(server.wait(), (Some(0), String::new()));
            }
        }
    }
}

#[test]
fn a_second_signal_exits_at_once() {
    if skipped_under_wine(NO_CTRL_BREAK) {
        return;
    }
    let (server, _stuck) = Running::start_draining();
    server.signal("TERM");
    assert_eq!(server.wait().0, Some(if cfg!(windows) { 130 } else { 128 + 15 }));
}

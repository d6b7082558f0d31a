//! `serverd check` and `serverd connect`, the real binary, against servers good and bad.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;

use serverd::apps::Echo;
use serverd::r#loop::Select;

use crate::harness::{PATIENCE, RESET_IS_AN_END, Random, program, serve, skipped_under_wine};

fn serverd(arguments: &[&str]) -> Command {
    let mut command = program(env!("CARGO_BIN_EXE_serverd"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs to the end: exit code, standard output, standard error.
fn run(arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = serverd(arguments).output().expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code().expect("a code"), text(stdout), text(stderr))
}

/// Checks, with what a script has to rely on: nothing on stderr when it is well, one line when not.
fn check(arguments: &[&str]) -> (i32, String, String) {
    let seen = run(&[&["check"], arguments].concat());
    assert_eq!(seen.2.lines().count(), usize::from(seen.0 != 0), "{seen:?}");
    seen
}

/// Answers each connection in turn with one of these texts, after a head was read, and closes.
fn answers(texts: &[&str]) -> (SocketAddr, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
    let thread = std::thread::spawn(move || {
        let answer = |text: String| {
            let (mut socket, _) = listener.accept().expect("a client");
            socket.set_read_timeout(Some(PATIENCE)).expect("alive");
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && socket.read(&mut byte).is_ok_and(|count| count > 0) {
                head.push(byte[0]);
            }
            // A client that has seen enough may be gone.
            let _ = socket.write_all(text.as_bytes());
            String::from_utf8(head).expect("ASCII")
        };
        texts.into_iter().map(answer).collect()
    });
    (address, thread)
}

#[test]
fn what_was_asked_for_is_printed_and_the_status_decides() {
    let good = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    let lost = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 404 Gone Away\r\n\r\nno such thing";
    for (text, arguments, code, printed) in [
        (good, &[][..], 0, "HTTP/1.1 200 OK\n"),
        (good, &["--print", "head"], 0, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (good, &["--print", "body"], 0, "hi"),
        (good, &["--print", "all"], 0, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhi"),
        (good, &["--expect", "404"], 1, "HTTP/1.1 200 OK\n"),
        (lost, &[], 1, "HTTP/1.0 404 Gone Away\n"),
        (lost, &["--expect", "200-299,404", "--print", "body"], 0, "no such thing"),
    ] {
        let (address, thread) = answers(&[text]);
        let target = format!("http://{address}/a?b#c");
        let seen = check(&[&[target.as_str()], arguments].concat());
        assert_eq!((seen.0, seen.1.as_str()), (code, printed), "{arguments:?} {seen:?}");
        let head = thread.join().expect("answered").remove(0);
        assert!(head.starts_with(&format!("GET /a?b HTTP/1.1\r\nHost: {address}\r\n")), "{head}");
        assert!(head.contains("\r\nConnection: close\r\n"), "{head}");
    }
}

#[test]
fn a_sentence_says_what_is_not_well() {
    for (text, sentence) in [
        ("SSH-2.0-x\r\n", "is not HTTP"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi", "closed before the response was whole"),
        ("", "closed before the response was whole"),
        ("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "the status is 500"),
    ] {
        let (address, thread) = answers(&[text]);
        let (code, _, stderr) = check(&[&format!("http://{address}/")]);
        assert!(code == 1 && stderr.contains(sentence), "{stderr}");
        assert!(stderr.starts_with(&format!("serverd: http://{address}/: ")), "{stderr}");
        thread.join().expect("answered");
    }
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|gone| gone.local_addr()).expect("an address");
    let (code, stdout, stderr) = check(&[&format!("http://{closed}/")]);
    assert!(code == 1 && stdout.is_empty() && stderr.contains("connection refused"), "{stderr}");
    let (code, _, stderr) = check(&["tcp://no.such.host.invalid:1"]);
    assert!(code == 1 && stderr.contains("cannot find the host"), "{stderr}");
    // Accepted by the system, and then nothing.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let target = format!("http://{}/", silent.local_addr().expect("an address"));
    let (code, _, stderr) = check(&[&target, "--wait", "100ms"]);
    assert!(code == 1 && stderr.contains("timed out after 100ms"), "{stderr}");
}

#[test]
fn a_reset_is_told() {
    if skipped_under_wine(RESET_IS_AN_END) {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let target = format!("http://{}/", listener.local_addr().expect("an address"));
    let thread = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("a client");
        socket.read_exact(&mut [0; 4]).expect("a head");
        socket2::SockRef::from(&socket).set_linger(Some(std::time::Duration::ZERO)).expect("alive");
    });
    let (code, _, stderr) = check(&[&target]);
    assert!(code == 1 && stderr.contains("reset"), "{stderr}");
    thread.join().expect("reset");
}

#[test]
fn a_check_is_repeated_until_the_server_is_up() {
    let bad = "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n";
    let good = "HTTP/1.1 204 Fine\r\n\r\n";
    let (address, thread) = answers(&[bad, "", good]);
    let target = format!("http://{address}/");
    let (code, stdout, _) = check(&[&target, "--retry", "5", "--every", "1ms"]);
    assert_eq!((code, stdout.as_str()), (0, "HTTP/1.1 204 Fine\n"));
    assert_eq!(thread.join().expect("answered").len(), 3);
    let (address, thread) = answers(&[bad, bad]);
    let (code, stdout, _) = check(&[&format!("http://{address}/"), "--retry", "1", "--every", "1ms"]);
    assert_eq!((code, stdout.as_str()), (1, "HTTP/1.1 503 Busy\n"));
    thread.join().expect("answered");
}

#[test]
fn a_tcp_check_asks_for_a_connection_only() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (code, stdout, _) = check(&[&format!("tcp://{address}")]);
    assert_eq!((code, stdout), (0, format!("connected to {address}\n")));
    drop(listener);
    assert_eq!(check(&[&format!("tcp://{address}")]).0, 1);
}

#[test]
fn wrong_usage_of_a_client_exits_2_and_the_servers_variables_mean_nothing_to_it() {
    for arguments in [&["check"][..], &["check", "https://a/"], &["check", "--port", "1", "tcp://a:1"], &["connect"]] {
        assert_eq!(run(arguments).0, 2, "{arguments:?}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let target = format!("tcp://{}", listener.local_addr().expect("an address"));
    let output = serverd(&["check", &target]).env("SERVERD_PORT", "many").output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(0));
}

/// Runs `serverd connect` with this input.
fn connect(address: SocketAddr, input: Vec<u8>) -> (i32, Vec<u8>, String) {
    let mut child =
        serverd(&["connect", &address.to_string()]).stdin(Stdio::piped()).spawn().expect("the binary starts");
    let mut stdin = child.stdin.take().expect("piped");
    let writer = std::thread::spawn(move || {
        // The server may close before it has everything.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().expect("an end");
    writer.join().expect("written");
    (output.status.code().expect("a code"), output.stdout, String::from_utf8(output.stderr).expect("text"))
}

#[test]
fn connect_passes_everything_both_ways_and_ends_with_the_server() {
    let server = serve::<Select, _>(|| Echo);
    let bytes = Random::new(9).bytes(64 << 20);
    let (code, back, stderr) = connect(server.address, bytes.clone());
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(back == bytes);
    assert_eq!(connect(server.address, Vec::new()).0, 0);
}

#[test]
fn connect_ends_when_the_server_closes_though_its_input_goes_on() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    let mut child = serverd(&["connect", &address]).stdin(Stdio::piped()).spawn().expect("the binary starts");
    let (mut socket, _) = listener.accept().expect("a client");
    socket.write_all(b"bye\n").expect("alive");
    socket.shutdown(Shutdown::Both).expect("alive");
    let mut text = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut text).expect("text");
    assert_eq!(text, "bye\n");
    // Its input is still open.
    assert_eq!(child.wait().expect("an end").code(), Some(0));
}

#[test]
fn connect_says_why_it_cannot_and_does_not_mind_a_reader_that_leaves() {
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|gone| gone.local_addr()).expect("an address");
    let (code, _, stderr) = connect(closed, Vec::new());
    assert_eq!((code, stderr.lines().count()), (1, 1));
    assert!(stderr.contains("connection refused"), "{stderr}");

    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    let mut child = serverd(&["connect", &address]).spawn().expect("the binary starts");
    drop(child.stdout.take());
    let (mut socket, _): (TcpStream, _) = listener.accept().expect("a client");
    // Ends with a reset or with success once nobody reads on.
    while socket.write_all(&[b'x'; 4096]).is_ok() {}
    let output = child.wait_with_output().expect("an end");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

//! Runs each example as a separate process and tests its behavior.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use serverd::{LoopLimits, Timeouts};

use crate::harness::{Client, program, wait_for};

struct Example {
    child: Child,
    /// The output after the start line.
    stdout: BufReader<ChildStdout>,
    address: SocketAddr,
}

/// Returns the path of an example. Builds it if `cargo test` has not, as when only the tests were selected.
fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("the path of this test");
    let directory = own.ancestors().nth(2).expect("target/PROFILE/deps/it").join("examples");
    let path = directory.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    if !path.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--locked", "--example", name]);
        assert!(build.status().expect("running cargo").success(), "the example {name} does not build");
    }
    path
}

fn start(name: &str) -> Example {
    start_with::<&str>(name, &[])
}

/// Starts an example with arguments after its address.
fn start_with<A: AsRef<OsStr>>(name: &str, arguments: &[A]) -> Example {
    let mut command = program(binary(name));
    command.arg("127.0.0.1:0").args(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("an example");
    let (mut line, mut stdout) = (String::new(), BufReader::new(child.stdout.take().expect("piped")));
    stdout.read_line(&mut line).expect("a start line");
    let address = line.trim().rsplit('/').next().and_then(|address| address.parse().ok());
    Example { child, stdout, address: address.unwrap_or_else(|| panic!("no address in {line:?}")) }
}

impl Example {
    fn connect(&self) -> Client {
        Client::new(self.address)
    }

    fn get(&self, path: &str) -> crate::harness::RawResponse {
        let mut client = self.connect();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        client.response()
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        // An error means that the example has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn hello_http_says_hello() {
    assert_eq!(start("hello_http").get("/").text(), "hello\n");
}

/// Starts the example `hello`, which does not print its address, on a port that is free. Returns a connection to it.
fn start_hello() -> (Child, Client) {
    loop {
        let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
        let mut child = program(binary("hello")).arg(address.to_string()).spawn().expect("an example");
        // It exits if another test has taken the port in the meantime.
        while child.try_wait().expect("a child").is_none() {
            // Without a listener, the system may connect a socket to itself.
            if let Ok(socket) = TcpStream::connect(address)
                && socket.local_addr().expect("an address") != address
            {
                return (child, Client::from_socket(socket));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn hello_answers_with_the_path() {
    let (mut child, mut client) = start_hello();
    client.send("GET /there HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.response().text(), "hello, you asked for /there\n");
    child.kill().and_then(|()| child.wait()).expect("a child");
}

#[test]
fn embed_reports_progress_and_ends_with_its_input() {
    let mut example = start("embed");
    assert_eq!(example.get("/").text(), "0 lines\n");
    let mut input = example.child.stdin.take().expect("piped");
    input.write_all(b"a\nb\n").expect("the example reads");
    wait_for("not all lines are read", || example.get("/").text() == "2 lines\n");
    assert!(example.get("/worker").text().starts_with("worker "));
    drop(input);
    let mut rest = String::new();
    example.stdout.read_to_string(&mut rest).expect("output");
    assert_eq!((rest.trim(), example.child.wait().expect("a child").success()), ("2 lines in all", true));
}

#[test]
fn longpoll_sends_a_message_to_all_waiting_clients() {
    let example = start("longpoll");
    let mut waiting: Vec<Client> = (0..3).map(|_| example.connect()).collect();
    for client in &mut waiting {
        client.send("GET /next HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    let mut speaker = example.connect();
    // Until all of them wait, each message reaches some.
    let mut reached = 0;
    wait_for("not all clients are waiting", || {
        speaker.send("POST /say HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
        let response = speaker.response().text();
        reached += response.trim().trim_start_matches("sent to ").parse::<usize>().expect("a number");
        reached == 3
    });
    for client in &mut waiting {
        assert_eq!(client.response().text(), "hello");
    }
}

#[test]
fn hello_tcp_says_hello() {
    assert_eq!(start("hello_tcp").connect().read_to_end(), b"hello\n");
}

#[test]
fn two_protocols_share_a_count() {
    let mut example = start("two_protocols");
    let mut line = String::new();
    example.stdout.read_line(&mut line).expect("a second start line");
    let address = line.trim().rsplit('/').next().and_then(|address| address.parse().ok()).expect("an address");
    let mut client = Client::new(address);
    client.send("a\nb\n");
    assert_eq!((client.line(), client.line()), ("line 1".to_owned(), "line 2".to_owned()));
    assert_eq!(example.get("/").text(), "2 lines\n");
    // A line without an end.
    client.send([b'x'; 2000]);
    assert_eq!(client.read_to_end(), b"");
    assert_eq!(example.get("/").text(), "2 lines\n");
}

#[test]
fn json_api_creates_reads_replaces_and_deletes_tasks() {
    let example = start("json_api");
    let mut client = example.connect();
    let mut request = |method: &str, path: &str, body: &str| {
        let length = body.len();
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}"));
        client.response()
    };
    let created = request("POST", "/tasks", r#"{"title": "buy milk"}"#);
    assert_eq!((created.status, created.header("location")), (201, Some("/tasks/1")));
    assert_eq!(created.text(), r#"{"id":1,"title":"buy milk","done":false}"#);
    let replaced = request("PUT", "/tasks/1", r#"{"title": "buy tea", "done": true}"#);
    assert_eq!((replaced.status, replaced.text().as_str()), (200, r#"{"id":1,"title":"buy tea","done":true}"#));
    assert_eq!(request("GET", "/tasks/1", "").text(), replaced.text());
    assert_eq!(request("GET", "/tasks", "").text(), format!("[{}]", replaced.text()));
    for (method, path, body, status) in [
        ("POST", "/tasks", r#"{"done": true}"#, 400),
        ("PUT", "/tasks/2", r#"{"title": ""}"#, 404),
        ("GET", "/tasks/x", "", 404),
        ("PATCH", "/tasks/1", "", 405),
        ("DELETE", "/tasks/1", "", 204),
        ("DELETE", "/tasks/1", "", 404),
        ("GET", "/tasks/1", "", 404),
    ] {
        assert_eq!(request(method, path, body).status, status, "{method} {path} {body}");
    }
    assert_eq!(request("GET", "/tasks", "").text(), "[]");
}

#[test]
fn resp_stores_values_and_rejects_wrong_input() {
    let example = start("resp");
    let mut client = example.connect();
    // Pipelined, and the last command in two parts.
    client.send("*1\r\n$4\r\nPING\r\n*2\r\n$4\r\nping\r\n$2\r\nhi\r\n*3\r\n$3\r\nSET\r\n$1\r\na\r\n$4\r\n1\r\n2\r\n");
    client.send("*2\r\n$3\r\nGET\r\n$1\r\na\r\n*2\r\n$3\r\nGET\r\n$1\r\nb\r\n*4\r\n$3\r\nDEL\r\n$1\r\na\r\n$1\r");
    client.send("\nb\r\n$1\r\na\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\n");
    let expected = "+PONG\r\n$2\r\nhi\r\n+OK\r\n$4\r\n1\r\n2\r\n$-1\r\n:1\r\n$-1\r\n";
    assert_eq!(String::from_utf8_lossy(&client.read(expected.len())), expected);
    client.send("*1\r\n$3\r\nGET\r\n*1\r\n$5\r\nFLUSH\r\n");
    assert_eq!(client.line(), "-ERR wrong number of arguments\r");
    assert_eq!(client.line(), "-ERR unknown command\r");
    for (input, problem) in [
        ("GET a\r\n", "expected an array of bulk strings"),
        ("*1\r\n:1\r\n", "expected an array of bulk strings"),
        ("*1\r\n$99999999999999999999\r\n", "invalid length"),
        ("*1\r\n$65537\r\n", "invalid length"),
        ("*-1\r\n", "invalid length"),
        ("*1\r\n$4\r\nPING\n\n", "expected CRLF"),
    ] {
        let mut client = example.connect();
        client.send(input);
        assert_eq!(String::from_utf8_lossy(&client.read_to_end()), format!("-ERR Protocol error: {problem}\r\n"));
    }
}

#[test]
fn multipart_upload_saves_complete_files_and_no_others() {
    let directory = tempfile::tempdir().expect("a directory");
    let example = start_with("multipart_upload", &[directory.path()]);
    assert!(example.get("/").text().contains("multipart/form-data"));
    let content = b"\r\n--a\r\n-b--".repeat(100_000);
    let part = |name: &str, content: &[u8]| {
        let header = format!("--b\r\nContent-Disposition: form-data; name=f; filename=\"{name}\"\r\n\r\n");
        [header.as_bytes(), content, b"\r\n"].concat()
    };
    let text = b"--b\r\nContent-Disposition: form-data; name=note\r\n\r\nnot saved\r\n".to_vec();
    let form = [text, part("../one.txt", b"hello"), part("two.bin", &content), b"--b--\r\n".to_vec()].concat();
    let post = |body: &[u8], length: usize| {
        let head = "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n";
        let mut client = example.connect();
        client.send(format!("{head}Content-Length: {length}\r\n\r\n")).send(body);
        client
    };
    let response = post(&form, form.len()).response();
    assert_eq!(response.text(), format!("one.txt: 5 bytes\ntwo.bin: {} bytes\n", content.len()));
    // A name that is taken, a malformed form, and a client that disconnects.
    let taken = [part("one.txt", b"other"), part("three.txt", b"")].concat();
    assert_eq!(post(&taken, 100_000).response().status, 409);
    assert_eq!(post(b"--b?", 100_000).response().status, 400);
    post(&part("four.txt", b"incomplete"), 100_000).finish().expect_close();
    let files = || {
        let entries = std::fs::read_dir(&directory).expect("a directory").map(|entry| entry.expect("an entry"));
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().expect("UTF-8")).collect();
        names.sort();
        names
    };
    // The incomplete file is removed after its connection is closed.
    wait_for("the incomplete file is not removed", || files().len() <= 2);
    assert_eq!(files(), ["one.txt", "two.bin"]);
    assert_eq!(std::fs::read(directory.path().join("one.txt")).expect("a file"), b"hello");
    assert!(std::fs::read(directory.path().join("two.bin")).expect("a file") == content);
}

#[test]
fn upload_hash_hashes_the_body() {
    let example = start("upload_hash");
    let mut client = example.connect();
    client.send("PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    assert_eq!(client.response().text(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n");
}

#[test]
fn sse_sends_events_to_all_clients() {
    let example = start("sse");
    assert!(example.get("/").text().contains("EventSource(\"/events\")"));
    for _ in 0..2 {
        let mut client = example.connect();
        client.send("GET /events HTTP/1.1\r\nHost: x\r\n\r\n");
        let lines: Vec<String> = std::iter::repeat_with(|| client.line()).take(20).collect();
        assert!(lines.iter().any(|line| line == "event: tick"), "{lines:?}");
    }
}

#[test]
fn deferred_pool_serves_other_requests_while_it_counts_primes() {
    let example = start("deferred_pool");
    let mut slow = example.connect();
    slow.send("GET /primes/1000000 HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(example.get("/").text(), "try /primes/1000000\n");
    assert_eq!(slow.response().text(), "78498 primes below 1000000\n");
    assert_eq!(example.get("/primes/x").status, 400);
}

#[test]
fn chat_tcp_minimal_relays_lines_between_clients() {
    let example = start("chat_tcp_minimal");
    let (mut one, mut two) = (example.connect(), example.connect());
    assert_eq!(one.line(), "welcome, 0 others are online");
    assert_eq!(two.line(), "welcome, 1 others are online");
    one.send("hello\n");
    assert_eq!(two.line(), "hello");
    two.send("hello ").send("yourself\n");
    assert_eq!(one.line(), "hello yourself");
    drop(two);
    let mut three = example.connect();
    assert!(three.line().starts_with("welcome, "));
}

#[test]
fn reverse_proxy_forwards_requests_and_says_who_the_client_is() {
    let upstream = crate::harness::serve::<serverd::Select, _>(|| {
        let mut pending = Vec::new();
        serverd::HttpServer::new(move |request: &serverd::Request<'_>| match request.path() {
            "/slow" => {
                let (response, responder) = serverd::Response::later();
                pending.push(responder);
                response
            }
            _ => serverd::Response::text([request.head().as_bytes(), request.body()].concat()).header("X-Up", "1"),
        })
    });
    let proxy = start_with("reverse_proxy", &[format!("http://{}", upstream.address).as_str(), "0.2"]);
    let mut client = proxy.connect();
    client.send("GET /a HTTP/1.1\r\nHost: a.test:81\r\nX-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\n\r\n");
    let response = client.response();
    let text = response.text();
    assert_eq!((response.status, response.header("X-Up")), (200, Some("1")));
    for line in [
        "GET /a HTTP/1.1",
        "Host: a.test:81",
        "Forwarded: for=127.0.0.1;proto=http;host=\"a.test:81\"",
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-Proto: http",
        "X-Forwarded-Host: a.test:81",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
    }
    assert!(!text.contains("1.2.3.4"), "{text}");
    client.send("HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(client.response_to("HEAD").header("Content-Length").is_some());
    client.begin_upload(5).send("hello");
    assert!(client.response().text().ends_with("hello"));
    client.send("TRACE / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.response().status, 405);
    assert_eq!(proxy.get("/slow").status, 504);
    upstream.drain();
    assert_eq!(proxy.get("/a").status, 502);
}

#[test]
fn reverse_proxy_forwards_to_an_upstream_with_tls() {
    let pem = |name: &str| std::fs::read(format!("tests/tls/{name}")).expect("a file");
    let tls = serverd::tls::Tls::from_pem(&pem("a.pem"), &pem("a.key")).expect("a certificate");
    let upstream =
        crate::tls::serve_tls::<serverd::Select, _>(&tls, Timeouts::default(), LoopLimits::default(), || {
            serverd::HttpServer::new(|request: &serverd::Request<'_>| serverd::Response::text(request.body().to_vec()))
        });
    let url = format!("https://{}", upstream.address);
    for (authority, status, text) in [("tests/tls/a.pem", 200, "hello"), ("tests/tls/b.pem", 502, "Bad Gateway\n")] {
        let proxy = start_with("reverse_proxy", &[&url, "60", authority]);
        let mut client = proxy.connect();
        client.begin_upload(5).send("hello");
        let response = client.response();
        assert_eq!((response.status, response.text().as_str()), (status, text));
    }
    upstream.drain();
}

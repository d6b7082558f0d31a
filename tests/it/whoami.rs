//! `serverd whoami` echoes each request back to its sender.

use serverd::HttpServer;
use serverd::apps::Whoami;

use crate::harness::{Backend, Server, on_every_backend, serve};
#[cfg(target_os = "linux")]
use crate::process::{Running, backends};

fn whoami<B: Backend>() -> Server {
    serve::<B, _>(|| HttpServer::with(Whoami::new(3, 1 << 20)))
}

const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const ABC_SHA256: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

on_every_backend! {
    over_tls_too:

    fn a_request_is_reported_as_text<B>() {
        let server = whoami::<B>();
        let mut client = server.connect();
        client.send("GET /a?b=%20 HTTP/1.1\r\nHost: x\r\nX-Forwarded-For:  1.2.3.4 \r\nx-odd: caf\u{e9}\r\n\r\n");
        let response = client.response();
        let text = response.text();
        let peer = client.socket.local_addr().expect("local address");
        assert!(text.starts_with("GET /a?b=%20 HTTP/1.1\nHost: x\nX-Forwarded-For: 1.2.3.4\nx-odd: caf\u{e9}\n\n"), "{text}");
        assert!(text.contains(&format!("\npeer: {peer}\nlocal: {}\n", server.address)), "{text}");
        assert_eq!(text.contains("\ntls: 1.3, TLS_"), B::IS_SECURE, "{text}");
        assert!(text.ends_with(&format!("\nworker: 3\nbody: 0 bytes, SHA-256 {EMPTY_SHA256}\n")), "{text}");
        assert_eq!((response.header("vary"), response.header("cache-control")), (Some("Accept"), Some("no-store")));
    }

    fn a_body_is_reported_by_length_and_hash<B>() {
        let server = whoami::<B>();
        let mut client = server.connect();
        client.send("BREW / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.response().status, 501);
        client.send("OPTIONS / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.response().status, 204);
        client.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n");
        assert!(client.response().text().ends_with(&format!("\nbody: 3 bytes, SHA-256 {ABC_SHA256}\n")));
        client.send("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n\r\n");
        assert_eq!(client.response().status, 413);
    }
}

/// The body is hashed as it arrives and not buffered.
#[cfg(target_os = "linux")]
#[test]
fn a_large_upload_is_not_buffered() {
    let peak_kib = |server: &Running| -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).expect("read process status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
        line.trim().trim_end_matches(" kB").parse().expect("number")
    };
    let piece = vec![b'x'; 1 << 20];
    for backend in backends() {
        let server = Running::start(&["--port", "0", "--backend", backend, "--max-body", "1GiB", "whoami"]);
        let mut before = 0;
        for pieces in [1, 256] {
            let mut client = server.connect();
            client.send(format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", pieces * piece.len()));
            for _ in 0..pieces {
                client.send(&piece);
            }
            assert!(client.response().text().contains(&format!("body: {} bytes", pieces * piece.len())));
            let peak = peak_kib(&server);
            assert!(before == 0 || peak < before + 1024, "{backend}: from {before} to {peak} KiB");
            before = peak;
        }
    }
}

#[test]
fn a_request_is_reported_as_json_if_preferred() {
    let server = whoami::<serverd::Select>();
    let mut client = server.connect();
    client.send("POST /\" HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.response().status, 400);
    let mut client = server.connect();
    client.send("POST /a HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\nX: \"\\<\r\nContent-Length: 3\r\n\r\nabc");
    let response = client.response();
    assert_eq!(response.header("content-type"), Some("application/json"));
    let report: serde_json::Value = serde_json::from_slice(&response.body).expect("JSON");
    assert_eq!(report["request_line"], "POST /a HTTP/1.1");
    assert_eq!(report["fields"][2], serde_json::json!(["X", "\"\\<"]));
    assert_eq!(report["peer"], client.socket.local_addr().expect("local address").to_string());
    assert_eq!(report["local"], server.address.to_string());
    assert_eq!(report["worker"], 3);
    assert_eq!(report["body"], serde_json::json!({"length": 3, "sha256": ABC_SHA256}));
}

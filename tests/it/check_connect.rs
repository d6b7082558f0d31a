//! `serverd check` and `serverd connect` against working and misbehaving servers.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use base64::Engine;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serverd::Select;
use serverd::apps::Echo;

use crate::harness::{RESET_READS_AS_EOF, Random, WAIT_MAX, program, serve, skipped_under_wine, wait_for};
use crate::process::Running;

fn serverd(arguments: &[&str]) -> Command {
    let mut command = program(env!("CARGO_BIN_EXE_serverd"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the binary until it exits. Returns its exit code, stdout and stderr.
fn run(arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = serverd(arguments).output().expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("valid UTF-8");
    (status.code().expect("an exit code"), text(stdout), text(stderr))
}

/// Runs `serverd check`. Asserts what scripts rely on: stderr is empty on success, and one line on failure.
fn check(arguments: &[&str]) -> (i32, String, String) {
    let (code, stdout, stderr) = run(&[&["check"], arguments].concat());
    assert_eq!(stderr.lines().count(), usize::from(code != 0), "{code} {stderr}");
    (code, stdout, stderr)
}

/// Starts a server that accepts one connection per text. On each it reads a request head, sends the text and closes
/// the connection. Joining the thread returns the request heads.
fn serve_texts(texts: &[&str]) -> (SocketAddr, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
    let thread = std::thread::spawn(move || {
        let serve_one = |text: String| {
            let (mut socket, _) = listener.accept().expect("a client");
            socket.set_read_timeout(Some(WAIT_MAX)).expect("alive");
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && socket.read(&mut byte).is_ok_and(|count| count > 0) {
                head.push(byte[0]);
            }
            // The client may already have closed the connection.
            let _ = socket.write_all(text.as_bytes());
            String::from_utf8(head).expect("ASCII")
        };
        texts.into_iter().map(serve_one).collect()
    });
    (address, thread)
}

#[test]
fn check_prints_the_requested_part_and_its_exit_code_depends_on_the_status() {
    let good = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    let not_found = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 404 Gone Away\r\n\r\nno such thing";
    for (text, arguments, code, printed) in [
        (good, &[][..], 0, "HTTP/1.1 200 OK\n"),
        (good, &["--print", "head"], 0, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (good, &["--print", "body"], 0, "hi"),
        (good, &["--print", "all"], 0, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhi"),
        (good, &["--expect", "404"], 1, "HTTP/1.1 200 OK\n"),
        (not_found, &[], 1, "HTTP/1.0 404 Gone Away\n"),
        (not_found, &["--expect", "200-299,404", "--print", "body"], 0, "no such thing"),
    ] {
        let (address, thread) = serve_texts(&[text]);
        let target = format!("http://{address}/a?b#c");
        let (actual, stdout, stderr) = check(&[&[target.as_str()], arguments].concat());
        assert_eq!((actual, stdout.as_str()), (code, printed), "{arguments:?} {stderr}");
        let head = thread.join().expect("all texts were served").remove(0);
        assert!(head.starts_with(&format!("GET /a?b HTTP/1.1\r\nHost: {address}\r\n")), "{head}");
        assert!(head.contains("\r\nConnection: close\r\n"), "{head}");
    }
}

#[test]
fn a_failed_check_prints_the_reason() {
    for (text, reason) in [
        ("SSH-2.0-x\r\n", "invalid HTTP response"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi", "closed before the response was complete"),
        ("", "closed before the response was complete"),
        ("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "unexpected status code 500"),
    ] {
        let (address, thread) = serve_texts(&[text]);
        let (code, _, stderr) = check(&[&format!("http://{address}/")]);
        assert!(code == 1 && stderr.contains(reason), "{stderr}");
        assert!(stderr.starts_with(&format!("serverd: http://{address}/: ")), "{stderr}");
        thread.join().expect("all texts were served");
    }
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|gone| gone.local_addr()).expect("an address");
    let (code, stdout, stderr) = check(&[&format!("http://{closed}/")]);
    assert!(code == 1 && stdout.is_empty() && stderr.contains("connection refused"), "{stderr}");
    let (code, _, stderr) = check(&["tcp://no.such.host.invalid:1"]);
    assert!(code == 1 && stderr.contains("cannot resolve host"), "{stderr}");
    // The connection is accepted by the kernel, but there is no response.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let target = format!("http://{}/", silent.local_addr().expect("an address"));
    let (code, _, stderr) = check(&[&target, "--wait", "100ms"]);
    assert!(code == 1 && stderr.contains("timed out after 100ms"), "{stderr}");
}

#[test]
fn a_reset_is_reported() {
    if skipped_under_wine(RESET_READS_AS_EOF) {
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
fn check_retries_until_the_server_is_up() {
    let bad = "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n";
    let good = "HTTP/1.1 204 Fine\r\n\r\n";
    let (address, thread) = serve_texts(&[bad, "", good]);
    let target = format!("http://{address}/");
    let (code, stdout, _) = check(&[&target, "--retry", "5", "--every", "1ms"]);
    assert_eq!((code, stdout.as_str()), (0, "HTTP/1.1 204 Fine\n"));
    assert_eq!(thread.join().expect("all texts were served").len(), 3);
    let (address, thread) = serve_texts(&[bad, bad]);
    let (code, stdout, _) = check(&[&format!("http://{address}/"), "--retry", "1", "--every", "1ms"]);
    assert_eq!((code, stdout.as_str()), (1, "HTTP/1.1 503 Busy\n"));
    thread.join().expect("all texts were served");
}

#[test]
fn a_tcp_check_needs_only_a_connection() {
    // On Linux, an address of its own, on which no other test gets the port.
    let host = if cfg!(target_os = "linux") { "127.0.0.94" } else { "127.0.0.1" };
    let listener = TcpListener::bind((host, 0)).expect("a free port");
    let address = listener.local_addr().expect("an address");
    for target in [format!("tcp://{address}"), address.to_string()] {
        let (code, stdout, _) = check(&[&target]);
        assert_eq!((code, stdout), (0, format!("connected to {address}\n")));
    }
    drop(listener);
    // A process that another test is starting has a copy of the listener until it executes its program.
    wait_for("the port is still open", || check(&[&format!("tcp://{address}")]).0 == 1);
}

#[test]
fn client_usage_errors_exit_2_and_server_variables_are_ignored() {
    for arguments in
        [&["check"][..], &["check", "http://a/", "--insecure"], &["check", "--port", "1", "tcp://a:1"], &["connect"]]
    {
        assert_eq!(run(arguments).0, 2, "{arguments:?}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let target = format!("tcp://{}", listener.local_addr().expect("an address"));
    let output = serverd(&["check", &target]).env("SERVERD_PORT", "many").output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(0));
}

/// Runs `serverd connect` with `input` as stdin. Returns its exit code, stdout and stderr.
fn connect(address: SocketAddr, input: Vec<u8>) -> (i32, Vec<u8>, String) {
    connect_with(&[&address.to_string()], input)
}

/// Runs `serverd connect` with `arguments`, and `input` as stdin. Returns its exit code, stdout and stderr.
fn connect_with(arguments: &[&str], input: Vec<u8>) -> (i32, Vec<u8>, String) {
    let mut child =
        serverd(&[&["connect"], arguments].concat()).stdin(Stdio::piped()).spawn().expect("the binary starts");
    let mut stdin = child.stdin.take().expect("piped");
    let writer = std::thread::spawn(move || {
        // Fails if the server closes before it has received all of the input.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().expect("it exits");
    writer.join().expect("the writer does not panic");
    (output.status.code().expect("an exit code"), output.stdout, String::from_utf8(output.stderr).expect("valid UTF-8"))
}

#[test]
fn connect_copies_both_directions_until_the_server_closes() {
    let server = serve::<Select, _>(|| Echo);
    let bytes = Random::new(9).bytes(64 << 20);
    let (code, back, stderr) = connect(server.address, bytes.clone());
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(back == bytes);
    assert_eq!(connect(server.address, Vec::new()).0, 0);
}

#[test]
fn connect_exits_when_the_server_closes_while_stdin_is_open() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    let mut child = serverd(&["connect", &address]).stdin(Stdio::piped()).spawn().expect("the binary starts");
    let (mut socket, _) = listener.accept().expect("a client");
    socket.write_all(b"bye\n").expect("alive");
    socket.shutdown(Shutdown::Both).expect("alive");
    let mut text = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut text).expect("valid UTF-8");
    assert_eq!(text, "bye\n");
    // Its stdin is still open.
    assert_eq!(child.wait().expect("it exits").code(), Some(0));
}

#[test]
fn connect_reports_why_it_failed_and_accepts_a_closed_stdout() {
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|gone| gone.local_addr()).expect("an address");
    let (code, _, stderr) = connect(closed, Vec::new());
    assert_eq!((code, stderr.lines().count()), (1, 1));
    assert!(stderr.contains("connection refused"), "{stderr}");

    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    let mut child = serverd(&["connect", &address]).spawn().expect("the binary starts");
    drop(child.stdout.take());
    let (mut socket, _): (TcpStream, _) = listener.accept().expect("a client");
    // The writes fail once the client has exited.
    while socket.write_all(&[b'x'; 4096]).is_ok() {}
    let output = child.wait_with_output().expect("it exits");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

/// Writes a self-signed certificate for `name` and its key to a directory. Returns the paths of the two files.
fn write_certificate(directory: &Path, name: &str) -> (String, String) {
    let key = rcgen::KeyPair::generate().expect("random numbers");
    let certificate = rcgen::CertificateParams::new([name.to_owned()]).and_then(|params| params.self_signed(&key));
    let write = |file: &str, label: &str, der: &[u8]| {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        let path = directory.join(file);
        let pem = format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n");
        std::fs::write(&path, pem).expect("the directory is writable");
        path.to_str().expect("UTF-8").to_owned()
    };
    let certificate = write("chain.pem", "CERTIFICATE", certificate.expect("a valid name").der());
    (certificate, write("key.pem", "PRIVATE KEY", key.serialized_der()))
}

/// Starts a server with a certificate, and returns its port, too.
fn serve_tls(command: &str, certificate: &str, key: &str) -> (Running, u16) {
    let server = Running::start(&[command, "--port", "0", "--tls-cert", certificate, "--tls-key", key]);
    let port = server.socket_addr().port();
    (server, port)
}

#[test]
fn a_check_over_tls_verifies_the_certificate() {
    let (_server, port) = serve_tls("http", "tests/tls/a.pem", "tests/tls/a.key");
    let directory = tempfile::tempdir().expect("a directory");
    let (other, other_key) = write_certificate(directory.path(), "other.example");
    let (_other, other_port) = serve_tls("http", &other, &other_key);
    let (url, ca) = (format!("https://localhost:{port}/"), ["--ca", "tests/tls/a.pem"]);
    let good = (0, "HTTP/1.1 200 OK\n".to_string(), String::new());
    assert_eq!(check(&[&url, ca[0], ca[1]]), good);
    assert_eq!(check(&[&url, "--insecure"]), good);
    assert_eq!(check(&[&url, ca[0], ca[1], "--min-days", "1"]), good);
    let (code, stdout, _) = check(&[&format!("tls://localhost:{port}"), ca[0], ca[1]]);
    assert_eq!(code, 0);
    assert!(stdout.starts_with(&format!("connected to localhost:{port}, whose certificate expires on ")), "{stdout}");
    assert_eq!(check(&[&format!("http://localhost:{port}/"), "--expect", "400"]).0, 0);
    for (target, arguments, reason) in [
        (url.clone(), &[][..], "--ca FILE"),
        (url.clone(), &["--ca", "tests/tls/b.pem"], "not signed by a trusted authority"),
        (url.clone(), &["--ca", "tests/tls/absent.pem"], "tests/tls/absent.pem: "),
        (url.clone(), &["--ca", "tests/tls/a.key"], "no certificate found"),
        (format!("https://localhost:{other_port}/"), &["--ca", &other], "not valid for localhost"),
        (url, &["--insecure", "--min-days", "65535"], "the certificate expires on "),
    ] {
        let (code, stdout, stderr) = check(&[&[target.as_str()], arguments].concat());
        assert_eq!((code, stdout.as_str()), (1, ""), "{arguments:?} {stderr}");
        assert!(stderr.contains(reason), "{arguments:?} {stderr}");
    }
}

/// Creates a certificate, and writes it and its key to a directory. Returns the paths of the two files.
fn issue(
    directory: &Path,
    name: &str,
    issuer: Option<&rcgen::CertifiedIssuer<'static, rcgen::KeyPair>>,
    change: impl FnOnce(&mut rcgen::CertificateParams),
) -> (String, String) {
    let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a valid name");
    change(&mut params);
    let key = rcgen::KeyPair::generate().expect("random numbers");
    let certificate = match issuer {
        Some(issuer) => params.signed_by(&key, issuer),
        None => params.self_signed(&key),
    };
    let (chain, key_path) = (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")));
    write_pem(&chain, "CERTIFICATE", certificate.expect("valid parameters").der());
    write_pem(&key_path, "PRIVATE KEY", key.serialized_der());
    (chain.to_str().expect("UTF-8").into(), key_path.to_str().expect("UTF-8").into())
}

fn write_pem(path: &Path, label: &str, der: &[u8]) {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let pem = format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n");
    std::fs::write(path, pem).expect("the directory is writable");
}

#[test]
fn a_check_over_tls_trusts_the_certificates_in_a_file_themselves_and_no_authority_that_has_expired() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "old");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let key = rcgen::KeyPair::generate().expect("random numbers");
    let old = rcgen::CertifiedIssuer::self_signed(params, key).expect("valid parameters");
    let old_path = directory.path().join("old.pem");
    write_pem(&old_path, "CERTIFICATE", old.der());
    let old_path = old_path.to_str().expect("UTF-8");

    let (leaf, leaf_key) = issue(directory.path(), "leaf", Some(&old), |_| ());
    let (authority, authority_key) = issue(directory.path(), "authority", None, |params| {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    });
    let (future, future_key) = issue(directory.path(), "future", None, |params| {
        params.not_before = rcgen::date_time_ymd(4000, 1, 1);
    });
    let (_leaf, leaf_port) = serve_tls("http", &leaf, &leaf_key);
    let (_authority, authority_port) = serve_tls("http", &authority, &authority_key);
    let (_future, future_port) = serve_tls("http", &future, &future_key);
    for (port, arguments, expected) in [
        (leaf_port, &["--ca", &leaf][..], Ok(())),
        (authority_port, &["--ca", &authority], Ok(())),
        (leaf_port, &["--ca", old_path], Err("the certificate of the authority CN=old has expired on 2021-01-01")),
        (leaf_port, &["--ca", &authority], Err("certificates; the file of --ca must contain the certificate of its")),
        (authority_port, &["--ca", &leaf], Err("(CA:TRUE), which is accepted only if it is trusted itself")),
        (future_port, &["--insecure"], Ok(())),
        (future_port, &["--insecure", "--min-days", "0"], Err("the certificate is not valid before 4000-01-01")),
    ] {
        let url = format!("https://localhost:{port}/");
        let (code, _, stderr) = check(&[&[url.as_str()], arguments].concat());
        match expected {
            Ok(()) => assert_eq!(code, 0, "{arguments:?} {stderr}"),
            Err(reason) => assert!(code == 1 && stderr.contains(reason), "{arguments:?} {stderr}"),
        }
    }
}

#[test]
fn a_check_over_tls_explains_servers_without_tls_and_truncated_responses() {
    let plain = Running::start(&["--port", "0"]);
    let (code, _, stderr) = check(&[&format!("https://{}/", plain.address()), "--insecure"]);
    assert!(code == 1 && stderr.contains("does not speak TLS"), "{stderr}");
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let target = format!("https://{}/", silent.local_addr().expect("an address"));
    let (code, _, stderr) = check(&[&target, "--wait", "100ms"]);
    assert!(code == 1 && stderr.contains("timed out after 100ms"), "{stderr}");

    // The length of the response is not known, and the session is not ended.
    let thread = std::thread::spawn(move || {
        let (mut socket, _) = silent.accept().expect("a client");
        // The client of the check that timed out.
        let _ = socket.read_to_end(&mut Vec::new());
        let (mut socket, _) = silent.accept().expect("a client");
        let certificate = CertificateDer::from_pem_file("tests/tls/a.pem").expect("a certificate");
        let key = PrivateKeyDer::from_pem_file("tests/tls/a.key").expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("versions").with_no_client_auth().with_single_cert(vec![certificate], key);
        let mut session = rustls::ServerConnection::new(Arc::new(config.expect("a key"))).expect("a session");
        let mut stream = rustls::Stream::new(&mut session, &mut socket);
        assert!(stream.read(&mut [0; 1024]).is_ok_and(|count| count > 0));
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhello").expect("the client reads");
    });
    let (code, stdout, stderr) = check(&[&target, "--insecure", "--print", "body"]);
    assert_eq!((code, stdout.as_str()), (1, "hello"));
    assert!(stderr.contains("closed before the response was complete"), "{stderr}");
    thread.join().expect("the response was sent");
}

#[test]
fn a_certificate_of_version_1_is_accepted_only_without_verification() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let target = format!("tls://localhost:{}", listener.local_addr().expect("an address").port());
    let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
    let thread = std::thread::spawn(move || {
        for version in versions.iter().flat_map(|version| [version; 2]) {
            let provider = rustls::crypto::ring::default_provider();
            let certificate = CertificateDer::from_pem_file("tests/tls/v1.pem").expect("a certificate");
            let key = PrivateKeyDer::from_pem_file("tests/tls/v1.key").expect("a key");
            let key = provider.key_provider.load_private_key(key).expect("a supported key");
            let certified = rustls::sign::CertifiedKey::new(vec![certificate], key);
            let config = rustls::ServerConfig::builder_with_provider(Arc::new(provider));
            let config = config.with_protocol_versions(&[version]).expect("versions").with_no_client_auth();
            let config = config.with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
            let mut session = rustls::ServerConnection::new(Arc::new(config)).expect("a session");
            let (mut socket, _) = listener.accept().expect("a client");
            // Fails if the client does not accept the certificate.
            let _ = rustls::Stream::new(&mut session, &mut socket).read(&mut [0]);
        }
    });
    for _ in versions {
        let (code, stdout, stderr) = check(&[&target, "--insecure"]);
        assert!(code == 0 && stdout.starts_with("connected to localhost"), "{stdout}{stderr}");
        let (code, _, stderr) = check(&[&target, "--ca", "tests/tls/v1.pem"]);
        assert!(code == 1 && stderr.contains("not of X.509 version 3"), "{stderr}");
    }
    thread.join().expect("the clients have connected");
}

#[test]
fn connect_copies_both_directions_over_tls() {
    let (server, port) = serve_tls("echo", "tests/tls/a.pem", "tests/tls/a.key");
    let bytes = Random::new(9).bytes(8 << 20);
    let tls = ["--tls", "--ca", "tests/tls/a.pem"];
    let (code, back, stderr) = connect_with(&[&format!("localhost:{port}"), tls[0], tls[1], tls[2]], bytes.clone());
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(back == bytes);
    let target = format!("tls://{}", server.address());
    assert_eq!(connect_with(&[&target, "--insecure"], Vec::new()).0, 0);
    let (code, _, stderr) = connect_with(&[&target], Vec::new());
    assert!(code == 1 && stderr.contains("--ca FILE"), "{stderr}");
}

//! Unix sockets: listeners, outgoing connections, their files, and the peers that logs and handlers see.

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use serverd::ClientIpHeader::XForwardedFor;
use serverd::tls::{Certificate, Tls};
use serverd::{
    AccessLog, App, Balance, BoundListener, Config, Echo, EventLoop, HttpServer, LogFormat, LoopLimits, Networks, Peer,
    ProxyListener, ProxyMode, ProxyProtocol, Readiness, Request, Responder, Response, Select, SystemListener,
    SystemStream, Timeouts, Turn, UnixSocket, WithProxy, WithTls,
};
use tempfile::TempDir;

use crate::harness::{Backend, Client, Server, WAIT_MAX, on_every_backend, retry, serve_by, trusting, wait_for};
use crate::tcp::on_every_socket_backend;

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

const LARGE: usize = 4 << 20;

/// A server that listens on a Unix socket, besides the TCP socket of [`Server`].
struct UnixServer {
    server: Server,
    path: PathBuf,
    _directory: TempDir,
}

fn directory() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("s");
    (directory, path)
}

fn serve_limited<B: Backend, A: App>(limits: LoopLimits, app: impl FnOnce() -> A + Send + 'static) -> UnixServer {
    let (directory, path) = directory();
    let socket = UnixSocket::bind(&path, 0o600).expect("a path that is free");
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let server = serve_by::<B, A>(Timeouts::default(), limits, app, tcp, |event_loop, tcp| {
        event_loop.listen(SystemListener::from(tcp))?;
        event_loop.listen(SystemListener::from(socket))
    });
    UnixServer { server, path, _directory: directory }
}

fn serve<B: Backend, A: App>(app: impl FnOnce() -> A + Send + 'static) -> UnixServer {
    serve_limited::<B, A>(LoopLimits::default(), app)
}

impl UnixServer {
    fn connect(&self) -> Client {
        Client::over_unix(&self.path)
    }
}

/// Describes the peer of a request.
fn describe(request: &Request<'_>) -> String {
    let kind = match request.peer() {
        Some(Peer::Tcp(address)) => address.ip().to_string(),
        Some(Peer::Unix) => "unix".to_owned(),
        other => format!("{other:?}"),
    };
    let is_known = |address: Option<std::net::SocketAddr>| if address.is_some() { "known" } else { "unknown" };
    let addresses = [request.peer_addr(), request.local_addr(), request.client_addr()].map(is_known);
    format!("{kind} {}", addresses.join(" "))
}

/// Sends the responder of each request to the test.
fn holding(send: mpsc::Sender<Responder>) -> impl App {
    HttpServer::new(move |_: &Request<'_>| {
        let (response, responder) = Response::later();
        send.send(responder).expect("the test is waiting");
        response
    })
}

fn large_file() -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&vec![b'f'; LARGE]).expect("room for the file");
    file
}

on_every_backend! {
    fn requests_over_a_unix_socket_are_served_beside_those_over_tcp<B>() {
        let unix = serve::<B, _>(|| HttpServer::new(describe));
        for (mut client, expected) in [
            (unix.connect(), "unix unknown unknown unknown"),
            (unix.server.connect(), "127.0.0.1 known known known"),
        ] {
            for _ in 0..3 {
                client.send(GET.repeat(3));
                for _ in 0..3 {
                    assert_eq!(client.response().text(), expected);
                }
            }
        }
    }

    fn bodies_and_files_pass_through_a_unix_socket_complete<B>() {
        let unix = serve::<B, _>(|| HttpServer::new(|request: &Request<'_>| match request.path() {
            "/file" => Response::file(large_file(), 0..LARGE as u64),
            _ => Response::text(request.body().to_vec()),
        }));
        let mut client = unix.connect();
        client.send("GET /file HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(client.response().body == vec![b'f'; LARGE]);
        let body = vec![b'b'; 600_000];
        client.send(format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len())).send(&body);
        assert!(client.response().body == body);
    }

    fn a_half_closed_unix_socket_still_gets_all_pending_output<B>() {
        let unix = serve::<B, _>(|| Echo);
        let socket = UnixStream::connect(&unix.path).expect("a connection");
        socket.set_read_timeout(Some(WAIT_MAX)).expect("open socket");
        let mut writer = socket.try_clone().expect("a descriptor");
        let thread = std::thread::spawn(move || {
            writer.write_all(&vec![b'x'; LARGE]).expect("the server reads");
            writer.shutdown(Shutdown::Write).expect("open socket");
        });
        let mut received = Vec::new();
        (&socket).read_to_end(&mut received).expect("an orderly end");
        assert!(received == vec![b'x'; LARGE]);
        thread.join().expect("no panic");
    }

    fn connections_over_a_unix_socket_are_not_limited_per_address<B>() {
        let mut limits = LoopLimits::default();
        limits.connections_per_address_max = 1;
        let unix = serve_limited::<B, _>(limits, || HttpServer::new(|_| "hello\n"));
        let mut clients: Vec<_> = (0..4).map(|_| unix.connect()).collect();
        for client in &mut clients {
            client.send(GET);
            assert_eq!(client.response().text(), "hello\n");
        }
        drop(clients);
        assert_eq!(unix.server.drain().refused, 0);
    }

    fn a_shutdown_removes_the_file_and_serves_what_is_queued<B>() {
        let (send, held) = mpsc::channel();
        let unix = serve::<B, _>(move || holding(send));
        let mut clients: Vec<_> = (0..20).map(|_| unix.connect()).collect();
        for client in &mut clients {
            client.send(GET);
        }
        unix.server.handle.drain();
        for _ in 0..20 {
            let responder = held.recv_timeout(WAIT_MAX).expect("every queued request is served");
            responder.respond("hello\n");
        }
        for client in &mut clients {
            assert_eq!(client.response().text(), "hello\n");
        }
        wait_for("the file is not removed", || {
            UnixStream::connect(&unix.path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
        });
        drop(clients);
        assert_eq!(unix.server.drain().accepts.min(20), 20);
    }

    fn a_client_that_closes_a_unix_socket_while_its_response_is_pending_is_noticed<B>() {
        let (send, held) = mpsc::channel();
        let unix = serve::<B, _>(move || holding(send));
        let mut client = unix.connect();
        client.send(GET);
        let responder = held.recv_timeout(WAIT_MAX).expect("a request");
        assert!(!responder.is_closed());
        drop(client);
        wait_for("the client is not missed", || responder.is_closed());
    }

    fn file_descriptors_that_a_peer_sends_are_closed<B>() {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
        use std::os::fd::AsFd;
        let unix = serve::<B, _>(|| HttpServer::new(|_| "hello\n"));
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let socket = UnixStream::connect(&unix.path).expect("a connection");
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [writer.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let sent = sendmsg(&socket, &[IoSlice::new(GET.as_bytes())], &mut control, SendFlags::empty());
        assert_eq!(sent.expect("the server reads"), GET.len());
        drop(writer);
        let mut response = [0; 5];
        (&socket).read_exact(&mut response).expect("a response");
        assert_eq!(&response, b"HTTP/");
        // The end of the pipe: no process has a descriptor of its writing end.
        assert_eq!((&reader).read(&mut [0]).expect("a pipe"), 0);
    }

    fn a_trusted_proxy_over_a_unix_socket_names_the_client<B>() {
        for (trusted, expected) in [("unix", "192.0.2.1:0 true"), ("loopback", "none false")] {
            let networks: Networks = trusted.parse().expect("valid networks");
            let unix = serve::<B, _>(move || HttpServer::new(client).trusted_proxies(&networks, XForwardedFor));
            let mut proxy = unix.connect();
            let lines = "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https";
            proxy.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n"));
            assert_eq!(proxy.response().text(), expected, "{trusted}");
        }
    }

    fn a_proxy_header_can_arrive_over_a_unix_socket<B>() {
        for (trusted, expected) in [("unix", Some("192.0.2.1:4711 false")), ("loopback", None)] {
            let protocol = ProxyProtocol::new(ProxyMode::Required, &trusted.parse().expect("valid networks"));
            let (_directory, path) = directory();
            let socket = UnixSocket::bind(&path, 0o600).expect("a free path");
            let tcp = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let (timeouts, limits) = (Timeouts::default(), LoopLimits::default());
            let app = || HttpServer::new(client);
            let _server = serve_by::<WithProxy<B>, _>(timeouts, limits, app, tcp, move |event_loop, _| {
                event_loop.listen(ProxyListener::new(SystemListener::from(socket), &protocol))
            });
            let mut proxy = Client::over_unix(&path);
            // Refused without being read.
            let _ = proxy.try_send(format!("PROXY TCP4 192.0.2.1 198.51.100.1 4711 80\r\n{GET}").as_bytes());
            match expected {
                Some(expected) => assert_eq!(proxy.response().text(), expected),
                None => proxy.expect_close(),
            }
        }
    }

    fn the_log_names_unix_sockets<B>() {
        for (format, expected) in [
            (LogFormat::Short, " unix GET / 200 6 B "),
            (LogFormat::Combined, "unix - - ["),
            (LogFormat::Json, "\"client\":\"unix\",\"peer\":\"unix\","),
        ] {
            let (mut reader, writer) = std::io::pipe().expect("a pipe");
            let log = AccessLog::to(writer, format).expect("starting the writer thread");
            let unix = serve::<B, _>(move || HttpServer::new(|_| "hello\n").access_log(&log));
            let mut client = unix.connect();
            client.send(GET).response();
            drop(client);
            unix.server.drain();
            let mut line = vec![0; 1024];
            let count = reader.read(&mut line).expect("a line");
            let line = String::from_utf8_lossy(&line[..count]);
            assert!(line.contains(expected), "{line}");
        }
    }
}

on_every_socket_backend! {
    outgoing_connections_over_unix_sockets_are_served
}

/// Both a stream that is connected and one that is added as connecting.
fn outgoing_connections_over_unix_sockets_are_served<B: Readiness<Stream: From<SystemStream>>>() {
    let (_directory, path) = directory();
    let refused = SystemStream::connect_unix(&path).expect_err("there is no socket");
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    let listener = UnixListener::bind(&path).expect("a free path");
    let mut event_loop =
        EventLoop::<B, _>::with_limits(Timeouts::default(), LoopLimits::default(), Echo).expect("a loop");
    event_loop.add_stream(SystemStream::connect_unix(&path).expect("a connection").into());
    event_loop.add_connecting(SystemStream::connect_unix(&path).expect("a connection").into());
    let (local, remote) = UnixStream::pair().expect("a pair");
    event_loop.add_stream(SystemStream::try_from(local).expect("open socket").into());
    let thread = std::thread::spawn(move || {
        let accepted = [(); 2].map(|()| listener.accept().expect("a connection").0);
        for mut stream in accepted.into_iter().chain([remote]) {
            stream.write_all(b"over there").expect("the loop reads");
            stream.shutdown(Shutdown::Write).expect("open socket");
            let mut echoed = Vec::new();
            stream.read_to_end(&mut echoed).expect("an orderly end");
            assert_eq!(echoed, b"over there");
        }
    });
    while event_loop.connections() > 0 {
        assert_eq!(event_loop.turn().expect("the loop runs"), Turn::Again);
    }
    thread.join().expect("no panic");
}

#[cfg(target_os = "linux")]
#[test]
fn a_connect_to_a_unix_socket_whose_queue_is_full_fails_at_once() {
    let (_directory, path) = directory();
    let listener = UnixListener::bind(&path).expect("a free path");
    socket2::SockRef::from(&listener).listen(1).expect("a listener");
    let mut streams = Vec::new();
    let error = loop {
        assert!(streams.len() < 10, "the queue has no end");
        match SystemStream::connect_unix(&path) {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    // A server whose queue is full is running.
    assert_eq!(UnixSocket::bind(&path, 0o600).expect_err("in use").kind(), ErrorKind::AddrInUse);
}

#[test]
fn several_workers_serve_a_unix_socket_and_its_server_is_started_without_an_address() {
    for workers in [1, 2] {
        let (_directory, path) = directory();
        let socket = UnixSocket::bind(&path, 0o600).expect("a free path");
        let make = |worker| HttpServer::new(move |request: &Request<'_>| format!("{worker} {}", describe(request)));
        let server = Config::default().workers(workers).start_on([socket], make).expect("the server starts");
        assert_eq!(server.started().unix_paths, std::slice::from_ref(&path));
        assert!(server.local_addrs().is_empty());
        let mut clients: Vec<_> = (0..4).map(|_| Client::over_unix(&path)).collect();
        let mut seen = [false; 2];
        for client in &mut clients {
            let text = client.send(GET).response().text();
            let (worker, peer) = text.split_once(' ').expect("two words");
            seen[worker.parse::<usize>().expect("a number")] = true;
            assert_eq!(peer, "unix unknown unknown unknown");
        }
        assert_eq!(seen, [true, workers == 2]);
        drop(clients);
        server.drain();
        server.wait().expect("no worker fails");
        assert!(!path.exists());
    }
}

/// Binds the path of a listener that was closed. A process that another test is starting may still have a copy of it.
fn bind_again(path: &Path) -> UnixSocket {
    retry(|| match UnixSocket::bind(path, 0o600) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => Err(error),
        socket => Ok(socket.expect("the file of a server that has ended")),
    })
}

#[test]
fn a_server_listens_on_addresses_and_unix_sockets_together() {
    let (_directory, path) = directory();
    // Bound by another program, which keeps its file.
    let unix = UnixListener::bind(&path).expect("a free path");
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = tcp.local_addr().expect("an address");
    let listeners: [BoundListener; 2] = [unix.into(), tcp.into()];
    let server = Config::default().start_on(listeners, |_| HttpServer::new(|_| "hello\n")).expect("the server starts");
    assert_eq!((server.local_addrs(), server.local_addr()), (&[address][..], address));
    for mut client in [Client::over_unix(&path), Client::new(address)] {
        assert_eq!(client.send(GET).response().text(), "hello\n");
    }
    drop(server);
    assert!(path.exists());
    let error = Config::default()
        .workers(2)
        .balance(Balance::Kernel)
        .start_on([bind_again(&path)], |_| HttpServer::new(|_| "hello\n"));
    assert!(error.expect_err("not possible").to_string().contains("bound already"));
    assert!(!path.exists());
}

#[test]
fn tls_is_the_same_over_a_unix_socket() {
    let (_directory, path) = directory();
    let socket = UnixSocket::bind(&path, 0o600).expect("a free path");
    let (certificate, tls) = certificate();
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let app = || HttpServer::new(|request: &Request<'_>| format!("{} {}", describe(request), request.is_secure()));
    let (timeouts, limits) = (Timeouts::default(), LoopLimits::default());
    let _server = serve_by::<WithTls<Select>, _>(timeouts, limits, app, tcp, move |event_loop, _| {
        event_loop.listen_tls(SystemListener::from(socket), &tls)
    });
    let config = trusting(&certificate, &[&rustls::version::TLS13]);
    let name = "localhost".try_into().expect("a name");
    let session = rustls::ClientConnection::new(Arc::new(config), name).expect("a configuration");
    let socket = UnixStream::connect(&path).expect("a connection");
    let mut stream = rustls::StreamOwned::new(session, socket);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("the server reads");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("an orderly end");
    assert!(response.ends_with("\r\n\r\nunix unknown unknown unknown true"), "{response}");
}

fn certificate() -> (Certificate, Tls) {
    let certificate = Certificate::self_signed(["localhost"]).expect("a name");
    let tls = Tls::new(vec![certificate.clone()]).expect("a certificate");
    (certificate, tls)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("a file").permissions().mode() & 0o777
}

#[test]
fn the_file_of_a_unix_socket_has_its_mode_and_is_removed_at_the_end() {
    let (_directory, path) = directory();
    for expected in [0o600, 0o666, 0o660] {
        let socket = UnixSocket::bind(&path, expected).expect("a free path");
        assert_eq!((mode(&path), socket.path()), (expected, &*path));
        UnixStream::connect(&path).expect("it listens");
        drop(socket);
        assert!(!path.exists());
    }
}

#[test]
fn a_stale_unix_socket_is_replaced_and_one_in_use_is_not() {
    let (_directory, path) = directory();
    drop(UnixListener::bind(&path).expect("a free path"));
    assert!(path.exists());
    let first = bind_again(&path);
    let error = UnixSocket::bind(&path, 0o600).expect_err("a process listens");
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(error.to_string().contains("another process listens"), "{error}");
    UnixStream::connect(&path).expect("the first still listens");
    // Replaced by another program: the file is not that of the first any more.
    fs::remove_file(&path).expect("a socket");
    let second = UnixListener::bind(&path).expect("a free path");
    drop(first);
    UnixStream::connect(&path).expect("the second still listens");
    drop(second);
    fs::remove_file(&path).expect("a socket");
    let _datagrams = UnixDatagram::bind(&path).expect("a free path");
    assert_eq!(UnixSocket::bind(&path, 0o600).expect_err("in use").kind(), ErrorKind::AddrInUse);
}

#[test]
fn a_file_that_is_not_a_socket_is_not_replaced() {
    let (directory, path) = directory();
    let target = directory.path().join("target");
    fs::write(&path, "precious").expect("a file");
    assert_eq!(UnixSocket::bind(&path, 0o600).expect_err("a file").kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::read_to_string(&path).expect("a file"), "precious");
    fs::remove_file(&path).expect("a file");
    // Not even a link to a socket on which no process listens.
    drop(UnixListener::bind(&target).expect("a free path"));
    symlink(&target, &path).expect("a link");
    assert_eq!(UnixSocket::bind(&path, 0o600).expect_err("a link").kind(), ErrorKind::AlreadyExists);
    assert!(target.exists() && fs::symlink_metadata(&path).is_ok());
    fs::remove_file(&path).expect("a link");
    fs::create_dir(&path).expect("a directory");
    assert_eq!(UnixSocket::bind(&path, 0o600).expect_err("a directory").kind(), ErrorKind::AlreadyExists);
    let long = directory.path().join("x".repeat(200));
    assert_eq!(UnixSocket::bind(&long, 0o600).expect_err("too long").kind(), ErrorKind::InvalidInput);
    let absent = directory.path().join("absent").join("s");
    assert_eq!(UnixSocket::bind(&absent, 0o600).expect_err("no directory").kind(), ErrorKind::NotFound);
    if !rustix::process::geteuid().is_root() {
        fs::set_permissions(directory.path(), Permissions::from_mode(0o500)).expect("our directory");
        let error = UnixSocket::bind(directory.path().join("t"), 0o600).expect_err("read-only");
        fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).expect("our directory");
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    }
}

/// Returns the client of a request and whether it uses TLS.
fn client(request: &Request<'_>) -> String {
    let client = request.client_addr().map_or_else(|| "none".to_owned(), |address| address.to_string());
    format!("{client} {}", request.is_secure())
}

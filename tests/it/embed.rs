//! Servers in the background: `Config::start` and `Config::start_on`, on every backend, plain and with TLS.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serverd::server::TlsConfig;
use serverd::{
    Backend, Balance, Config, HttpServer, OnReload, Responder, Response, ServerHandle, StartErrorKind, Started,
};

use crate::harness::{Client, WAIT_MAX, wait_for};

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// Configurations for every backend, with one worker and with two.
fn configs() -> Vec<Config> {
    let mut backends = vec![Backend::Select];
    if cfg!(target_os = "linux") {
        backends.push(Backend::Epoll);
    }
    if cfg!(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll)) {
        backends.push(Backend::Kqueue);
    }
    let config = |backend| Config::default().port(0).backend(backend);
    let by_workers = |backend| {
        let shared = config(backend).workers(2).balance(Balance::LeastConnections);
        [config(backend), config(backend).workers(2), shared]
    };
    backends.into_iter().flat_map(by_workers).collect()
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a free port")
}

fn start(config: &Config) -> ServerHandle {
    config.start(|_| HttpServer::new(|_| "hello\n")).expect("the server starts")
}

fn get(address: SocketAddr) -> String {
    let mut client = Client::new(address);
    client.send(REQUEST);
    client.response().text()
}

/// Sends a request over TLS, and returns the response to the end of the connection.
fn get_tls(address: SocketAddr) -> String {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file("tests/tls/a.pem").expect("a certificate")).expect("a certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut stream = StreamOwned::new(connection, Client::new(address).socket);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("the server reads");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("a response");
    response
}

#[test]
fn servers_can_be_started_and_drained_again_and_beside_each_other() {
    for config in configs() {
        for _ in 0..2 {
            let servers = [start(&config), start(&config)];
            for server in &servers {
                assert_eq!(get(server.local_addr()), "hello\n");
                assert_eq!(server.local_addrs(), [server.local_addr()]);
                let Started { workers, backend, fingerprint, .. } = server.started();
                assert_eq!((*workers, backend.is_empty(), fingerprint), (config.workers, false, &None));
                assert_eq!(server.loops().len(), config.workers);
            }
            for server in servers {
                server.drain();
                server.wait().expect("no worker fails");
            }
        }
    }
}

#[test]
fn bound_listeners_are_served_by_all_workers() {
    for config in configs() {
        let listeners = [listener(), listener()];
        let addresses: Vec<_> = listeners.iter().map(|listener| listener.local_addr().expect("an address")).collect();
        let server = config.start_on(listeners, |worker| HttpServer::new(move |_| format!("{worker}")));
        let server = server.expect("the server starts");
        assert_eq!(server.local_addrs(), addresses);
        // Without an acceptor, the kernel chooses the worker for each connection.
        let mut clients: Vec<(Client, usize)> = Vec::new();
        let mut addresses = addresses.into_iter().cycle();
        for worker in 0..config.workers {
            while clients.len() < 2 || !clients.iter().any(|(_, other)| *other == worker) {
                assert!(clients.len() < 1000, "worker {worker} of {}", config.workers);
                let mut client = Client::new(addresses.next().expect("endless"));
                client.send(REQUEST);
                let number = client.response().text().parse().expect("a number");
                clients.push((client, number));
            }
        }
        assert_eq!(server.connections(), clients.len());
        server.stop();
        server.wait().expect("no worker fails");
    }
}

#[test]
fn a_listener_that_the_caller_keeps_accepts_connections_after_a_graceful_shutdown() {
    for config in configs() {
        let listener = listener();
        let address = listener.local_addr().expect("an address");
        for _ in 0..2 {
            let shared = listener.try_clone().expect("another handle");
            let server = config.start_on([shared], |_| HttpServer::new(|_| "hello\n")).expect("the server starts");
            assert_eq!(get(address), "hello\n");
            server.drain();
            server.wait().expect("no worker fails");
        }
        // As the service manager does that activates the server by its socket.
        TcpStream::connect_timeout(&address, WAIT_MAX).expect("the connection waits for the next server");
    }
}

#[test]
fn a_dropped_server_has_stopped_and_its_port_is_free() {
    for mut config in configs() {
        if cfg!(target_os = "linux") {
            // An address of its own, on which no other test gets the port.
            config.host = "127.0.0.93".into();
        }
        let server = start(&config);
        let address = server.local_addr();
        let mut client = Client::new(address);
        client.send(REQUEST);
        assert_eq!(client.response().status, 200);
        drop(server);
        assert_eq!(client.read_to_end(), b"");
        if cfg!(target_os = "linux") {
            // A process that another test starts has copies of the sockets until it executes its program.
            wait_for("the port is still open", || TcpStream::connect(address).is_err());
            let again = start(&config.port(address.port()));
            assert_eq!((again.local_addr(), get(address).as_str()), (address, "hello\n"));
        }
    }
}

#[test]
fn a_server_can_be_dropped_by_its_own_handler() {
    for config in configs() {
        let (send, dropped) = mpsc::channel();
        let own: Arc<Mutex<Option<ServerHandle>>> = Arc::default();
        let shared = Arc::clone(&own);
        let server = config.start(move |_| {
            let (own, send) = (Arc::clone(&shared), send.clone());
            HttpServer::new(move |_| {
                drop(own.lock().expect("no panic").take());
                send.send(()).expect("the test waits");
                "not sent"
            })
        });
        let server = server.expect("the server starts");
        let address = server.local_addr();
        *own.lock().expect("no panic") = Some(server);
        let mut client = Client::new(address);
        client.send(REQUEST);
        dropped.recv_timeout(WAIT_MAX).expect("the handler does not wait for itself");
        // The response is lost or arrives, depending on the moment at which the loop finds that it was stopped.
        client.read_to_end();
    }
}

/// Starts a server with a client that waits for a deferred response.
fn start_with_a_request_in_flight(config: &Config) -> (ServerHandle, Client, Responder) {
    let (send, responders) = mpsc::channel();
    let server = config.start(move |_| {
        let send = send.clone();
        HttpServer::new(move |_| {
            let (response, responder) = Response::later();
            send.send(responder).expect("the test waits");
            response
        })
    });
    let server = server.expect("the server starts");
    let mut client = Client::new(server.local_addr());
    client.send(REQUEST);
    let responder = responders.recv_timeout(WAIT_MAX).expect("the handler is called");
    (server, client, responder)
}

#[test]
fn a_request_in_flight_is_finished_by_a_drain_and_not_by_a_stop() {
    for config in configs() {
        let (server, mut client, responder) = start_with_a_request_in_flight(&config);
        server.drain();
        let waiting = std::thread::spawn(move || server.wait());
        responder.respond("late\n");
        assert_eq!(client.response().text(), "late\n");
        client.expect_close();
        waiting.join().expect("no panic").expect("no worker fails");

        let (server, mut client, responder) = start_with_a_request_in_flight(&config);
        server.stop();
        server.wait().expect("no worker fails");
        assert_eq!(client.read_to_end(), b"");
        drop(responder);
    }
}

#[test]
fn a_drain_within_a_limit_ends_although_a_request_is_in_flight() {
    for config in configs() {
        let (server, mut client, responder) = start_with_a_request_in_flight(&config);
        server.drain();
        // Shortens the drain in progress, of 30 s.
        server.drain_within(Duration::from_millis(1));
        server.wait().expect("no worker fails");
        assert_eq!(client.read_to_end(), b"");
        drop(responder);
    }
}

#[test]
fn timers_and_deferred_calls_run_on_the_loops_of_the_workers() {
    for config in configs() {
        let server = start(&config);
        for (number, handle) in server.loops().iter().enumerate() {
            let (send, calls) = mpsc::channel();
            let later = send.clone();
            let timer =
                handle.call_later(Duration::from_millis(2), move || later.send("later").expect("the test waits"));
            handle.defer(move || {
                let name = std::thread::current().name().map(str::to_owned);
                assert_eq!(name, Some(format!("worker-{number}")));
                send.send("deferred").expect("the test waits");
            });
            let calls: Vec<_> = calls.iter().collect();
            assert!(calls.contains(&"deferred") && calls.contains(&"later"), "{calls:?}");
            drop(timer);
        }
    }
}

#[test]
fn a_worker_that_panics_at_its_start_is_an_error() {
    for config in configs() {
        let last = config.workers - 1;
        let error = config.start(move |worker| {
            assert!(worker != last, "injected");
            HttpServer::new(|_| "hello\n")
        });
        assert_eq!(error.unwrap_err().kind(), StartErrorKind::Worker);
    }
}

#[test]
fn errors_are_typed_and_name_no_flags() {
    let taken = listener();
    let address = taken.local_addr().expect("an address");
    let hello = |_: usize| HttpServer::new(|_| "hello\n");
    for config in configs() {
        let error = config.clone().port(address.port()).start(hello).unwrap_err();
        assert_eq!(error.kind(), StartErrorKind::Listen(address));
        let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
        assert!(source.is_some());
        assert_eq!(format!("{error:?}"), error.to_string());
        assert!(!error.to_string().contains("--"), "{error}");
        assert!(error.to_string().starts_with(&format!("cannot listen on {address}: ")), "{error}");

        let error = config.start_on([] as [serverd::BoundListener; 0], hello).unwrap_err();
        assert_eq!(error.kind(), StartErrorKind::Configuration, "{error}");
        let files = TlsConfig::from_files([("no-such-chain.pem", "no-such-key.pem")]);
        let error = config.clone().tls(files).start(hello).unwrap_err();
        assert_eq!((error.kind(), error.source().is_some()), (StartErrorKind::Tls, true), "{error}");
    }
    let error = Config::default().host("no.such.host.invalid".into()).start(hello).unwrap_err();
    assert_eq!((error.kind(), error.to_string().contains("--")), (StartErrorKind::Host, false), "{error}");
    let kernel = Config::default().workers(2).balance(Balance::Kernel);
    assert_eq!(kernel.start_on([listener()], hello).unwrap_err().kind(), StartErrorKind::Balance);
}

#[test]
fn a_server_with_tls_starts_on_bound_listeners_too() {
    for config in configs() {
        let config = config.tls(TlsConfig::from_files([("tests/tls/a.pem", "tests/tls/a.key")]));
        for server in [config.start(|_| HttpServer::new(|_| "secret\n")), {
            config.start_on([listener()], |_| HttpServer::new(|_| "secret\n"))
        }] {
            let server = server.expect("the server starts");
            let response = get_tls(server.local_addr());
            assert!(response.ends_with("\r\n\r\nsecret\n"), "{response}");
            assert!(server.started().fingerprint.is_some());
            server.drain_within(Duration::ZERO);
            server.wait().expect("no worker fails");
        }
    }
}

#[test]
fn a_reload_calls_on_reload() {
    let (send, reloads) = mpsc::channel();
    let send = Mutex::new(send);
    let on_reload = OnReload::new(move || send.lock().expect("no panic").send(()).expect("the test waits"));
    let server = start(&Config::default().port(0).on_reload(on_reload));
    server.reload();
    assert_eq!(reloads.try_iter().count(), 1);
}

#[test]
fn a_panic_when_an_application_is_created_is_reported_with_its_message() {
    for config in configs() {
        let error = config.start(|worker| -> HttpServer<fn(&serverd::Request<'_>) -> &'static str> {
            panic!("intentional: no database for {worker}")
        });
        let error = error.unwrap_err();
        assert_eq!(error.kind(), StartErrorKind::Worker);
        let message = error.to_string();
        assert!(message.contains("panicked when it was created: intentional: no database for "), "{message}");
    }
}

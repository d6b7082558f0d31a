//! Basic authentication: correct credentials are accepted and all others rejected, without delaying other clients.

use std::sync::mpsc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serverd::layers::{self, User, Users};
use serverd::{BodyMode, Handler, HttpServer, Pool, Request, RequestHead, Response, Router};

use crate::harness::{Backend, Client, RawResponse, Server, WAIT_MAX, on_every_backend, serve, wait_for};

fn users() -> Users {
    let line = |name: &str, password: &str| format!("{name}:{}\n", bcrypt::hash(password, 4).expect("a hash"));
    Users::parse(&(line("alice", "wonderland") + &line("j\u{f6}rg", "gr\u{fc}n:"))).expect("users")
}

struct Inner;

impl Handler for Inner {
    fn head(&mut self, _: &RequestHead<'_>) -> BodyMode {
        BodyMode::fold(1 << 20, 0, |sum, piece| *sum += piece.len(), |sum| format!("received {sum}\n"))
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        let User(name) = request.extension().expect("an authenticated user");
        Response::text(format!("hello {name}\n"))
    }
}

fn server<B: Backend>(pool: impl FnOnce() -> Pool + Send + 'static) -> Server {
    serve::<B, _>(move || HttpServer::with(layers::basic_auth(Inner, "the \"inner\" circle", users(), pool())))
}

fn one_thread() -> Pool {
    Pool::new(1, 64).expect("starting the pool")
}

fn fetch(client: &mut Client, credentials: &str) -> RawResponse {
    client.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", authorization(credentials)));
    client.response()
}

/// Occupies a thread of the pool until the returned sender is dropped.
fn occupy(pool: &Pool) -> mpsc::Sender<()> {
    let (release, released) = mpsc::channel();
    let (start, started) = mpsc::channel();
    let work = move || {
        start.send(()).expect("the receiver is alive");
        assert!(released.recv().is_err());
    };
    pool.run(work).expect("room in the queue");
    started.recv_timeout(WAIT_MAX).expect("the job starts");
    release
}

/// Waits until at least `count` clients have received a response.
fn await_responses(clients: &[Client], count: usize) {
    let has_response = |client: &&Client| {
        client.socket.set_nonblocking(true).expect("an open socket");
        let seen = client.socket.peek(&mut [0]);
        client.socket.set_nonblocking(false).expect("an open socket");
        seen.is_ok()
    };
    wait_for("too few responses", || clients.iter().filter(has_response).count() >= count);
}

fn authorization(credentials: &str) -> String {
    format!("Authorization: Basic {}\r\n", STANDARD.encode(credentials))
}

on_every_backend! {
    fn correct_credentials_are_accepted_and_others_get_401<B>() {
        let server = server::<B>(one_thread);
        let mut client = server.connect();
        for _ in 0..3 {
            assert_eq!(fetch(&mut client, "alice:wonderland").text(), "hello alice\n");
            assert_eq!(fetch(&mut client, "j\u{f6}rg:gr\u{fc}n:").text(), "hello j\u{f6}rg\n");
            for wrong in ["alice:", "alice:Wonderland", "Alice:wonderland", "bob:wonderland", ":", "alice"] {
                assert_eq!(fetch(&mut client, wrong).status, 401, "{wrong}");
            }
        }
        client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        let response = client.response();
        let challenge = "Basic realm=\"the \\\"inner\\\" circle\", charset=\"UTF-8\"";
        assert_eq!((response.status, response.header("www-authenticate")), (401, Some(challenge)));
        client.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", authorization("alice:wonderland").repeat(30)));
        assert_eq!(client.response().status, 200, "repeated Authorization headers are accepted");
    }

    fn nested_layers_each_check_their_own_list<B>() {
        let server = serve::<B, _>(|| {
            let users = |list: [&str; 2]| {
                let line = |name: &str| format!("{name}:{}\n", bcrypt::hash("secret", 4).expect("a hash"));
                Users::parse(&list.map(line).concat()).expect("users")
            };
            let admin = layers::basic_auth(Inner, "admins", users(["boss", "stranger"]), one_thread());
            let router = Router::new().get("/", |_| "for the staff\n").mount("/admin", admin);
            HttpServer::with(layers::basic_auth(router, "staff", users(["boss", "clerk"]), one_thread()))
        });
        let mut client = server.connect();
        // The second round finds the credentials in the caches.
        for _ in 0..2 {
            for (name, site, admin) in [("clerk", 200, 401), ("boss", 200, 200), ("stranger", 401, 401)] {
                let authorization = authorization(&format!("{name}:secret"));
                client.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{authorization}\r\n"));
                assert_eq!(client.response().status, site, "{name}");
                client.send(format!("GET /admin/ HTTP/1.1\r\nHost: x\r\n{authorization}\r\n"));
                let response = client.response();
                assert_eq!(response.status, admin, "{name}");
                if admin == 200 {
                    assert_eq!(response.text(), format!("hello {name}\n"));
                }
                let mut other = server.connect();
                let head = format!("POST /admin/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n{authorization}\r\n");
                other.send(head + "hello");
                let response = other.response();
                assert_eq!(response.status, admin, "{name}, with a body");
                assert_eq!(response.text() == "received 5\n", admin == 200);
            }
        }
    }

    fn a_user_set_by_another_layer_is_not_authenticated<B>() {
        let server = serve::<B, _>(|| {
            let inner = layers::basic_auth(Inner, "members", users(), one_thread());
            HttpServer::with(layers::guard(inner, |head| {
                head.insert(User("alice".into()));
                None
            }))
        });
        let mut client = server.connect();
        client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.response().status, 401);
        assert_eq!(fetch(&mut client, "alice:wonderland").text(), "hello alice\n");
    }

    fn a_body_is_requested_only_after_authentication<B>() {
        let server = server::<B>(one_thread);
        let post = |credentials: &str| {
            let headers = format!("Content-Length: 5\r\nExpect: 100-continue\r\n{}", authorization(credentials));
            format!("POST / HTTP/1.1\r\nHost: x\r\n{headers}\r\n")
        };
        let mut client = server.connect();
        for _ in 0..2 {
            client.send(post("alice:wonderland"));
            assert_eq!(client.response_to("HEAD").status, 100);
            client.send("hello");
            assert_eq!(client.response().text(), "received 5\n");
        }
        client.send(post("alice:nonsense"));
        let response = client.response();
        assert_eq!((response.status, response.header("connection")), (401, Some("close")));
        client.expect_close();
    }

    fn correct_credentials_are_cached_and_wrong_ones_are_not<B>() {
        let pool = one_thread();
        let server_pool = pool.clone();
        let server = server::<B>(move || server_pool);
        let mut client = server.connect();
        assert_eq!(fetch(&mut client, "alice:wonderland").status, 200);
        let occupied = occupy(&pool);
        // The only pool thread is occupied, so no password can be checked now.
        assert_eq!(fetch(&mut client, "alice:wonderland").status, 200);
        let mut wrong = server.connect();
        wrong.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", authorization("alice:wrong")));
        assert_eq!(fetch(&mut client, "alice:wonderland").status, 200);
        drop(occupied);
        assert_eq!(wrong.response().status, 401);
    }

    fn a_flood_of_guesses_gets_503_and_cached_users_are_served<B>() {
        let pool = Pool::new(1, 2).expect("starting the pool");
        let server_pool = pool.clone();
        let server = server::<B>(move || server_pool);
        let mut known = server.connect();
        assert_eq!(fetch(&mut known, "alice:wonderland").status, 200);
        let occupied = occupy(&pool);
        let mut guessers: Vec<Client> = (0..10).map(|_| server.connect()).collect();
        for (at, guesser) in guessers.iter_mut().enumerate() {
            guesser.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", authorization(&format!("alice:{at}"))));
        }
        // All guesses arrive before the first check is finished.
        await_responses(&guessers, 8);
        assert_eq!(fetch(&mut known, "alice:wonderland").status, 200);
        drop(occupied);
        let mut statuses: Vec<u16> = guessers.iter_mut().map(|guesser| {
            let response = guesser.response();
            assert_eq!(response.header("retry-after").is_some(), response.status == 503);
            response.status
        }).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [401, 401, 503, 503, 503, 503, 503, 503, 503, 503]);
    }

    fn concurrent_requests_with_the_same_credentials_share_one_check<B>() {
        let pool = Pool::new(1, 1).expect("starting the pool");
        let server_pool = pool.clone();
        let server = server::<B>(move || server_pool);
        let occupied = occupy(&pool);
        // The queue has room for one check.
        let mut clients: Vec<Client> = (0..10).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", authorization("alice:wonderland")));
        }
        let mut other = server.connect();
        other.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(other.response().status, 401);
        drop(occupied);
        for client in &mut clients {
            assert_eq!(client.response().text(), "hello alice\n");
        }
    }

    fn cross_origin_requests_work_with_cors_and_authentication<B>() {
        let server = serve::<B, _>(|| {
            let router = Router::new().get("/", |_| "hello\n");
            HttpServer::with(layers::cors(layers::basic_auth(router, "x", users(), one_thread()), "GET, HEAD"))
        });
        let mut client = server.connect();
        let preflight = "OPTIONS / HTTP/1.1\r\nHost: x\r\nOrigin: https://a.test\r\n\
                         Access-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: range\r\n\r\n";
        client.send(preflight);
        let response = client.response();
        assert_eq!(response.status, 204, "preflight requests have no credentials");
        let allowed = |name: &str| response.header(&format!("access-control-{name}")).map(ToOwned::to_owned);
        assert_eq!(allowed("allow-origin").as_deref(), Some("*"));
        assert_eq!(allowed("allow-methods").as_deref(), Some("GET, HEAD"));
        // The wildcard does not cover Authorization.
        assert_eq!(allowed("allow-headers").as_deref(), Some("*, Authorization"));
        assert!(allowed("max-age").is_some());
        for (headers, status) in [(authorization("alice:wonderland"), 200), (String::new(), 401)] {
            client.send(format!("GET / HTTP/1.1\r\nHost: x\r\nOrigin: https://a.test\r\n{headers}\r\n"));
            let response = client.response();
            assert_eq!((response.status, response.header("access-control-allow-origin")), (status, Some("*")));
            let exposed = response.header("access-control-expose-headers");
            assert!(exposed.is_some_and(|names| names.contains("Content-Range")));
        }
        // Without Origin, it is not a preflight request.
        client.send(format!("OPTIONS / HTTP/1.1\r\nHost: x\r\n{}\r\n", authorization("alice:wonderland")));
        assert_eq!(client.response().header("allow"), Some("GET, HEAD, OPTIONS"));
    }
}

/// Connects from another address of this host.
#[cfg(target_os = "linux")]
fn connect_from(source: [u8; 4], server: &Server) -> Client {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&std::net::SocketAddr::from((source, 0)).into()).expect("an address of this host");
    socket.connect(&server.address.into()).expect("a connection");
    Client::from_socket(socket.into())
}

// Other systems have only one loopback address.
#[cfg(target_os = "linux")]
mod addresses {
    use super::*;

    on_every_backend! {
        fn a_client_that_guesses_passwords_does_not_lock_out_others<B>() {
            let pool = Pool::new(1, 4).expect("starting the pool");
            let server_pool = pool.clone();
            let server = super::server::<B>(move || server_pool);
            let occupied = occupy(&pool);
            let mut guessers: Vec<Client> = (0..8).map(|_| server.connect()).collect();
            for (number, client) in guessers.iter_mut().enumerate() {
                let credentials = authorization(&format!("alice:{number}"));
                client.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{credentials}\r\n"));
            }
            // Four guesses are queued, the others rejected.
            await_responses(&guessers, 4);
            let mut user = connect_from([127, 0, 0, 2], &server);
            user.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", authorization("alice:wonderland")));
            // The user's check took the place of a queued guess.
            await_responses(&guessers, 5);
            drop(occupied);
            assert_eq!(user.response().text(), "hello alice\n");
            let mut statuses: Vec<u16> = guessers.iter_mut().map(|client| client.response().status).collect();
            statuses.sort_unstable();
            assert_eq!(statuses, [401, 401, 401, 503, 503, 503, 503, 503]);
        }
    }
}

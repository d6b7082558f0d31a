//! Names and passwords: who gives them is let in, everybody else is asked for them, and nobody else has to wait.

use std::sync::mpsc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serverd::layers::{self, User, Users};
use serverd::{Handler, HttpServer, Intake, Pool, Request, RequestHead, Response, Router};

use crate::harness::{Answer, Backend, Client, PATIENCE, Server, on_every_backend, serve};

/// Two who may come in.
fn users() -> Users {
    let line = |name: &str, password: &str| format!("{name}:{}\n", bcrypt::hash(password, 4).expect("a hash"));
    Users::parse(&(line("alice", "wonderland") + &line("j\u{f6}rg", "gr\u{fc}n:"))).expect("users")
}

struct Inner;

impl Handler for Inner {
    fn head(&mut self, _: &RequestHead<'_>) -> Intake {
        Intake::fold(1 << 20, 0, |sum, piece| *sum += piece.len(), |sum| format!("taken {sum}\n"))
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        let User(name) = request.extension().expect("somebody");
        Response::text(format!("hello {name}\n"))
    }
}

fn server<B: Backend>(pool: impl FnOnce() -> Pool + Send + 'static) -> Server {
    serve::<B, _>(move || HttpServer::with(layers::basic(Inner, "the \"inner\" circle", users(), pool())))
}

fn one_thread() -> Pool {
    Pool::new(1, 64).expect("a thread")
}

fn ask(client: &mut Client, credentials: &str) -> Answer {
    client.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", field(credentials)));
    client.answer()
}

/// Keeps a thread of the pool busy, from now on until the outcome is dropped.
fn occupy(pool: &Pool) -> mpsc::Sender<()> {
    let (send, receive) = mpsc::channel();
    let (tell, started) = mpsc::channel();
    let work = move || {
        tell.send(()).expect("the test waits");
        assert!(receive.recv().is_err());
    };
    pool.run(work).expect("room");
    started.recv_timeout(PATIENCE).expect("a thread");
    send
}

/// Waits until so many have an answer.
fn await_answers(clients: &[Client], count: usize) {
    let has_answer = |client: &&Client| {
        client.socket.set_nonblocking(true).expect("a live socket");
        let seen = client.socket.peek(&mut [0]);
        client.socket.set_nonblocking(false).expect("a live socket");
        seen.is_ok()
    };
    let start = std::time::Instant::now();
    while clients.iter().filter(has_answer).count() < count {
        assert!(start.elapsed() < PATIENCE, "fewer than {count} are answered");
        std::thread::yield_now();
    }
}

fn field(credentials: &str) -> String {
    format!("Authorization: Basic {}\r\n", STANDARD.encode(credentials))
}

on_every_backend! {
    fn who_has_the_password_is_let_in<B>() {
        let server = server::<B>(one_thread);
        let mut client = server.connect();
        for _ in 0..3 {
            assert_eq!(ask(&mut client, "alice:wonderland").text(), "hello alice\n");
            assert_eq!(ask(&mut client, "j\u{f6}rg:gr\u{fc}n:").text(), "hello j\u{f6}rg\n");
            for wrong in ["alice:", "alice:Wonderland", "Alice:wonderland", "bob:wonderland", ":", "alice"] {
                assert_eq!(ask(&mut client, wrong).status, 401, "{wrong}");
            }
        }
        client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer = client.answer();
        let challenge = "Basic realm=\"the \\\"inner\\\" circle\", charset=\"UTF-8\"";
        assert_eq!((answer.status, answer.field("www-authenticate")), (401, Some(challenge)));
        client.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", field("alice:wonderland").repeat(30)));
        assert_eq!(client.answer().status, 200, "pipelined and connected as ever");
    }

    fn a_body_is_asked_for_only_after_that<B>() {
        let server = server::<B>(one_thread);
        let post = |credentials: &str| {
            let fields = format!("Content-Length: 5\r\nExpect: 100-continue\r\n{}", field(credentials));
            format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n")
        };
        let mut client = server.connect();
        for _ in 0..2 {
            client.send(post("alice:wonderland"));
            assert_eq!(client.answer_to("HEAD").status, 100);
            client.send("hello");
            assert_eq!(client.answer().text(), "taken 5\n");
        }
        client.send(post("alice:nonsense"));
        let answer = client.answer();
        assert_eq!((answer.status, answer.field("connection")), (401, Some("close")));
        client.expect_close();
    }

    fn what_was_right_is_remembered_and_what_was_wrong_is_not<B>() {
        let pool = one_thread();
        let own = pool.clone();
        let server = server::<B>(move || own);
        let mut client = server.connect();
        assert_eq!(ask(&mut client, "alice:wonderland").status, 200);
        let occupied = occupy(&pool);
        // Nobody checks anything now.
        assert_eq!(ask(&mut client, "alice:wonderland").status, 200);
        let mut wrong = server.connect();
        wrong.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", field("alice:wrong")));
        assert_eq!(ask(&mut client, "alice:wonderland").status, 200);
        drop(occupied);
        assert_eq!(wrong.answer().status, 401);
    }

    fn a_flood_of_guesses_is_turned_away_and_the_known_stay<B>() {
        let pool = Pool::new(1, 2).expect("a thread");
        let own = pool.clone();
        let server = server::<B>(move || own);
        let mut known = server.connect();
        assert_eq!(ask(&mut known, "alice:wonderland").status, 200);
        let occupied = occupy(&pool);
        let mut guessers: Vec<Client> = (0..10).map(|_| server.connect()).collect();
        for (at, guesser) in guessers.iter_mut().enumerate() {
            guesser.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", field(&format!("alice:{at}"))));
        }
        // All are at the door before it opens.
        await_answers(&guessers, 8);
        assert_eq!(ask(&mut known, "alice:wonderland").status, 200);
        drop(occupied);
        let mut statuses: Vec<u16> = guessers.iter_mut().map(|guesser| {
            let answer = guesser.answer();
            assert_eq!(answer.field("retry-after").is_some(), answer.status == 503);
            answer.status
        }).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [401, 401, 503, 503, 503, 503, 503, 503, 503, 503]);
    }

    fn the_same_credentials_are_checked_once_for_all_who_wait<B>() {
        let pool = Pool::new(1, 1).expect("a thread");
        let own = pool.clone();
        let server = server::<B>(move || own);
        let occupied = occupy(&pool);
        // There is room for one more.
        let mut clients: Vec<Client> = (0..10).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", field("alice:wonderland")));
        }
        let mut other = server.connect();
        other.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(other.answer().status, 401);
        drop(occupied);
        for client in &mut clients {
            assert_eq!(client.answer().text(), "hello alice\n");
        }
    }

    fn scripts_of_other_origins_are_let_in_where_that_is_wished<B>() {
        let server = serve::<B, _>(|| {
            let router = Router::new().get("/", |_| "hello\n");
            HttpServer::with(layers::cors(layers::basic(router, "x", users(), one_thread()), "GET, HEAD"))
        });
        let mut client = server.connect();
        let preflight = "OPTIONS / HTTP/1.1\r\nHost: x\r\nOrigin: https://a.test\r\n\
                         Access-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: range\r\n\r\n";
        client.send(preflight);
        let answer = client.answer();
        assert_eq!(answer.status, 204, "nobody can give a password with a preflight");
        let told = |name: &str| answer.field(&format!("access-control-{name}")).map(ToOwned::to_owned);
        assert_eq!(told("allow-origin").as_deref(), Some("*"));
        assert_eq!(told("allow-methods").as_deref(), Some("GET, HEAD"));
        assert_eq!(told("allow-headers").as_deref(), Some("*, Authorization"), "the asterisk does not stand for it");
        assert!(told("max-age").is_some());
        for (fields, status) in [(field("alice:wonderland"), 200), (String::new(), 401)] {
            client.send(format!("GET / HTTP/1.1\r\nHost: x\r\nOrigin: https://a.test\r\n{fields}\r\n"));
            let answer = client.answer();
            assert_eq!((answer.status, answer.field("access-control-allow-origin")), (status, Some("*")));
            assert!(answer.field("access-control-expose-headers").is_some_and(|names| names.contains("Content-Range")));
        }
        // Without an origin it is no preflight.
        client.send(format!("OPTIONS / HTTP/1.1\r\nHost: x\r\n{}\r\n", field("alice:wonderland")));
        assert_eq!(client.answer().field("allow"), Some("GET, HEAD, OPTIONS"));
    }
}

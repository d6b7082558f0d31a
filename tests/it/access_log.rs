//! The access log: a line for each request, true, whole, and never the reason why anybody waits.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use serverd::r#loop::Limits;
use serverd::{AccessLog, HttpServer, LogFormat, Request, Response, StatusCode, Timeouts};

use crate::harness::{Backend, PATIENCE, RESET_IS_AN_END, Server, on_every_backend, serve_with, skipped_under_wine};

const LARGE: u64 = 16 << 20;

/// What was written, and whether writing is stopped.
type Sheet = (Mutex<(Vec<u8>, bool)>, Condvar);

/// Something to write on, that a test can read and stop.
#[derive(Clone, Default)]
struct Paper(Arc<Sheet>);

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (state, news) = &*self.0;
        let mut state = news.wait_while(state.lock().expect("sound"), |(_, stopped)| *stopped).expect("sound");
        state.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Paper {
    fn stop(&self, stopped: bool) {
        self.0.0.lock().expect("sound").1 = stopped;
        self.0.1.notify_all();
    }

    fn lines(&self) -> Vec<String> {
        let state = self.0.0.lock().expect("sound");
        let text = String::from_utf8(state.0.clone()).expect("ASCII");
        assert!(text.is_ascii() && (text.is_empty() || text.ends_with('\n')), "{text:?}");
        text.lines().map(ToOwned::to_owned).collect()
    }

    /// The one line there is, without its time; it may come a little after the answer.
    fn line(&self) -> String {
        let start = std::time::Instant::now();
        loop {
            match self.lines().as_slice() {
                [] => assert!(start.elapsed() < PATIENCE, "no line came"),
                [line] => return without_time(line),
                more => panic!("more than one line: {more:?}"),
            }
            std::thread::yield_now();
        }
    }
}

/// `127.0.0.1 - - "GET / HTTP/1.1" 200 5 "-" "-"`
fn without_time(line: &str) -> String {
    let (before, rest) = line.split_once('[').expect("a time");
    let (time, after) = rest.split_once("] ").expect("its end");
    assert!(time.len() == 26 && time.ends_with(" +0000"), "{time}");
    format!("{before}{after}")
}

fn hole() -> Arc<File> {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    let path = std::env::temp_dir().join(format!("serverd-hole-{}-{number}", std::process::id()));
    File::create(&path).and_then(|file| file.set_len(LARGE)).expect("a file without content");
    let file = File::open(&path).expect("it is there");
    let _ = std::fs::remove_file(&path);
    Arc::new(file)
}

fn handler() -> impl FnMut(&Request<'_>) -> Response {
    let file = hole();
    let mut responders = Vec::new();
    move |request| match request.path() {
        "/stream" => Response::stream(["one", "two", "three"]),
        "/reader" => Response::reader(io::repeat(b'x').take(200_000)),
        "/short" => Response::stream(["half"]).length(1000),
        "/file" => Response::file(Arc::clone(&file), 0..LARGE),
        "/beyond" => Response::file(Arc::clone(&file), LARGE - 1000..LARGE + 1000),
        "/large" => Response::text(vec![b'x'; 300_000]),
        "/none" => Response::new(StatusCode::NO_CONTENT),
        "/missing" => Response::from(StatusCode::NOT_FOUND),
        "/panic" => panic!("as asked"),
        "/later" => {
            let (response, responder) = Response::later();
            std::thread::spawn(move || responder.respond("later"));
            response
        }
        "/never" => {
            let (response, responder) = Response::later();
            responders.push(responder);
            response
        }
        _ => Response::text("plain"),
    }
}

fn start<B: Backend>(format: LogFormat) -> (Server, Paper) {
    start_with::<B>(format, Timeouts::default())
}

fn start_with<B: Backend>(format: LogFormat, timeouts: Timeouts) -> (Server, Paper) {
    let paper = Paper::default();
    let log = AccessLog::to(paper.clone(), format).expect("a thread");
    let server = serve_with::<B, _>(timeouts, Limits::default(), move || HttpServer::new(handler()).access_log(&log));
    (server, paper)
}

/// What one request leaves in the log.
fn line_of<B: Backend>(request: &str) -> String {
    let (server, paper) = start::<B>(LogFormat::Combined);
    let mut client = server.connect();
    client.send(request);
    client.answer_to(request.split(' ').next().unwrap_or_default());
    paper.line()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

on_every_backend! {
    fn every_kind_of_answer_leaves_a_line_with_its_status_and_octets<B>() {
        for (path, status, bytes) in [
            ("/", 200, 5),
            ("/stream", 200, 11),
            ("/reader", 200, 200_000),
            ("/large", 200, 300_000),
            ("/file", 200, LARGE),
            ("/none", 204, 0),
            ("/missing?a=b", 404, 10),
            ("/panic", 500, 28),
            ("/later", 200, 5),
        ] {
            let line = line_of::<B>(&get(path));
            assert_eq!(line, format!("127.0.0.1 - - \"GET {path} HTTP/1.1\" {status} {bytes} \"-\" \"-\""));
        }
    }

    fn an_answer_to_head_has_no_octets<B>() {
        for path in ["/", "/file", "/stream"] {
            let line = line_of::<B>(&format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
            assert_eq!(line, format!("127.0.0.1 - - \"HEAD {path} HTTP/1.1\" 200 0 \"-\" \"-\""));
        }
    }

    fn what_a_client_sends_cannot_forge_a_line<B>() {
        let line = line_of::<B>(
            "GET /%0A HTTP/1.0\r\nReferer: http://x/\u{e4}\"\r\nUser-Agent: a\\b\u{9b}\t\u{202e}\r\n\r\n",
        );
        let fields = r#""http://x/\xC3\xA4\x22" "a\x5Cb\xC2\x9B\x09\xE2\x80\xAE""#;
        assert_eq!(line, format!("127.0.0.1 - - \"GET /%0A HTTP/1.0\" 200 5 {fields}"));
    }

    fn requests_that_are_refused_leave_a_line_too<B>() {
        for (request, line) in [
            ("GET / HTTP/1.1\r\n\r\n", r#"127.0.0.1 - - "GET / HTTP/1.1" 400 "#),
            // How much of it has come when it is refused depends on the reads.
            ("\x1b]0;owned\x07 nonsense\r\n\r\n", r#"127.0.0.1 - - "\x1B"#),
            (
                "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n",
                r#"127.0.0.1 - - "POST / HTTP/1.1" 413 "#,
            ),
        ] {
            let own = line_of::<B>(request);
            assert!(own.starts_with(line), "{own}");
        }
    }

    fn a_head_that_is_too_slow_is_told_as_nothing<B>() {
        let timeouts = Timeouts { head: Some(Duration::from_millis(50)), ..Timeouts::default() };
        let (server, paper) = start_with::<B>(LogFormat::Combined, timeouts);
        let mut client = server.connect();
        assert_eq!(client.send("GET / HT").answer().status, 408);
        assert!(paper.line().starts_with("127.0.0.1 - - \"-\" 408 "), "{}", paper.line());
    }

    fn who_leaves_before_the_answer_is_499<B>() {
        if skipped_under_wine(RESET_IS_AN_END) {
            return;
        }
        let (server, paper) = start::<B>(LogFormat::Combined);
        let mut client = server.connect();
        client.send(get("/never"));
        // The other's line tells that this one was read.
        let mut other = server.connect();
        while paper.lines().is_empty() {
            other.send(get("/"));
            other.answer();
        }
        client.reset();
        let start = std::time::Instant::now();
        while !paper.lines().iter().any(|line| line.contains("\"GET /never HTTP/1.1\" 499 0 ")) {
            assert!(start.elapsed() < PATIENCE, "{:?}", paper.lines());
            std::thread::yield_now();
        }
    }

    fn an_answer_that_breaks_off_is_told_with_what_was_sent<B>() {
        for (path, most) in [("/short", 4), ("/beyond", 1000)] {
            let (server, paper) = start::<B>(LogFormat::Combined);
            let mut client = server.connect();
            client.send(get(path));
            let mut all = Vec::new();
            let _ = client.socket.read_to_end(&mut all);
            let line = paper.line();
            assert_eq!(line, format!("127.0.0.1 - - \"GET {path} HTTP/1.1\" 200 {most} \"-\" \"-\""));
        }
    }

    fn a_download_that_is_given_up_is_told_with_what_was_sent<B>() {
        let (server, paper) = start::<B>(LogFormat::Combined);
        let mut client = server.connect();
        client.send(get("/file"));
        client.read(100_000);
        client.reset();
        let line = paper.line();
        let bytes: u64 = line.split(' ').nth(7).and_then(|word| word.parse().ok()).expect("a number");
        assert!(line.contains(" 200 ") && (99_000..LARGE).contains(&bytes), "{line}");
    }

    fn lines_stand_in_the_order_of_the_answers<B>() {
        let (server, paper) = start::<B>(LogFormat::Combined);
        let mut client = server.connect();
        let paths = ["/1", "/file", "/2", "/stream", "/later", "/3", "/large", "/4"];
        client.send(paths.map(get).concat());
        for _ in paths {
            client.answer();
        }
        server.drain();
        let seen: Vec<String> =
            paper.lines().iter().map(|line| line.split(' ').nth(6).unwrap_or_default().to_owned()).collect();
        assert_eq!(seen, paths);
    }

    fn many_requests_of_many_clients_lose_no_line<B>() {
        let (server, paper) = start::<B>(LogFormat::Json);
        let mut clients: Vec<_> = (0..20).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.send(get("/").repeat(50));
        }
        for client in &mut clients {
            (0..50).for_each(|_| drop(client.answer()));
        }
        server.drain();
        assert_eq!(paper.lines().len(), 1000);
    }

    fn a_log_that_takes_nothing_stops_nobody_and_counts_what_is_lost<B>() {
        let paper = Paper::default();
        paper.stop(true);
        let log = AccessLog::to(paper.clone(), LogFormat::Combined).expect("a thread");
        let own = log.clone();
        let server = serve_with::<B, _>(Timeouts::default(), Limits::default(), move || {
            HttpServer::new(handler()).access_log(&own)
        });
        let mut client = server.connect();
        // Each line has more than 8,000 octets: a bound of 1 MiB is reached.
        let request = format!(
            "GET / HTTP/1.1\r\nHost: x\r\nReferer: {}\r\nUser-Agent: {}\r\n\r\n",
            "r".repeat(4000),
            "a".repeat(4000)
        );
        let mut sent = 0;
        while log.dropped() == 0 {
            client.send(&request);
            assert_eq!(client.answer().text(), "plain");
            sent += 1;
            assert!(sent < 1000, "nothing is ever dropped");
        }
        paper.stop(false);
        // And it goes on.
        client.send(get("/again"));
        client.answer();
        let start = std::time::Instant::now();
        while !paper.lines().last().is_some_and(|line| line.contains("/again")) {
            assert!(start.elapsed() < PATIENCE, "no line came");
            std::thread::yield_now();
        }
        assert_eq!(paper.lines().len() as u64 + log.dropped(), sent + 1);
    }
}

#[cfg(feature = "json")]
#[test]
fn json_has_an_object_a_line() {
    let (server, paper) = start::<serverd::r#loop::Select>(LogFormat::Json);
    let mut client = server.connect();
    client.send("GET /a?b=%22 HTTP/1.1\r\nHost: x\r\nUser-Agent: \"\\\u{e4}\t\r\n\r\n");
    client.answer();
    client.send("rubbish\r\n\r\n");
    client.answer();
    server.drain();
    let objects: Vec<serde_json::Value> =
        paper.lines().iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let [good, bad] = objects.as_slice() else { panic!("{objects:?}") };
    for (name, value) in [
        ("method", "GET".into()),
        ("target", "/a?b=%22".into()),
        ("version", "1.1".into()),
        ("status", 200.into()),
        ("bytes", 5.into()),
        ("referer", serde_json::Value::Null),
        ("user_agent", "\"\\\u{c3}\u{a4}".into()),
    ] {
        assert_eq!(good[name], value, "{name}");
    }
    assert!(good["duration_ms"].is_u64() && good["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")));
    assert_eq!(
        (&bad["method"], bad["status"].as_u64(), bad["request"].as_str()),
        (&serde_json::Value::Null, Some(400), Some("rubbish"))
    );
}

#[test]
fn a_terminal_gets_a_short_line_with_colour() {
    let paper = Paper::default();
    let log = AccessLog::to(paper.clone(), LogFormat::Short).expect("a thread").with_color(true);
    let server = serve_with::<serverd::r#loop::Select, _>(Timeouts::default(), Limits::default(), move || {
        HttpServer::new(handler()).access_log(&log)
    });
    server.connect().send(get("/large")).answer();
    server.drain();
    let lines = paper.lines();
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    let (start, end) =
        (line.find("127.0.0.1\x1b[0m GET /large \x1b[32m200\x1b[0m 292.9 KiB \x1b[2m"), line.ends_with(" ms\x1b[0m"));
    assert!(start.is_some() && end, "{line:?}");
}

#[test]
fn a_write_that_fails_leaves_whole_lines_and_goes_on() {
    /// Takes some octets, fails once, and then takes everything.
    struct Full(mpsc::Sender<Vec<u8>>, usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            let count = match self.1 {
                1 => bytes.len().min(10),
                2 => return Err(io::ErrorKind::StorageFull.into()),
                _ => bytes.len(),
            };
            self.0.send(bytes[..count].to_vec()).expect("the test reads");
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let (send, written) = mpsc::channel();
    let log = AccessLog::to(Full(send, 0), LogFormat::Combined).expect("a thread");
    let own = log.clone();
    let server = serve_with::<serverd::r#loop::Select, _>(Timeouts::default(), Limits::default(), move || {
        HttpServer::new(handler()).access_log(&own)
    });
    let mut client = server.connect();
    for path in ["/1", "/2"] {
        client.send(get(path)).answer();
        while log.dropped() == 0 {
            std::thread::yield_now();
        }
    }
    server.drain();
    assert_eq!(log.dropped(), 1);
    drop(log);
    let text = String::from_utf8(written.iter().flatten().collect()).expect("ASCII");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines.len(), lines[0]), (2, "127.0.0.1 "), "{text}");
    assert_eq!(without_time(lines[1]), "127.0.0.1 - - \"GET /2 HTTP/1.1\" 200 5 \"-\" \"-\"");
}

#[cfg(unix)]
mod process {
    use std::fs;
    use std::path::PathBuf;
    use std::time::Instant;

    use super::{get, without_time};
    use crate::harness::PATIENCE;
    use crate::process::{Running, backends, run, serverd};

    /// A name for a file that goes away with the value.
    struct Name(PathBuf);

    impl Name {
        fn new(name: &str) -> Self {
            Name(std::env::temp_dir().join(format!("serverd-log-{}-{name}", std::process::id())))
        }

        fn text(&self) -> &str {
            self.0.to_str().expect("a plain name")
        }

        fn read(&self) -> String {
            fs::read_to_string(&self.0).unwrap_or_default()
        }
    }

    impl Drop for Name {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn long_request() -> String {
        format!(
            "GET / HTTP/1.1\r\nHost: x\r\nReferer: {}\r\nUser-Agent: {}\r\n\r\n",
            "r".repeat(4000),
            "a".repeat(4000)
        )
    }

    #[test]
    fn a_file_that_was_rotated_is_opened_again_at_a_signal() {
        for backend in backends() {
            for signal in ["HUP", "USR1"] {
                let (name, old) =
                    (Name::new(&format!("{backend}-{signal}")), Name::new(&format!("{backend}-{signal}-old")));
                let server = Running::start(&["--port", "0", "--backend", backend, "--access-log", name.text()]);
                let mut client = server.connect();
                let start = Instant::now();
                client.send(get("/before")).answer();
                while name.read().is_empty() {
                    assert!(start.elapsed() < PATIENCE, "no line came");
                    std::thread::yield_now();
                }
                fs::rename(&name.0, &old.0).expect("it is there");
                server.signal(signal);
                while !name.read().contains("/after") {
                    assert!(start.elapsed() < PATIENCE, "no new file came");
                    client.send(get("/after")).answer();
                }
                client.send(get("/last")).answer();
                server.signal("TERM");
                assert_eq!(server.wait().0, Some(0));
                assert!(old.read().lines().all(|line| !line.contains("/last")));
                let last = name.read().lines().last().map(without_time);
                assert_eq!(last.as_deref(), Some("127.0.0.1 - - \"GET /last HTTP/1.1\" 200 28 \"-\" \"-\""));
            }
        }
    }

    #[test]
    fn standard_output_gets_the_lines_behind_the_start_line() {
        let server = Running::start(&["whoami", "--port", "0", "--access-log", "-", "--log-format", "json"]);
        assert!(server.line.starts_with("serverd: whoami on http://"), "{}", server.line);
        server.connect().send(get("/a")).answer();
        server.signal("TERM");
        let (code, rest) = server.wait();
        assert_eq!((code, rest.lines().count()), (Some(0), 1), "{rest}");
        assert!(rest.contains("\"target\":\"/a\""), "{rest}");
    }

    #[test]
    fn a_program_that_reads_the_start_line_reads_nothing_else() {
        let server = Running::start(&["--port", "0"]);
        server.connect().send(get("/a")).answer();
        server.signal("TERM");
        assert_eq!(server.wait(), (Some(0), String::new()));
    }

    #[test]
    fn a_reader_of_standard_output_that_stalls_stops_nobody() {
        let mut server = Running::start(&["--port", "0", "--access-log", "-"]);
        let (mut client, request) = (server.connect(), long_request());
        for _ in 0..400 {
            assert_eq!(client.send(&request).answer().status, 200);
        }
        server.signal("TERM");
        let start = Instant::now();
        while server.child.try_wait().expect("a child").is_none() {
            assert!(start.elapsed() < PATIENCE, "it waits for its reader for ever");
            std::thread::yield_now();
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_told_once_and_stops_nobody() {
        use std::io::Read as _;
        let mut server = Running::start(&["--port", "0", "--access-log", "/dev/full"]);
        let mut client = server.connect();
        for _ in 0..50 {
            assert_eq!(client.send(get("/")).answer().status, 200);
        }
        server.signal("TERM");
        let mut told = String::new();
        server.child.stderr.take().expect("piped").read_to_string(&mut told).expect("text");
        assert_eq!(told.matches("cannot write the access log").count(), 1, "{told}");
        assert_eq!(server.wait().0, Some(0));
    }

    #[test]
    fn a_log_that_cannot_be_opened_is_told_with_what_to_do() {
        let (code, told) = run(&["--port", "0", "--access-log", "/no/such/directory/log"]);
        assert_eq!(code, Some(1));
        assert!(told.contains("/no/such/directory/log") && told.contains("name a file that may be written"), "{told}");
        let (code, told) = run(&["--access-log", ""]);
        assert!(code == Some(2) && told.contains("name a file"), "{told}");
    }

    #[test]
    fn the_environment_tells_the_same() {
        let name = Name::new("environment");
        let mut command = serverd(&["--port", "0"]);
        command.env("SERVERD_ACCESS_LOG", name.text()).env("SERVERD_LOG_FORMAT", "json");
        let server = Running::spawn(&mut command);
        server.connect().send(get("/a")).answer();
        server.signal("TERM");
        assert_eq!(server.wait().0, Some(0));
        assert!(name.read().starts_with("{\"time\":\""), "{}", name.read());
    }
}

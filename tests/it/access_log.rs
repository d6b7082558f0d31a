//! Access log: one complete, accurate line per request, without ever blocking the server.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use serverd::{AccessLog, HttpServer, LogFormat, LoopLimits, Request, Response, StatusCode, Timeouts};

use crate::harness::{
    Backend, RESET_READS_AS_EOF, Server, on_every_backend, retry, serve_with, skipped_under_wine, wait_for,
};

const LARGE: u64 = 16 << 20;

/// The bytes written, and whether writing is blocked.
type Shared = (Mutex<(Vec<u8>, bool)>, Condvar);

/// A writer whose output a test can read, and which it can block.
#[derive(Clone, Default)]
pub(crate) struct Capture(Arc<Shared>);

impl Write for Capture {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (state, changed) = &*self.0;
        let mut state =
            changed.wait_while(state.lock().expect("not poisoned"), |(_, blocked)| *blocked).expect("not poisoned");
        state.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Capture {
    fn set_blocked(&self, blocked: bool) {
        self.0.0.lock().expect("not poisoned").1 = blocked;
        self.0.1.notify_all();
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        let state = self.0.0.lock().expect("not poisoned");
        let text = String::from_utf8(state.0.clone()).expect("UTF-8");
        assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
        assert!(!text.contains(|char: char| char.is_control() && char != '\n' && char != '\x1b'), "{text:?}");
        text.lines().map(ToOwned::to_owned).collect()
    }

    /// Returns the only line, without its time. Waits for it, as it may be written shortly after the response.
    pub(crate) fn line(&self) -> String {
        retry(|| match self.lines().as_slice() {
            [] => Err("no line was logged"),
            [line] => Ok(without_time(line)),
            more => panic!("more than one line: {more:?}"),
        })
    }
}

/// Removes the time. Returns a line such as `127.0.0.1 - - "GET / HTTP/1.1" 200 5 "-" "-"`.
fn without_time(line: &str) -> String {
    let (before, rest) = line.split_once('[').expect("start of the time");
    let (time, after) = rest.split_once("] ").expect("end of the time");
    assert!(time.len() == 26 && time.ends_with(" +0000"), "{time}");
    format!("{before}{after}")
}

fn sparse_file() -> Arc<File> {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    let path = std::env::temp_dir().join(format!("serverd-sparse-{}-{number}", std::process::id()));
    File::create(&path).and_then(|file| file.set_len(LARGE)).expect("creating a sparse file");
    let file = File::open(&path).expect("opening the file");
    let _ = std::fs::remove_file(&path);
    Arc::new(file)
}

fn handler() -> impl FnMut(&Request<'_>) -> Response {
    let file = sparse_file();
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
        "/panic" => panic!("injected"),
        "/deferred" => {
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

pub(crate) fn start<B: Backend>(format: LogFormat) -> (Server, Capture) {
    start_with::<B>(format, Timeouts::default())
}

fn start_with<B: Backend>(format: LogFormat, timeouts: Timeouts) -> (Server, Capture) {
    let capture = Capture::default();
    let log = AccessLog::to(capture.clone(), format).expect("starting the writer thread");
    let server =
        serve_with::<B, _>(timeouts, LoopLimits::default(), move || HttpServer::new(handler()).access_log(&log));
    (server, capture)
}

/// Returns the log line of one request.
pub(crate) fn line_of<B: Backend>(request: &str) -> String {
    let (server, capture) = start::<B>(LogFormat::Combined);
    let mut client = server.connect();
    client.send(request);
    client.response_to(request.split(' ').next().unwrap_or_default());
    capture.line()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

on_every_backend! {
    over_tls_too:

    fn every_kind_of_response_is_logged_with_its_status_and_length<B>() {
        for (path, status, bytes) in [
            ("/", 200, 5),
            ("/stream", 200, 11),
            ("/reader", 200, 200_000),
            ("/large", 200, 300_000),
            ("/file", 200, LARGE),
            ("/none", 204, 0),
            ("/missing?a=b", 404, 10),
            ("/panic", 500, 22),
            ("/deferred", 200, 5),
        ] {
            let line = line_of::<B>(&get(path));
            assert_eq!(line, format!("127.0.0.1 - - \"GET {path} HTTP/1.1\" {status} {bytes} \"-\" \"-\""));
        }
    }

    fn a_response_to_head_is_logged_with_length_zero<B>() {
        for path in ["/", "/file", "/stream"] {
            let line = line_of::<B>(&format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
            assert_eq!(line, format!("127.0.0.1 - - \"HEAD {path} HTTP/1.1\" 200 0 \"-\" \"-\""));
        }
    }

    fn clients_cannot_forge_log_lines<B>() {
        let line = line_of::<B>(
            "GET /%0A HTTP/1.0\r\nReferer: http://x/\u{e4}\"\r\nUser-Agent: a\\b\u{9b}\t\u{202e}\r\n\r\n",
        );
        let headers = r#""http://x/\xC3\xA4\x22" "a\x5Cb\xC2\x9B\x09\xE2\x80\xAE""#;
        assert_eq!(line, format!("127.0.0.1 - - \"GET /%0A HTTP/1.0\" 200 5 {headers}"));
    }

    fn rejected_requests_are_logged<B>() {
        for (request, line) in [
            ("GET / HTTP/1.1\r\n\r\n", r#"127.0.0.1 - - "GET / HTTP/1.1" 400 "#),
            // The logged part depends on how much of the line the server has read.
            ("\x1b]0;owned\x07 nonsense\r\n\r\n", r#"127.0.0.1 - - "\x1B"#),
            (
                "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n",
                r#"127.0.0.1 - - "POST / HTTP/1.1" 413 "#,
            ),
        ] {
            let logged = line_of::<B>(request);
            assert!(logged.starts_with(line), "{logged}");
        }
    }

    fn a_timed_out_request_head_is_logged_as_a_dash<B>() {
        let timeouts = Timeouts::default().head(Duration::from_millis(50));
        let (server, capture) = start_with::<B>(LogFormat::Combined, timeouts);
        let mut client = server.connect();
        assert_eq!(client.send("GET / HT").response().status, 408);
        assert!(capture.line().starts_with("127.0.0.1 - - \"-\" 408 "), "{}", capture.line());
    }

    fn a_client_that_disconnects_before_the_response_is_logged_as_499<B>() {
        if skipped_under_wine(RESET_READS_AS_EOF) {
            return;
        }
        let (server, capture) = start::<B>(LogFormat::Combined);
        let mut client = server.connect();
        client.send(get("/never"));
        // Once another client's request is logged, this one has been read too.
        let mut other = server.connect();
        wait_for("no line was logged", || {
            other.send(get("/")).response();
            !capture.lines().is_empty()
        });
        client.reset();
        retry(|| {
            let lines = capture.lines();
            let is_logged = lines.iter().any(|line| line.contains("\"GET /never HTTP/1.1\" 499 0 "));
            if is_logged { Ok(()) } else { Err(format!("{lines:?}")) }
        });
    }

    fn a_truncated_response_is_logged_with_the_bytes_sent<B>() {
        for (path, bytes) in [("/short", 4), ("/beyond", 1000)] {
            let (server, capture) = start::<B>(LogFormat::Combined);
            let mut client = server.connect();
            client.send(get(path));
            let mut all = Vec::new();
            let _ = client.try_read_to_end(&mut all);
            drop(client);
            let line = capture.line();
            assert_eq!(line, format!("127.0.0.1 - - \"GET {path} HTTP/1.1\" 200 {bytes} \"-\" \"-\""));
        }
    }

    fn an_aborted_download_is_logged_with_the_bytes_sent<B>() {
        let (server, capture) = start::<B>(LogFormat::Combined);
        let mut client = server.connect();
        client.send(get("/file"));
        client.read(100_000);
        client.reset();
        let line = capture.line();
        let bytes: u64 = line.split(' ').nth(7).and_then(|word| word.parse().ok()).expect("a number");
        assert!(line.contains(" 200 ") && (99_000..LARGE).contains(&bytes), "{line}");
    }

    fn lines_are_in_the_order_of_the_responses<B>() {
        let (server, capture) = start::<B>(LogFormat::Combined);
        let mut client = server.connect();
        let paths = ["/1", "/file", "/2", "/stream", "/deferred", "/3", "/large", "/4"];
        client.send(paths.map(get).concat());
        for _ in paths {
            client.response();
        }
        server.drain();
        let seen: Vec<String> =
            capture.lines().iter().map(|line| line.split(' ').nth(6).unwrap_or_default().to_owned()).collect();
        assert_eq!(seen, paths);
    }

    fn no_line_is_lost_with_many_concurrent_clients<B>() {
        let (server, capture) = start::<B>(LogFormat::Json);
        let mut clients: Vec<_> = (0..20).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.send(get("/").repeat(50));
        }
        for client in &mut clients {
            (0..50).for_each(|_| drop(client.response()));
        }
        server.drain();
        assert_eq!(capture.lines().len(), 1000);
    }

    fn a_blocked_log_does_not_block_the_server_and_counts_dropped_lines<B>() {
        let capture = Capture::default();
        capture.set_blocked(true);
        let log = AccessLog::to(capture.clone(), LogFormat::Combined).expect("starting the writer thread");
        let server_log = log.clone();
        let server = serve_with::<B, _>(Timeouts::default(), LoopLimits::default(), move || {
            HttpServer::new(handler()).access_log(&server_log)
        });
        let mut client = server.connect();
        // Each line is longer than 8,000 bytes, so the limit of 1 MiB is reached.
        let request = format!(
            "GET / HTTP/1.1\r\nHost: x\r\nReferer: {}\r\nUser-Agent: {}\r\n\r\n",
            "r".repeat(4000),
            "a".repeat(4000)
        );
        let mut sent = 0;
        while log.dropped() == 0 {
            client.send(&request);
            assert_eq!(client.response().text(), "plain");
            sent += 1;
            assert!(sent < 1000, "no line was dropped");
        }
        capture.set_blocked(false);
        // Until then, a further line may be dropped.
        wait_for("the lines are not written", || capture.lines().len() as u64 + log.dropped() == sent);
        // Logging continues.
        client.send(get("/again"));
        client.response();
        wait_for("no line was logged", || capture.lines().last().is_some_and(|line| line.contains("/again")));
        assert_eq!(capture.lines().len() as u64 + log.dropped(), sent + 1);
    }
}

#[test]
fn the_short_format_is_colored() {
    let capture = Capture::default();
    let log = AccessLog::to(capture.clone(), LogFormat::Short).expect("starting the writer thread").with_color(true);
    let server = serve_with::<serverd::Select, _>(Timeouts::default(), LoopLimits::default(), move || {
        HttpServer::new(handler()).access_log(&log)
    });
    server.connect().send(get("/large")).response();
    server.drain();
    let lines = capture.lines();
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    let (start, end) =
        (line.find("127.0.0.1\x1b[0m GET /large \x1b[32m200\x1b[0m 292.9 KiB \x1b[2m"), line.ends_with(" ms\x1b[0m"));
    assert!(start.is_some() && end, "{line:?}");
}

#[test]
fn logging_continues_with_intact_lines_after_a_failed_write() {
    /// Accepts some bytes, fails once, and then accepts everything.
    struct FailsOnce(mpsc::Sender<Vec<u8>>, usize);

    impl Write for FailsOnce {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            let count = match self.1 {
                1 => bytes.len().min(10),
                2 => return Err(io::ErrorKind::StorageFull.into()),
                _ => bytes.len(),
            };
            self.0.send(bytes[..count].to_vec()).expect("the receiver is alive");
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let (send, written) = mpsc::channel();
    let log = AccessLog::to(FailsOnce(send, 0), LogFormat::Combined).expect("starting the writer thread");
    let server_log = log.clone();
    let server = serve_with::<serverd::Select, _>(Timeouts::default(), LoopLimits::default(), move || {
        HttpServer::new(handler()).access_log(&server_log)
    });
    let mut client = server.connect();
    for path in ["/1", "/2"] {
        client.send(get(path)).response();
        wait_for("no line was dropped", || log.dropped() > 0);
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

    use super::{get, without_time};
    use crate::harness::wait_for;
    use crate::process::{Running, backends, run, serverd};

    /// A temporary file path; the file is removed on drop.
    struct TempPath(PathBuf);

    impl TempPath {
        fn new(name: &str) -> Self {
            TempPath(std::env::temp_dir().join(format!("serverd-log-{}-{name}", std::process::id())))
        }

        fn text(&self) -> &str {
            self.0.to_str().expect("UTF-8")
        }

        fn read(&self) -> String {
            fs::read_to_string(&self.0).unwrap_or_default()
        }
    }

    impl Drop for TempPath {
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
    fn a_signal_reopens_a_rotated_log_file() {
        for backend in backends() {
            for signal in ["HUP", "USR1"] {
                let (log, rotated) =
                    (TempPath::new(&format!("{backend}-{signal}")), TempPath::new(&format!("{backend}-{signal}-old")));
                let server = Running::start(&["--port", "0", "--backend", backend, "--access-log", log.text()]);
                let mut client = server.connect();
                client.send(get("/before")).response();
                wait_for("no line was logged", || !log.read().is_empty());
                fs::rename(&log.0, &rotated.0).expect("renaming the log");
                server.signal(signal);
                wait_for("the log was not reopened", || {
                    client.send(get("/after")).response();
                    log.read().contains("/after")
                });
                client.send(get("/last")).response();
                server.signal("TERM");
                assert_eq!(server.wait().0, Some(0));
                assert!(rotated.read().lines().all(|line| !line.contains("/last")));
                let last = log.read().lines().last().map(without_time);
                assert_eq!(last.as_deref(), Some("127.0.0.1 - - \"GET /last HTTP/1.1\" 200 28 \"-\" \"-\""));
            }
        }
    }

    #[test]
    fn log_lines_on_standard_output_follow_the_start_line() {
        let server = Running::start(&["whoami", "--port", "0", "--access-log", "-", "--log-format", "json"]);
        assert!(server.line.starts_with("serverd: whoami on http://"), "{}", server.line);
        server.connect().send(get("/a")).response();
        server.signal("TERM");
        let (code, rest) = server.wait();
        assert_eq!((code, rest.lines().count()), (Some(0), 1), "{rest}");
        assert!(rest.contains("\"target\":\"/a\""), "{rest}");
    }

    #[test]
    fn without_an_access_log_standard_output_has_only_the_start_line() {
        let server = Running::start(&["--port", "0"]);
        server.connect().send(get("/a")).response();
        server.signal("TERM");
        assert_eq!(server.wait(), (Some(0), String::new()));
    }

    #[test]
    fn a_stalled_reader_of_standard_output_does_not_block_the_server() {
        let mut server = Running::start(&["--port", "0", "--access-log", "-"]);
        let (mut client, request) = (server.connect(), long_request());
        for _ in 0..400 {
            assert_eq!(client.send(&request).response().status, 200);
        }
        server.signal("TERM");
        wait_for("the server did not exit", || server.child.try_wait().expect("a child").is_some());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_reported_once_and_does_not_block_the_server() {
        let server = Running::start(&["--port", "0", "--access-log", "/dev/full"]);
        let mut client = server.connect();
        for _ in 0..50 {
            assert_eq!(client.send(get("/")).response().status, 200);
        }
        let stderr = server.stop_and_log();
        assert_eq!(stderr.matches("cannot write to the access log").count(), 1, "{stderr}");
    }

    #[test]
    fn a_log_that_cannot_be_opened_is_reported_with_advice() {
        let (code, stderr) = run(&["--port", "0", "--access-log", "/no/such/directory/log"]);
        assert_eq!(code, Some(1));
        assert!(stderr.contains("/no/such/directory/log") && stderr.contains("specify a writable file"), "{stderr}");
        let (code, stderr) = run(&["--access-log", ""]);
        assert!(code == Some(2) && stderr.contains("missing file name"), "{stderr}");
    }

    #[test]
    fn environment_variables_configure_the_log() {
        let log = TempPath::new("environment");
        let mut command = serverd(&["--port", "0"]);
        command.env("SERVERD_ACCESS_LOG", log.text()).env("SERVERD_LOG_FORMAT", "json");
        let server = Running::spawn(&mut command);
        server.connect().send(get("/a")).response();
        server.signal("TERM");
        assert_eq!(server.wait().0, Some(0));
        assert!(log.read().starts_with("{\"time\":\""), "{}", log.read());
    }
}

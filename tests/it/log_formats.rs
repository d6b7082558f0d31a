//! The formats of the access log, the selection of requests, and the ids of requests.

use serverd::{
    AccessLog, ClientIpHeader, HttpServer, LogFormat, LogFormatError, LoopLimits, Request, Response, StatusCode,
    Timeouts,
};

use crate::access_log::{Capture, line_of, start};
use crate::harness::{Backend, Server, on_every_backend, serve_with};

/// Starts a server whose log is changed by `change`.
fn start_changed<B: Backend>(
    change: impl FnOnce(AccessLog) -> Result<AccessLog, LogFormatError>,
    handler: impl FnMut(&Request<'_>) -> Response + Send + 'static,
) -> (Server, Capture) {
    let capture = Capture::default();
    let log = AccessLog::to(capture.clone(), LogFormat::Combined).expect("starting the writer thread");
    let log = change(log).expect("valid");
    let server = serve_with::<B, _>(Timeouts::default(), LoopLimits::default(), move || {
        HttpServer::new(handler).access_log(&log)
    });
    (server, capture)
}

on_every_backend! {
    fn the_json_format_has_one_object_per_line<B>() {
        let (server, capture) = start::<B>(LogFormat::Json);
        let mut client = server.connect();
        let trace = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let lines = format!("Host: x\r\nAuthorization: Basic YWxpY2U6c2VjcmV0\r\n{trace}\r\nContent-Length: 3");
        client.send(format!("POST /a?b=%22 HTTP/1.1\r\n{lines}\r\nUser-Agent: \"\\\u{e4}\t\r\n\r\nabc"));
        client.response();
        client.send("rubbish\r\n\r\n");
        client.response();
        drop(client);
        server.drain();
        let objects: Vec<serde_json::Value> =
            capture.lines().iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let [good, bad] = objects.as_slice() else { panic!("{objects:?}") };
        for (name, value) in [
            ("method", "POST".into()),
            ("target", "/a?b=%22".into()),
            ("protocol", "HTTP/1.1".into()),
            ("host", "x".into()),
            ("scheme", "http".into()),
            ("client", "127.0.0.1".into()),
            ("user", "alice".into()),
            ("status", 200.into()),
            ("bytes_in", 3.into()),
            ("bytes_out", 5.into()),
            ("end", "complete".into()),
            ("worker", 0.into()),
            ("connection", 1.into()),
            ("request_number", 1.into()),
            ("tls", serde_json::Value::Null),
            ("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736".into()),
            ("referer", serde_json::Value::Null),
            ("user_agent", "\"\\\u{e4}".into()),
        ] {
            assert_eq!(good[name], value, "{name}");
        }
        assert!(capture.lines()[0].contains('\u{e4}'), "UTF-8 is not escaped");
        let text = |name: &str| good[name].as_str().unwrap_or_default().to_owned();
        assert!(text("peer").starts_with("127.0.0.1:") && text("id").len() == 32, "{good}");
        let time = text("time");
        assert!(time.len() == 24 && time.ends_with('Z') && time.as_bytes()[19] == b'.', "{time}");
        let (duration, first_byte) = (good["duration"].as_f64(), good["first_byte"].as_f64());
        assert!(duration >= first_byte && first_byte >= Some(0.0), "{good}");
        assert_eq!(
            (&bad["method"], bad["status"].as_u64(), bad["request"].as_str()),
            (&serde_json::Value::Null, Some(400), Some("rubbish"))
        );
    }

    fn the_combined_format_has_the_user_of_basic_authentication<B>() {
        let request = "GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Basic YWxpY2U6c2VjcmV0\r\n\r\n";
        let line = line_of::<B>(request);
        assert_eq!(line, "127.0.0.1 - alice \"GET / HTTP/1.1\" 200 5 \"-\" \"-\"");
    }

    fn a_template_has_the_variables_of_nginx<B>() {
        for (template, expected) in [
            ("$remote_addr|$request_method|$request_uri|$uri|$args", "127.0.0.1|POST|/a%20b?c=d|/a%20b|c=d"),
            ("$server_protocol $scheme $https $host $http_host", "HTTP/1.1 http - x:80 x:80"),
            ("$status $body_bytes_sent $body_bytes_received ${request_completion}", "200 5 4 OK"),
            ("$http_x_list|$http_missing|$remote_user", "a\\x22b|-|-"),
            ("$connection $connection_requests $worker $ssl_protocol $end", "1 1 7 - complete"),
            ("{\"list\":\"$http_x_list\",\"missing\":\"$http_missing\"}", "{\"list\":\"a\\\"b\",\"missing\":\"\"}"),
        ] {
            let (server, capture) = start_changed::<B>(|log| log.worker(7).template(template), |_| Response::text("plain"));
            let head = "POST /a%20b?c=d HTTP/1.1\r\nHost: x:80\r\nX-List: a\"b\r\nTransfer-Encoding: chunked";
            server.connect().send(format!("{head}\r\n\r\n1\r\na\r\n3\r\nbcd\r\n0\r\n\r\n")).response();
            server.drain();
            assert_eq!(capture.lines(), [expected], "{template}");
        }
    }

    fn a_response_at_once_and_a_later_one_have_the_same_line<B>() {
        // More headers than are found in one pass.
        let headers = (0..16).map(|number| format!(" $http_h{number}")).collect::<Vec<_>>().concat();
        let template = format!("$remote_addr $connection $host $remote_user $request $status $body_bytes_sent $request_length $end{headers}");
        let handler = |request: &Request<'_>| match request.path() {
            "/later" => Response::stream(["plain"]).length(5),
            _ => Response::text("plain"),
        };
        let (server, capture) = start_changed::<B>(move |log| log.template(&template), handler);
        let mut client = server.connect();
        let fields = |number| format!("H{number}: v{number}\r\nh{number}: second\r\n");
        let fields = (0..16).rev().map(fields).collect::<Vec<_>>().concat();
        let fields = format!("Authorization: Basic YWxpY2U6c2VjcmV0\r\n{fields}Host: x");
        for path in ["/later", "/now--"] {
            client.send(format!("GET {path} HTTP/1.1\r\n{fields}\r\n\r\n")).response();
        }
        // Two requests in one batch.
        client.send(format!("GET /now-- HTTP/1.1\r\n{fields}\r\n\r\n").repeat(2));
        client.response();
        client.response();
        server.drain();
        let lines = capture.lines();
        let values = (0..16).map(|number| format!(" v{number}")).collect::<Vec<_>>().concat();
        assert!(lines[0].starts_with("127.0.0.1 1 x alice GET /later HTTP/1.1 200 5 "), "{}", lines[0]);
        assert!(lines[0].ends_with(&format!(" complete{values}")), "{}", lines[0]);
        assert_eq!(lines[1..], [&*lines[0].replace("/later", "/now--"); 3]);
    }

    fn times_of_responses_at_once_are_those_of_their_handlers<B>() {
        const PAUSE: std::time::Duration = std::time::Duration::from_millis(20);
        let handler = |request: &Request<'_>| {
            if request.path() == "/slow" {
                std::thread::sleep(PAUSE);
            }
            Response::text("plain")
        };
        let (server, capture) = start_changed::<B>(|log| log.template("$uri $duration $first_byte_time $msec"), handler);
        let mut client = server.connect();
        client.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2));
        client.response();
        client.response();
        server.drain();
        let lines = capture.lines();
        assert_eq!(lines.len(), 2);
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            let seconds: Vec<f64> = words[1..].iter().map(|word| word.parse().expect("a number")).collect();
            assert!(words[0] == "/slow" && seconds[0] >= PAUSE.as_secs_f64() && words[1] == words[2], "{line}");
            assert!(seconds[2] > 1e9, "{line}");
        }
    }

    fn only_the_selected_requests_are_logged<B>() {
        let logged = |change: fn(AccessLog) -> Result<AccessLog, LogFormatError>| {
            let handler = |request: &Request<'_>| match request.path() {
                "/fails" => Response::from(StatusCode::INTERNAL_SERVER_ERROR),
                _ => Response::text("plain"),
            };
            let (server, capture) = start_changed::<B>(move |log| change(log)?.template("$request_uri $http_referer"), handler);
            let mut client = server.connect();
            for path in ["/healthz", "/a.png", "/b?c=d", "/fails", "/e"] {
                client.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\nReferer: http://x/?y\r\n\r\n")).response();
            }
            server.drain();
            capture.lines().join("|").replace(" http://x/?y", "")
        };
        assert_eq!(logged(Ok), "/healthz|/a.png|/b?c=d|/fails|/e");
        assert_eq!(logged(|log| log.skip("/healthz")?.skip("*.png")), "/b?c=d|/fails|/e");
        assert_eq!(logged(|log| log.skip("10.0.0.0/8,::1")), "/healthz|/a.png|/b?c=d|/fails|/e");
        assert_eq!(logged(|log| log.skip("loopback")), "");
        assert_eq!(logged(|log| Ok(log.sample(3))), "/healthz|/fails|/e");
        let without_query = "/healthz http://x/|/a.png http://x/|/b http://x/|/fails http://x/|/e http://x/";
        assert_eq!(logged(|log| Ok(log.drop_query(true))), without_query);
    }

    fn a_request_id_is_in_the_response_and_the_log<B>() {
        for (trusted, is_kept) in [("loopback", true), ("10.0.0.0/8", false)] {
            let capture = Capture::default();
            let log = AccessLog::to(capture.clone(), LogFormat::Json).expect("starting the writer thread");
            let server = serve_with::<B, _>(Timeouts::default(), LoopLimits::default(), move || {
                let handler = |request: &Request<'_>| request.request_id().expect("an id").to_string();
                HttpServer::new(handler)
                    .access_log(&log)
                    .trusted_proxies(&trusted.parse().expect("valid"), ClientIpHeader::XForwardedFor)
                    .request_id(serverd::http::HeaderName::from_static("x-request-id"))
            });
            let mut client = server.connect();
            client.send("GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: abc-1\r\n\r\n");
            let response = client.response();
            let id = response.header("x-request-id").expect("an id").to_owned();
            assert_eq!((id == "abc-1", response.text()), (is_kept, id.clone()));
            client.send("GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: not valid\r\n\r\n");
            assert_eq!(client.response().header("x-request-id").expect("an id").len(), 32);
            client.send("rubbish\r\n\r\n");
            let rejected = client.response().header("x-request-id").expect("an id").to_owned();
            drop(client);
            server.drain();
            let lines = capture.lines();
            assert!(lines[0].contains(&format!("\"id\":\"{id}\"")), "{lines:?}");
            assert!(lines[2].contains(&format!("\"id\":\"{rejected}\"")), "{lines:?}");
        }
    }
}

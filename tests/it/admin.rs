//! The admin listener of the command, and the health checks of the main port.

use crate::process::run;

#[test]
fn an_admin_address_is_checked() {
    for (address, advice) in [("9090", "ADDR:PORT"), ("unix:", "missing path")] {
        let (code, stderr) = run(&["--admin", address]);
        assert!(code == Some(2) && stderr.contains(advice), "{stderr}");
    }
    let (code, stderr) = run(&["--port", "0", "--admin", "192.0.2.1:0"]);
    assert!(code == Some(1) && stderr.contains("--admin: cannot listen on 192.0.2.1:0"), "{stderr}");
}

#[cfg(unix)]
mod unix {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    use http::HeaderName;
    use serverd::server::{AdminAddress, Backend, Config, Metrics};
    use serverd::{BodyMode, Handler, HttpServer, Request, RequestHead, Response, Router};

    use crate::harness::{Client, WAIT_MAX, retry, wait_for};
    use crate::process::{Running, backends};

    /// A user with the password "wonderland", and a low cost.
    const USER: &str = "alice:$2y$05$nF4wGCaEtRacYiOVnrhaQeX.3xDjiQ/U/lAOzoim86wOywsVSaKAy";

    /// Streams bodies, and suspends requests without one.
    struct Later;

    impl Handler for Later {
        fn head(&mut self, _: &RequestHead<'_>) -> BodyMode {
            BodyMode::fold(100, 0, |sum, piece| *sum += piece.len(), |sum| format!("received {sum}\n"))
        }

        fn call(&mut self, request: &Request<'_>) -> Response {
            if request.extension::<()>().is_some() {
                return "resumed\n".into();
            }
            let (response, responder) = Response::suspend();
            std::thread::spawn(move || responder.resume(()));
            response
        }
    }

    fn get(socket: &Path, target: &str) -> String {
        let mut stream = UnixStream::connect(socket).expect("a connection");
        stream.set_read_timeout(Some(WAIT_MAX)).expect("the socket is open");
        let request = format!("GET {target} HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("sending");
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("a response");
        response
    }

    /// Returns the value of a sample.
    fn sample<T: std::str::FromStr>(text: &str, name: &str) -> Option<T> {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    #[test]
    fn the_health_path_precedes_routing_authentication_and_the_list_of_hosts() {
        for backend in backends() {
            let directory = tempfile::tempdir().expect("a directory");
            std::fs::write(directory.path().join("healthz"), "a file").expect("writing");
            let (root, log) = (directory.path().to_str().expect("UTF-8"), directory.path().join("log"));
            let log_file = log.to_str().expect("UTF-8");
            let mut arguments = vec!["files", root, "--port", "0", "--backend", backend, "--access-log", log_file];
            arguments.extend([
                "--health-path",
                "/healthz",
                "--allow-host",
                "example.com",
                "--request-id",
                "X-Id",
                "--auth",
                USER,
            ]);
            let server = Running::start(&arguments);
            let mut client = server.connect();
            for (method, path, code) in
                [("GET", "/", 421), ("GET", "/healthz", 200), ("HEAD", "/healthz", 200), ("POST", "/healthz", 405)]
            {
                client.send(format!("{method} {path} HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n"));
                let response = client.response_to(method);
                assert_eq!(
                    (response.status, response.header("x-id").is_some()),
                    (code, path == "/"),
                    "{method} {path}"
                );
                assert!(path == "/" || response.text() != "a file");
            }
            drop(client);
            drop(server.stop_and_log());
            let log = std::fs::read_to_string(&log).expect("a log");
            assert!(log.contains("\"GET / HTTP/1.1\" 421") && !log.contains("healthz"), "{log}");
        }
    }

    #[test]
    fn metrics_count_requests_and_connections() {
        for backend in backends() {
            let directory = tempfile::tempdir().expect("a directory");
            let socket = directory.path().join("admin");
            let admin = format!("unix:{}", socket.display());
            let arguments = ["whoami", "--port", "0", "--workers", "2", "--backend", backend, "--admin", &admin];
            let server = Running::start(&arguments);
            let mut client = server.connect();
            client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").response();
            client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc").response();
            client.send("BREW / HTTP/1.1\r\nHost: x\r\n\r\n").response();
            let text = get(&socket, "/metrics");
            assert!(text.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{text}");
            let count = "http_server_request_duration_seconds_count";
            for (name, value) in [
                (format!("{count}{{method=\"GET\",code=\"200\"}}"), 1.0),
                (format!("{count}{{method=\"POST\",code=\"200\"}}"), 1.0),
                (format!("{count}{{method=\"_OTHER\",code=\"501\"}}"), 1.0),
                ("http_server_active_requests".into(), 0.0),
                ("http_server_request_body_bytes_total".into(), 3.0),
                ("serverd_workers".into(), 2.0),
                ("serverd_draining".into(), 0.0),
            ] {
                assert_eq!(sample(&text, &name), Some(value), "{name}: {text}");
            }
            // A loop publishes its counters at the end of each turn.
            let open = |text: &str| -> f64 {
                let lines = text.lines().filter(|line| line.starts_with("serverd_connections{"));
                lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
            };
            wait_for("the connection is not counted", || open(&get(&socket, "/metrics")) >= 1.0);
            assert!(get(&socket, "/readyz?verbose").contains("[+] serving: ok\n"));
            assert!(get(&socket, "/livez").starts_with("HTTP/1.1 200 "));
            drop(client);
            drop(server.stop_and_log());
            assert!(!socket.exists(), "the socket is removed");
        }
    }

    #[test]
    fn metrics_count_how_the_file_cache_is_used() {
        for backend in backends() {
            let directory = tempfile::tempdir().expect("a directory");
            let (socket, site) = (directory.path().join("admin"), directory.path().join("site"));
            std::fs::create_dir(&site).expect("a directory");
            for (name, len) in [("a", 3000), ("b", 3000), ("large", 100_000)] {
                std::fs::write(site.join(name), vec![b'x'; len]).expect("writing");
            }
            let (root, admin) = (site.to_str().expect("UTF-8"), format!("unix:{}", socket.display()));
            let arguments = ["files", root, "--port", "0", "--backend", backend, "--admin", &admin];
            // Without and with layers. There is room for one of the small files.
            for layer in [&[][..], &["--cors"]] {
                let server = Running::start(&[&arguments[..], &["--file-cache", "4KiB"], layer].concat());
                let mut client = server.connect();
                let mut request = |path: &str| {
                    client.send(format!("GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n"));
                    assert_eq!(client.response().status, 200);
                };
                let cache = |name: &str, label: &str| -> u64 {
                    let name = format!("serverd_file_cache_{name}{{worker=\"0\"{label}}}");
                    let text = get(&socket, "/metrics");
                    sample(&text, &name).unwrap_or_else(|| panic!("{name}: {text}"))
                };
                ["a", "b", "large"].into_iter().for_each(&mut request);
                assert_eq!(cache("lookups_total", ",result=\"miss\""), 3);
                assert_eq!(cache("evictions_total", ""), 1);
                assert_eq!((cache("entries", ",kind=\"memory\""), cache("entries", ",kind=\"open\"")), (1, 1));
                assert!((3000..4096).contains(&cache("bytes", "")) && cache("bytes_max", "") == 4096);
                // A file that has changed recently is loaded again, and one is validated once a second; most are hits.
                let mut count = 3;
                let lookups = || {
                    ["hit", "revalidated", "miss"]
                        .map(|result| cache("lookups_total", &format!(",result=\"{result}\"")))
                };
                retry(|| {
                    request("b");
                    request("large");
                    count += 2;
                    let lookups = lookups();
                    if lookups[0] >= 10 && lookups[1] >= 1 { Ok(()) } else { Err(format!("{lookups:?}")) }
                });
                assert_eq!(lookups().iter().sum::<u64>(), count);
                drop(server);
            }
        }
    }

    #[test]
    fn metrics_count_the_results_of_authentication() {
        for backend in backends() {
            let directory = tempfile::tempdir().expect("a directory");
            std::fs::write(directory.path().join("a"), "text").expect("writing");
            let (root, socket) = (directory.path().to_str().expect("UTF-8"), directory.path().join("admin"));
            let admin = format!("unix:{}", socket.display());
            let arguments = ["files", root, "--port", "0", "--backend", backend, "--admin", &admin, "--auth", USER];
            let server = Running::start(&arguments);
            let mut client = server.connect();
            // alice:wonderland, alice:guess, and what is not Base64.
            for (credentials, status) in [
                ("YWxpY2U6d29uZGVybGFuZA==", 200),
                ("YWxpY2U6d29uZGVybGFuZA==", 200),
                ("YWxpY2U6Z3Vlc3M=", 401),
                ("!", 401),
            ] {
                client.send(format!("GET /a HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {credentials}\r\n\r\n"));
                assert_eq!(client.response().status, status, "{credentials}");
            }
            assert_eq!(client.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n").response().status, 401);
            let text = get(&socket, "/metrics");
            for (result, count) in [("success", 2.0), ("failure", 2.0), ("missing", 1.0), ("busy", 0.0)] {
                let name = format!("serverd_auth_total{{result=\"{result}\"}}");
                assert_eq!(sample(&text, &name), Some(count), "{name}: {text}");
            }
            drop(server);
        }
    }

    #[test]
    fn the_expiry_of_certificates_follows_a_reload() {
        for backend in backends() {
            let directory = tempfile::tempdir().expect("a directory");
            let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
            let copy = |name: &str| {
                for suffix in ["pem", "key"] {
                    std::fs::copy(format!("tests/tls/{name}.{suffix}"), path(&format!("used.{suffix}")))
                        .expect("a copy");
                }
            };
            copy("a");
            let (socket, chain) = (directory.path().join("admin"), path("used.pem"));
            let admin = format!("unix:{}", socket.display());
            let arguments = ["whoami", "--port", "0", "--backend", backend, "--admin", &admin];
            let server =
                Running::start(&[&arguments[..], &["--tls-cert", &chain, "--tls-key", &path("used.key")]].concat());
            // The end of the validity as openssl shows it.
            let expiry = |name: &str| {
                let name = format!("serverd_tls_certificate_expiry_seconds{{name=\"{name}\",file=\"{chain}\"}}");
                sample(&get(&socket, "/metrics"), &name)
            };
            assert_eq!((expiry("a.example"), expiry("b.example")), (Some(4_949_433_711.0), None));
            copy("b");
            server.signal("HUP");
            wait_for("the new certificate is not reported", || expiry("b.example") == Some(4_949_433_712.0));
            assert_eq!(expiry("a.example"), None);
            drop(server);
        }
    }

    #[test]
    fn requests_through_a_router_are_counted_by_route() {
        for (backend, has_ids) in [(Backend::Select, false), (Backend::Auto, false), (Backend::Auto, true)] {
            let directory = tempfile::tempdir().expect("a directory");
            let (socket, metrics) = (directory.path().join("admin"), Metrics::default());
            let config = Config::default().port(0).backend(backend).metrics(metrics.clone());
            let config = config.admin(AdminAddress::Unix(socket.clone()));
            let serve = move |worker| {
                let metrics = metrics.worker(worker);
                let inner = |request: &Request<'_>| format!("{}\n", request.path());
                let router = Router::new().metrics(&metrics).get("/users/{id}", inner).post("/users/{id}", inner);
                let router = router.route("PUT", "/later", Later).mount("/all", Later);
                let router = router.get("/panic", |_| -> Response { panic!("on purpose") });
                let server = HttpServer::with(router).metrics(&metrics);
                if has_ids { server.request_id(HeaderName::from_static("x-id")) } else { server }
            };
            let server = config.start(serve).expect("a server");
            let body = "Content-Length: 3\r\n\r\nabc";
            for (request, status) in [
                ("GET /users/1", 200),
                ("GET /users/%32", 200),
                ("HEAD /users/3", 200),
                ("POST /users/4", 200),
                ("DELETE /users/4", 405),
                ("PUT /later", 200),
                ("GET /all", 200),
                ("GET /all/a/b", 200),
                ("GET /missing", 404),
                ("GET /panic", 500),
                ("POST /missing", 404),
            ] {
                let end = if request.starts_with('P') { body } else { "\r\n" };
                let mut client = Client::new(server.local_addr());
                client.send(format!("{request} HTTP/1.1\r\nHost: x\r\n{end}"));
                let (method, _) = request.split_once(' ').expect("a method");
                assert_eq!(client.response_to(method).status, status, "{request}");
            }
            let text = get(&socket, "/metrics");
            let name = "http_server_request_duration_seconds_count";
            let mut counts: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix(name)).collect();
            counts.sort_unstable();
            assert_eq!(
                counts,
                [
                    "{method=\"DELETE\",code=\"405\",route=\"/users/{id}\"} 1",
                    "{method=\"GET\",code=\"200\",route=\"/all/*\"} 2",
                    "{method=\"GET\",code=\"200\",route=\"/users/{id}\"} 2",
                    "{method=\"GET\",code=\"404\"} 1",
                    "{method=\"GET\",code=\"500\",route=\"/panic\"} 1",
                    "{method=\"HEAD\",code=\"200\",route=\"/users/{id}\"} 1",
                    "{method=\"POST\",code=\"200\",route=\"/users/{id}\"} 1",
                    "{method=\"POST\",code=\"404\"} 1",
                    "{method=\"PUT\",code=\"200\",route=\"/later\"} 1",
                ]
            );
            drop(server);
        }
    }

    #[test]
    fn a_server_whose_directory_is_gone_is_not_ready() {
        let directory = tempfile::tempdir().expect("a directory");
        let (socket, site) = (directory.path().join("admin"), directory.path().join("site"));
        std::fs::create_dir(&site).expect("a directory");
        let admin = format!("unix:{}", socket.display());
        let server = Running::start(&["files", site.to_str().expect("UTF-8"), "--port", "0", "--admin", &admin]);
        assert!(get(&socket, "/readyz").ends_with("\r\n\r\nok\n"));
        std::fs::remove_dir(&site).expect("removing");
        let response = get(&socket, "/readyz");
        assert!(
            response.starts_with("HTTP/1.1 503 ") && response.contains("[-] content: the directory: "),
            "{response}"
        );
        drop(server);
    }
}

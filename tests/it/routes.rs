//! Routing, layers and request accessors.

use std::cell::Cell;
use std::rc::Rc;

use serverd::{BodyMode, Handler, HttpServer, ParamError, Request, RequestHead, Response, Router, StatusCode, layers};

use crate::harness::{Backend, Client, Server, on_every_backend, serve};

fn router() -> Router {
    // State of one worker, shared by its routes without a lock.
    let hits = Rc::new(Cell::new(0_u32));
    let counted = Rc::clone(&hits);
    Router::new()
        .get("/", |_| "home")
        .get("/users/{id}", |request: &Request<'_>| -> Result<Response, ParamError> {
            let id: u32 = request.param("id")?;
            Ok(Response::text(format!("user {id}")))
        })
        .put("/users/{id}", |request| {
            request.param::<String>("id").map(|id| format!("{id} is {} long", request.body().len()))
        })
        .get("/users/me", |_| "you")
        .delete("/users/{id}", |_| StatusCode::NO_CONTENT)
        .get("/files/{*path}", |request| request.param::<String>("path"))
        .get("/hit", move |_| {
            counted.set(counted.get() + 1);
            "hit"
        })
        .get("/hits", move |_| hits.get().to_string())
        .route("PROPFIND", "/dav", |_: &Request<'_>| "found")
        .post("/form", |request| {
            let pairs: Vec<String> = request.form().map(|(name, value)| format!("{name}={value};")).collect();
            pairs.concat()
        })
        .post("/json", json)
}

fn json(request: &Request<'_>) -> Response {
    #[derive(serde::Deserialize, serde::Serialize)]
    struct Point {
        x: i32,
        y: i32,
    }
    match request.json::<Point>() {
        Ok(point) => Response::json(&Point { x: point.y, y: point.x }),
        Err(error) => error.into(),
    }
}

fn server<B: Backend>() -> Server {
    serve::<B, _>(|| HttpServer::with(router()))
}

fn fetch(client: &mut Client, method: &str, path: &str, body: &str) -> (u16, String, Option<String>) {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    client.send(format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{length}\r\n{body}"));
    let response = client.response_to(method);
    (response.status, response.text(), response.header("allow").map(str::to_owned))
}

on_every_backend! {
    fn requests_are_routed_by_path_and_method<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        for (method, path, status, text) in [
            ("GET", "/", 200, "home"),
            ("GET", "/?query", 200, "home"),
            ("GET", "http://x/users/7?a", 200, "user 7"),
            ("GET", "/users/me", 200, "you"),
            ("GET", "/users/%37", 200, "user 7"),
            ("GET", "/files/a/b%20c/d%2Fe", 200, "a/b c/d/e"),
            ("GET", "/users/seven", 404, "Not Found\n"),
            ("GET", "/users/", 404, "Not Found\n"),
            ("GET", "/elsewhere", 404, "Not Found\n"),
            ("DELETE", "/users/7", 204, ""),
            ("PROPFIND", "/dav", 200, "found"),
            ("HEAD", "/users/7", 200, ""),
            ("GET", "/hit", 200, "hit"),
            ("GET", "/hit", 200, "hit"),
            ("GET", "/hits", 200, "2"),
        ] {
            let (seen, body, _) = fetch(&mut client, method, path, "");
            assert_eq!((seen, body.as_str()), (status, text), "{method} {path}");
        }
        assert_eq!(fetch(&mut client, "PUT", "/users/me%21", "abc").1, "me! is 3 long");
    }

    fn equivalent_paths_match_the_same_route<B>() {
        let server = serve::<B, _>(|| {
            let router = Router::new().get("/~anna", |_| "anna").get("/b%6fb's//{{caf\u{e9}}}", |_| "bob");
            let inner = Router::new().get("/{*path}", |request| request.param::<String>("path"));
            let show_mount = |request: &Request<'_>| format!("{} {}", request.mount(), request.path_below_mount());
            HttpServer::with(router.mount("/in/th%65 box", inner).mount("/at", show_mount))
        });
        let mut client = server.connect();
        for (path, status, text) in [
            ("/~anna", 200, "anna"),
            ("/%7Eanna", 200, "anna"),
            ("//%7e%61nna?x", 200, "anna"),
            ("http://x//~anna", 200, "anna"),
            ("/%257Eanna", 404, "Not Found\n"),
            ("/%2F~anna", 404, "Not Found\n"),
            ("/~Anna", 404, "Not Found\n"),
            ("/bob's/%7bcaf%c3%A9%7D", 200, "bob"),
            ("/bob%27s/%7Bcaf%C3%A9%7d", 200, "bob"),
            ("/in/the%20box/a%2fb//%2541%20", 200, "a/b/%41 "),
            ("//%69n/th%65%20box//c", 200, "c"),
            ("/at", 200, "/at "),
            ("/at/%61//b", 200, "/at /%61//b"),
            ("///%61t//b", 200, "/%61t //b"),
        ] {
            let (seen, body, _) = fetch(&mut client, "GET", path, "");
            assert_eq!((seen, body.as_str()), (status, text), "{path}");
        }
    }

    fn a_route_takes_precedence_over_a_handler_mounted_on_its_path<B>() {
        fn mounted(request: &Request<'_>) -> String {
            format!("mounted {}", request.path_below_mount())
        }
        for routes_first in [true, false] {
            let server = serve::<B, _>(move || {
                let routes = |router: Router| router.get("/", |_| "home").post("/in", |_| "posted").get("/in/", |_| "in");
                let mounts = |router: Router| router.mount("/", mounted).mount("/in", mounted);
                HttpServer::with(if routes_first { mounts(routes(Router::new())) } else { routes(mounts(Router::new())) })
            });
            let mut client = server.connect();
            for (method, path, text) in [
                ("GET", "/", "home"),
                ("GET", "//", "home"),
                ("HEAD", "/", ""),
                ("POST", "/", "mounted /"),
                ("GET", "/x", "mounted /x"),
                ("POST", "/in", "posted"),
                ("GET", "/in", "mounted "),
                ("GET", "/in/", "in"),
                ("OPTIONS", "/in/", "mounted /"),
                ("GET", "/in/x", "mounted /x"),
                ("GET", "/inner", "mounted /inner"),
            ] {
                let (status, body, _) = fetch(&mut client, method, path, "");
                assert_eq!((status, body.as_str()), (200, text), "{method} {path}, routes first: {routes_first}");
            }
        }
    }

    fn unsupported_methods_get_405_with_allow_and_unknown_ones_501<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        let allow = Some("GET, PUT, DELETE, HEAD, OPTIONS".to_owned());
        assert_eq!(fetch(&mut client, "POST", "/users/7", ""), (405, "Method Not Allowed\n".into(), allow.clone()));
        assert_eq!(fetch(&mut client, "OPTIONS", "/users/7", ""), (204, String::new(), allow));
        let (status, _, allow) = fetch(&mut client, "OPTIONS", "*", "");
        assert_eq!((status, allow.as_deref()), (204, Some("DELETE, GET, HEAD, OPTIONS, POST, PROPFIND, PUT")));
        assert_eq!(fetch(&mut client, "BREW", "/", "").0, 501);
        assert_eq!(fetch(&mut client, "BREW", "/elsewhere", "").0, 501);
        assert_eq!(fetch(&mut client, "PROPFIND", "/", "").0, 405);
    }

    fn a_request_without_a_route_is_rejected_before_its_body<B>() {
        let server = server::<B>();
        for (path, status) in [("/elsewhere", 404), ("/", 405)] {
            let mut client = server.connect();
            client.send(format!("POST {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"));
            assert_eq!(client.response().status, status);
            client.expect_close();
        }
    }

    fn form_and_json_bodies_are_parsed<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        assert_eq!(fetch(&mut client, "POST", "/form", "a=1+2&b=%C3%A4").1, "a=1 2;b=\u{e4};");
        assert_eq!(fetch(&mut client, "POST", "/json", r#"{"x": 1, "y": 2}"#).1, r#"{"x":2,"y":1}"#);
        let (status, text, _) = fetch(&mut client, "POST", "/json", r#"{"x": 1, "z": "<script>"}"#);
        assert_eq!((status, text.contains("script")), (400, false), "{text}");
        assert_eq!(fetch(&mut client, "POST", "/json", "{").1, "unexpected end of JSON at line 1 column 1\n");
    }

    fn layers_see_every_response_including_rejections<B>() {
        let server = serve::<B, _>(|| {
            let deferred = |_: &Request<'_>| {
                let (response, responder) = Response::later();
                std::thread::spawn(move || responder.respond("deferred"));
                response
            };
            let user = |request: &Request<'_>| request.extension::<&'static str>().unwrap_or("unknown");
            let router = Router::new().get("/deferred", deferred).get("/", |_| "now").route("POST", "/user", user);
            let guarded = layers::guard(router, |head: &RequestHead<'_>| {
                if head.cookie("pass") == Some("1") {
                    head.insert("known");
                    return None;
                }
                Some(StatusCode::UNAUTHORIZED.into())
            });
            let with_header = layers::add_headers(guarded, &[("X-Layer", "1")]).expect("valid headers");
            HttpServer::with(layers::log(layers::around(with_header, |inner, request| {
                inner.call(request).map(|response| response.header("X-Around", "2"))
            })))
        });
        let mut client = server.connect();
        for (path, cookie, status, text) in [
            ("/", "a=b; pass=1", 200, "now"),
            ("/deferred", "pass=1", 200, "deferred"),
            ("/", "pass=2", 401, "Unauthorized\n"),
        ] {
            client.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n\r\n"));
            let response = client.response();
            assert_eq!((response.status, response.text().as_str()), (status, text), "{path} {cookie}");
            let headers = (response.header("x-layer"), response.header("x-around"));
            assert_eq!(headers, (Some("1"), Some("2")), "{path} {cookie}");
        }
        client.send("POST /user HTTP/1.1\r\nHost: x\r\nCookie: pass=1\r\nContent-Length: 1\r\n\r\nx");
        assert_eq!(client.response().text(), "known");
        client.send("POST /user HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n");
        let response = client.response();
        assert_eq!((response.status, response.header("x-layer")), (401, Some("1")));
    }

    fn layers_see_the_responses_to_uploads<B>() {
        struct Uploads;
        impl Handler for Uploads {
            fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
                match head.path() {
                    "/fold" => BodyMode::fold(10, (), |(), _| (), |()| "folded"),
                    "/read" => BodyMode::read(10, |body, responder| {
                        std::thread::spawn(move || {
                            drop(body);
                            responder.respond("read");
                        });
                    }),
                    "/dropped" => BodyMode::read(10, |_, _| ()),
                    _ => BodyMode::Default,
                }
            }

            fn call(&mut self, _: &Request<'_>) -> Response {
                Response::text("called")
            }
        }
        let server = serve::<B, _>(|| {
            let with_header = layers::add_headers(Uploads, &[("X-Layer", "1")]).expect("valid headers");
            HttpServer::with(layers::guard(layers::log(with_header), |head: &RequestHead<'_>| {
                (head.header("x-pass").is_none()).then(|| StatusCode::UNAUTHORIZED.into())
            }))
        });
        for (path, status) in [("/fold", 200), ("/read", 200), ("/dropped", 500), ("/call", 200)] {
            let mut client = server.connect();
            client.send(format!("POST {path} HTTP/1.1\r\nHost: x\r\nX-Pass: 1\r\nContent-Length: 2\r\n\r\nab"));
            let response = client.response();
            assert_eq!((response.status, response.header("x-layer")), (status, Some("1")), "{path}");
            let mut client = server.connect();
            client.send(format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab"));
            assert_eq!(client.response().status, 401, "{path}");
        }
    }

    fn a_request_exposes_its_query_cookies_content_type_and_addresses<B>() {
        let server = serve::<B, _>(|| {
            HttpServer::new(|request: &Request<'_>| {
                let pairs: Vec<_> = request.query_pairs().map(|(name, value)| format!("{name}:{value}")).collect();
                let cookies: Vec<_> = request.cookies().collect();
                let addrs = (request.peer_addr().is_some(), request.local_addr().map(|local| local.port()));
                format!("{} {pairs:?} {cookies:?} {:?} {addrs:?}", request.path_decoded(), request.content_type())
            })
        });
        let mut client = server.connect();
        client.send(
            "GET /a%20b?x=1&y=%26+z&x HTTP/1.1\r\nHost: x\r\nCookie: a=1; b=2=3\r\nCookie: c\r\nCookie: d=\r\n\
             Content-Type: text/plain ; charset=x\r\n\r\n",
        );
        let expected = format!(
            "/a b [\"x:1\", \"y:& z\", \"x:\"] [(\"a\", \"1\"), (\"b\", \"2=3\"), (\"d\", \"\")] Some(\"text/plain\") (true, Some({}))",
            server.address.port()
        );
        assert_eq!(client.response().text(), expected);
    }

    fn the_fallback_handles_unmatched_paths<B>() {
        struct Other;
        impl Handler for Other {
            fn head(&mut self, _: &RequestHead<'_>) -> BodyMode {
                BodyMode::Collect(3)
            }

            fn call(&mut self, request: &Request<'_>) -> Response {
                Response::text(request.body().to_vec())
            }
        }
        let server = serve::<B, _>(|| HttpServer::with(Router::new().get("/", |_| "home").fallback(Other)));
        let mut client = server.connect();
        assert_eq!(fetch(&mut client, "POST", "/x", "abc").1, "abc");
        assert_eq!(fetch(&mut client, "POST", "/x", "abcd").0, 413);
    }
}

#[test]
fn an_invalid_route_panics_when_it_is_added() {
    let panics = |build: fn() -> Router| std::panic::catch_unwind(build).is_err();
    assert!(panics(|| Router::new().get("/{a", |_| "")));
    assert!(panics(|| Router::new().get("/a", |_| "").get("/a", |_| "")));
    assert!(panics(|| Router::new().get("/{a}", |_| "").get("/{b}", |_| "")));
    assert!(panics(|| Router::new().get("/{a}/{b}/{c}/{d}/{e}/{f}/{g}/{h}/{i}", |_| "")));
    assert!(panics(|| Router::new().get("/~a", |_| "").get("/%7ea", |_| "")));
    assert!(panics(|| Router::new().mount("/a", |_: &Request<'_>| "").mount("/%61", |_: &Request<'_>| "")));
    assert!(panics(|| Router::new().mount("/a", |_: &Request<'_>| "").get("/a/{*below}", |_| "")));
    assert!(panics(|| Router::new().get("/a/{*below}", |_| "").mount("/a", |_: &Request<'_>| "")));
    assert!(!panics(|| Router::new().get("/{a}/{{x}}", |_| "").post("/{a}/{{x}}", |_| "")));
}

#[cfg(feature = "http-types")]
#[test]
fn handlers_can_use_the_types_of_the_http_crate() {
    let server = serve::<serverd::Select, _>(|| {
        HttpServer::with(serverd::http_types::handler(|request: http::Request<bytes::Bytes>| {
            let peer = request.extensions().get::<std::net::SocketAddr>().is_some();
            http::Response::builder()
                .status(201)
                .header("X-Peer", peer.to_string())
                .header("Connection", "ignored")
                .body(format!("{} {} {:?}", request.method(), request.uri(), request.body()))
        }))
    });
    let mut client = server.connect();
    client.send("POST /a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi");
    let response = client.response();
    assert_eq!((response.status, response.header("x-peer"), response.header("connection")), (201, Some("true"), None));
    assert_eq!(response.text(), "POST /a?b b\"hi\"");
}

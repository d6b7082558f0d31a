//! Routes: which handler answers which path and method.
//!
//! Paths are matched in their one spelling (see `normal_path`), percent-encoded, by a radix tree (the crate matchit); a
//! route is found in time that depends on the length of the path, not on the number of routes. What the route did not
//! say is answered as RFC 9110 has it: an unknown path 404, a method that a path does not have 405 with Allow, one that
//! nobody knows 501, OPTIONS with Allow, HEAD by the handler for GET.

use std::borrow::Cow;

use http::StatusCode;

use super::normal_path::{len_as_it_came, normal, normal_pattern};
use super::request::Parameters;
use super::{Handler, Intake, Request, RequestHead, Response};

/// Named parts that a pattern may have.
const PARAMETERS_MAX: usize = 8;

/// Methods that are known even where no route has them (RFC 9110 section 9, RFC 5789).
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// A handler that picks another one by path and method.
///
/// A pattern is a path with named parts: `/users/{id}` matches one segment, `/files/{*path}` all that follow.
/// `{{` and `}}` stand for braces. More precise patterns win over less precise ones, whatever their order.
///
/// Paths that are the same but for their spelling have the same route (RFC 3986 section 6.2.2): percent-encoding counts
/// as what it stands for, and repeated slashes count as one, also in what `{*path}` matches. `/~anna` is `/%7Eanna` and
/// `//~anna`, in patterns too. A slash that is percent-encoded (`%2F`) separates nothing, and upper and lower case differ.
///
/// # Examples
/// ```
/// use serverd::{HttpServer, Request, Response, Router, StatusCode};
///
/// let router = Router::new()
///     .get("/", |_| "hello\n")
///     .get("/users/{id}", |request| {
///         request.parameter::<u32>("id").map(|id| format!("user {id}\n"))
///     })
///     .post("/echo", |request| Response::new(StatusCode::OK).body(request.body().to_vec()));
/// let server = HttpServer::with(router);
/// # drop(server);
/// ```
#[derive(Default)]
pub struct Router {
    paths: matchit::Router<usize>,
    routes: Vec<Route>,
    mounts: Vec<Mounted>,
    fallback: Option<Box<dyn Handler>>,
}

/// What a path has.
struct Route {
    /// As it is spelled by `normal_pattern`; nothing for all that is below a mounted handler, which is no place for others.
    pattern: Option<String>,
    methods: Vec<(String, Box<dyn Handler>)>,
    /// Which handler is mounted here, if any: it answers all other methods.
    mounted: Option<usize>,
}

/// A handler for everything below a place.
struct Mounted {
    handler: Box<dyn Handler>,
    /// How long the place's path is in its one spelling.
    len: usize,
}

/// Who answers.
enum Found<'a> {
    Handler(&'a mut dyn Handler),
    Answer(Response),
}

impl Route {
    fn handler(&self, method: &str) -> Option<usize> {
        let position = |name: &str| self.methods.iter().position(|(own, _)| own == name);
        position(method).or_else(|| if method == "HEAD" { position("GET") } else { None })
    }

    /// For the field Allow (RFC 9110 section 10.2.1).
    fn allow(&self) -> String {
        let mut names: Vec<&str> = self.methods.iter().map(|(name, _)| name.as_str()).collect();
        if names.contains(&"GET") && !names.contains(&"HEAD") {
            names.push("HEAD");
        }
        if !names.contains(&"OPTIONS") {
            names.push("OPTIONS");
        }
        names.join(", ")
    }
}

impl Router {
    /// A router that answers everything 404.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers GET, and HEAD, on a path.
    ///
    /// # Panics
    /// As [`Router::route`].
    #[must_use]
    pub fn get<R: Into<Response>>(self, pattern: &str, handler: impl FnMut(&Request<'_>) -> R + 'static) -> Self {
        self.route("GET", pattern, handler)
    }

    /// Answers POST on a path.
    ///
    /// # Panics
    /// As [`Router::route`].
    #[must_use]
    pub fn post<R: Into<Response>>(self, pattern: &str, handler: impl FnMut(&Request<'_>) -> R + 'static) -> Self {
        self.route("POST", pattern, handler)
    }

    /// Answers PUT on a path.
    ///
    /// # Panics
    /// As [`Router::route`].
    #[must_use]
    pub fn put<R: Into<Response>>(self, pattern: &str, handler: impl FnMut(&Request<'_>) -> R + 'static) -> Self {
        self.route("PUT", pattern, handler)
    }

    /// Answers PATCH on a path.
    ///
    /// # Panics
    /// As [`Router::route`].
    #[must_use]
    pub fn patch<R: Into<Response>>(self, pattern: &str, handler: impl FnMut(&Request<'_>) -> R + 'static) -> Self {
        self.route("PATCH", pattern, handler)
    }

    /// Answers DELETE on a path.
    ///
    /// # Panics
    /// As [`Router::route`].
    #[must_use]
    pub fn delete<R: Into<Response>>(self, pattern: &str, handler: impl FnMut(&Request<'_>) -> R + 'static) -> Self {
        self.route("DELETE", pattern, handler)
    }

    /// Answers a method on a path by any [`Handler`], which may also decide on the head.
    ///
    /// Where a handler is mounted on that very path by [`Router::mount`], before or after, the route has this method,
    /// and the mounted handler all others.
    ///
    /// # Panics
    /// When the pattern is malformed, has more than eight named parts, contradicts another one, or has a handler for
    /// this method already: mistakes of the program, found when it starts.
    #[must_use]
    pub fn route(mut self, method: &str, pattern: &str, handler: impl Handler + 'static) -> Self {
        let names = pattern.matches('{').count() - 2 * pattern.matches("{{").count();
        assert!(names <= PARAMETERS_MAX, "the route {pattern} has more than {PARAMETERS_MAX} named parts");
        let index = match self.place(normal_pattern(pattern)) {
            Ok(index) => index,
            Err(error) => panic!("the route {pattern} cannot be added: {error}"),
        };
        let methods = &mut self.routes[index].methods;
        assert!(methods.iter().all(|(own, _)| own != method), "{method} {pattern} has a handler already");
        methods.push((method.to_owned(), Box::new(handler)));
        self
    }

    /// Which route has this pattern: one that is there, or a new one.
    fn place(&mut self, pattern: String) -> Result<usize, matchit::InsertError> {
        if let Some(index) = self.routes.iter().position(|route| route.pattern.as_ref() == Some(&pattern)) {
            return Ok(index);
        }
        self.paths.insert(pattern.as_str(), self.routes.len())?;
        self.routes.push(Route { pattern: Some(pattern), methods: Vec::new(), mounted: None });
        Ok(self.routes.len() - 1)
    }

    /// Leaves every method on a path and on all paths below it to a handler, which finds what is below in
    /// [`RequestHead::mounted_path`]. More precise routes still win, and so does a route for the very path, whatever their
    /// order: a home page of one's own, and files below it.
    ///
    /// What is mounted here is had by no other spelling of the path through a handler that is mounted further up, so that
    /// a [`guard`](super::layers::guard) around it holds: `//private/x` and `/%70rivate/x` are `/private/x`. But where the
    /// file system takes names for the same that are not, as those of Windows and macOS do with upper and lower case,
    /// `/PRIVATE/x` is for the handler further up, which may find the same file; so does a symbolic link. There, keep
    /// what is guarded outside the directory that is served to all.
    ///
    /// # Examples
    /// ```no_run
    /// use serverd::{Files, HttpServer, Router};
    ///
    /// let router = Router::new().get("/", |_| "hello\n").mount("/", Files::new("public")?);
    /// let server = HttpServer::with(router);
    /// # drop(server);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Panics
    /// When the path has named parts, ends with `/` (but that of the whole server is `/`), or something else is mounted
    /// there or takes all that is below.
    #[must_use]
    pub fn mount(mut self, path: &str, handler: impl Handler + 'static) -> Self {
        let place = if path == "/" { "" } else { path };
        assert!(!place.contains(['{', '}']) && !place.ends_with('/'), "{path} is no place to mount a handler");
        let place = normal(place).into_owned();
        if let Err(error) = self.mount_at(&place) {
            panic!("nothing can be mounted on {path}: {error}");
        }
        self.mounts.push(Mounted { handler: Box::new(handler), len: place.len() });
        self
    }

    /// Has the patterns of a place lead to the handler that is mounted next.
    fn mount_at(&mut self, place: &str) -> Result<(), matchit::InsertError> {
        let mounted = Some(self.mounts.len());
        self.paths.insert(format!("{place}/{{*below}}"), self.routes.len())?;
        self.routes.push(Route { pattern: None, methods: Vec::new(), mounted });
        for pattern in [place.to_owned(), format!("{place}/")] {
            if !pattern.is_empty() {
                let index = self.place(pattern)?;
                self.routes[index].mounted = mounted;
            }
        }
        Ok(())
    }

    /// Answers paths that no route has, instead of 404.
    #[must_use]
    pub fn fallback(mut self, handler: impl Handler + 'static) -> Self {
        self.fallback = Some(Box::new(handler));
        self
    }

    /// Finds who answers, and has it do so with the named parts of the path.
    fn dispatch<T>(&mut self, head: &RequestHead<'_>, answer: impl FnOnce(Found<'_>, Parameters<'_>, usize) -> T) -> T {
        let (method, mount) = (head.method(), head.mount);
        let known = METHODS.contains(&method) || self.has_method(method);
        let path = if head.mounted_path().is_empty() { "/" } else { head.mounted_path() };
        let normal = normal(path);
        let Some(found) = self.paths.at(&normal).ok() else {
            return match &mut self.fallback {
                _ if head.target() == "*" => answer(Found::Answer(options(&self.all_methods())), &[], mount),
                _ if !known => answer(Found::Answer(not_implemented()), &[], mount),
                Some(fallback) => answer(Found::Handler(&mut **fallback), &[], mount),
                None => answer(Found::Answer(StatusCode::NOT_FOUND.into()), &[], mount),
            };
        };
        let mut parameters = [("", ""); PARAMETERS_MAX];
        let mut count = 0;
        for (slot, parameter) in parameters.iter_mut().zip(found.params.iter()) {
            *slot = parameter;
            count += 1;
        }
        let route = &mut self.routes[*found.value];
        match (route.handler(method), route.mounted) {
            (Some(index), _) => answer(Found::Handler(&mut *route.methods[index].1), &parameters[..count], mount),
            (None, Some(mounted)) => {
                let mounted = &mut self.mounts[mounted];
                let len =
                    if matches!(normal, Cow::Borrowed(_)) { mounted.len } else { len_as_it_came(path, mounted.len) };
                answer(Found::Handler(&mut *mounted.handler), &[], mount + len)
            }
            (None, None) if method == "OPTIONS" => answer(Found::Answer(options(&route.allow())), &[], mount),
            (None, None) if known => answer(Found::Answer(not_allowed(&route.allow())), &[], mount),
            (None, None) => answer(Found::Answer(not_implemented()), &[], mount),
        }
    }

    fn has_method(&self, method: &str) -> bool {
        self.routes.iter().any(|route| route.methods.iter().any(|(own, _)| own == method))
    }

    /// What the server as a whole allows, for `OPTIONS *` (RFC 9110 section 9.3.7).
    fn all_methods(&self) -> String {
        let mut names: Vec<&str> =
            self.routes.iter().flat_map(|route| route.methods.iter().map(|(name, _)| name.as_str())).collect();
        names.extend(["HEAD", "OPTIONS"]);
        names.sort_unstable();
        names.dedup();
        names.join(", ")
    }
}

fn options(allow: &str) -> Response {
    Response::new(StatusCode::NO_CONTENT).field("Allow", allow)
}

fn not_allowed(allow: &str) -> Response {
    Response::from(StatusCode::METHOD_NOT_ALLOWED).field("Allow", allow)
}

fn not_implemented() -> Response {
    Response::error(StatusCode::NOT_IMPLEMENTED, "this method is not known here\n")
}

impl Handler for Router {
    /// The body of a request that nobody takes is not waited for.
    fn head(&mut self, head: &RequestHead<'_>) -> Intake {
        let head = *head;
        self.dispatch(&head, |found, parameters, mount| match found {
            Found::Handler(handler) => handler.head(&head.routed(parameters, mount)),
            Found::Answer(response) if response.status().is_success() => Intake::Default,
            Found::Answer(response) => Intake::Refuse(response),
        })
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        let request = *request;
        self.dispatch(&request.head(), |found, parameters, mount| match found {
            Found::Handler(handler) => handler.call(&request.routed(parameters, mount)),
            Found::Answer(response) => response,
        })
    }
}

//! Basic authentication (RFC 7617) against bcrypt hashes.
//!
//! bcrypt is slow by design, so passwords are checked on a thread pool while the request is suspended. Correct
//! credentials are cached for a few minutes, as a keyed hash of name and password, so only the first request of a
//! session is slow. Wrong credentials are not cached, so guessing remains slow.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use sha2::{Digest, Sha256};

use super::super::deferred::Responder;
use super::super::handler::{BodyMode, Handler};
use super::super::pool::{FairQueue, Pool};
use super::super::request::{Request, RequestHead};
use super::super::response::Response;
use crate::r#loop::lock;

/// Lifetime of cached credentials.
const CACHE_TIME: Duration = Duration::from_secs(300);

/// Maximum number of cached credentials.
const CACHE_ENTRIES_MAX: usize = 1024;

/// Maximum accepted bcrypt cost, the binary logarithm of the number of rounds. At bcrypt's own limit, 31, one check
/// would take about a day.
const COST_MAX: u32 = 16;

/// User names with the bcrypt hashes of their passwords.
///
/// # Examples
/// ```
/// use serverd::layers::Users;
///
/// // As `htpasswd -nbB alice wonderland` prints it.
/// let users = Users::parse("alice:$2y$05$nF4wGCaEtRacYiOVnrhaQeX.3xDjiQ/U/lAOzoim86wOywsVSaKAy")?;
/// assert!(Users::parse("alice:wonderland").is_err());
/// # drop(users);
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Users {
    hashes: HashMap<String, String>,
    /// Hash checked for unknown users, so that the response time does not reveal whether a user exists (no timing
    /// oracle).
    decoy: String,
}

impl Users {
    /// Parses lines of the form `name:hash`, as written by `htpasswd -B` and `serverd hash`. Empty lines and lines that
    /// begin with `#` are ignored. All hashes should have the same cost: checking an unknown user takes as long as the
    /// slowest hash, so a faster check reveals that the user exists.
    ///
    /// # Errors
    /// Returns a message that describes the problem and, if possible, names the user.
    pub fn parse(lines: &str) -> Result<Self, String> {
        let mut hashes = HashMap::new();
        let mut decoy = (0, String::new());
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let Some((name, hash)) = line.split_once(':') else {
                return Err("expected NAME:HASH, as printed by `serverd hash NAME`".into());
            };
            let cost = cost(name, hash)?;
            if cost >= decoy.0 {
                decoy = (cost, hash.to_owned());
            }
            if hashes.insert(name.to_owned(), hash.to_owned()).is_some() {
                return Err(format!("duplicate user {name}"));
            }
        }
        if hashes.is_empty() {
            return Err("no users given; expected NAME:HASH, as printed by `serverd hash NAME`".into());
        }
        Ok(Users { hashes, decoy: decoy.1 })
    }

    /// Checks a password. Takes the same time if the user is unknown.
    fn check(&self, name: &str, password: &[u8]) -> bool {
        let known = self.hashes.get(name);
        // `verify` compares in constant time.
        let matches = bcrypt::verify(password, known.unwrap_or(&self.decoy)).unwrap_or(false);
        matches && known.is_some()
    }
}

/// Validates a hash and returns its cost.
fn cost(name: &str, hash: &str) -> Result<u32, String> {
    let advice = "create one with `serverd hash` or `htpasswd -nbB`, and enclose it in single quotes in the shell";
    let parts: bcrypt::HashParts =
        hash.parse().map_err(|_| format!("not a bcrypt hash for user {name:?}; {advice}"))?;
    match parts.get_cost() {
        cost @ 4..=COST_MAX => Ok(cost),
        cost => Err(format!("the bcrypt hash of user {name:?} has cost {cost}; it must be from 4 to {COST_MAX}")),
    }
}

/// Users that can be replaced while a server uses them. Clones share the users.
///
/// # Examples
/// ```
/// use serverd::layers::{UserStore, Users};
///
/// let line = "alice:$2y$05$nF4wGCaEtRacYiOVnrhaQeX.3xDjiQ/U/lAOzoim86wOywsVSaKAy";
/// let store = UserStore::from(Users::parse(line)?);
/// // Pass a clone of `store` to `layers::basic_auth`. Later, in any thread:
/// store.replace(Users::parse(line)?);
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug)]
pub struct UserStore {
    shared: Arc<Mutex<(Arc<Users>, u64)>>,
}

impl UserStore {
    /// Replaces the users. A removed user is rejected from the next request on, and so are old passwords.
    pub fn replace(&self, users: Users) {
        let mut shared = lock(&self.shared);
        *shared = (Arc::new(users), shared.1 + 1);
    }

    /// Returns the users, and the number of times they were replaced.
    fn current(&self) -> (Arc<Users>, u64) {
        lock(&self.shared).clone()
    }
}

impl From<Users> for UserStore {
    fn from(users: Users) -> Self {
        UserStore { shared: Arc::new(Mutex::new((Arc::new(users), 0))) }
    }
}

/// The authenticated user of a request, set by [`basic_auth`]. Read it with [`RequestHead::extension`]. With nested layers
/// it is the user of the innermost one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User(pub Arc<str>);

/// Protects a handler with Basic authentication (RFC 7617): responds 401 with WWW-Authenticate unless a request has the
/// name and password of one of the `users`.
///
/// Passwords are checked on the thread pool. The client addresses (IPv6: networks of 64 bits) take turns; if the queue
/// is full, the last check of the address with the most checks gets a 503 with Retry-After, so that a client that
/// guesses passwords does not lock out others. Correct credentials are cached for five minutes, separately for each
/// call of this function (and so for each worker). Use TLS: Basic authentication sends passwords unencrypted. To change
/// the users while the server runs, pass a [`UserStore`]; the cache is emptied when its users are replaced.
///
/// Layers may be nested, for example one for a site and a second one for a handler mounted in it: each checks the
/// credentials against its own list, so a request must be accepted by all of them. A [`User`] set by other code does
/// not authenticate a request.
///
/// # Examples
/// ```
/// use serverd::layers::{self, User, Users};
/// use serverd::{HttpServer, Pool, Request};
///
/// let users = Users::parse("alice:$2y$05$nF4wGCaEtRacYiOVnrhaQeX.3xDjiQ/U/lAOzoim86wOywsVSaKAy")?;
/// let page = |request: &Request<'_>| match request.extension::<User>() {
///     Some(User(name)) => format!("hello {name}\n"),
///     None => "hello\n".to_owned(),
/// };
/// let server = HttpServer::with(layers::basic_auth(page, "the members", users, Pool::new(1, 64).expect("threads")));
/// # drop(server);
/// # Ok::<(), String>(())
/// ```
pub fn basic_auth<H: Handler, U: Into<UserStore>>(
    inner: H,
    realm: &str,
    users: U,
    pool: Pool,
) -> impl Handler + use<H, U> {
    basic_auth_with_metrics(inner, realm, users, pool, None)
}

/// Protects a handler as [`basic_auth`] does, and counts the results.
pub(crate) fn basic_auth_with_metrics<H: Handler, U: Into<UserStore>>(
    inner: H,
    realm: &str,
    users: U,
    pool: Pool,
    metrics: Option<Arc<AuthMetrics>>,
) -> impl Handler + use<H, U> {
    let realm: String = realm.chars().filter(|char| !char.is_control()).collect();
    let challenge = format!("Basic realm=\"{}\", charset=\"UTF-8\"", realm.replace('\\', "\\\\").replace('"', "\\\""));
    let checker = Checker {
        layer: LayerId::new(),
        users: users.into(),
        cache: Arc::default(),
        queue: Arc::default(),
        secret: secret(),
        challenge: challenge.into(),
        pool,
        metrics,
    };
    BasicAuth { inner, checker }
}

/// The number of requests by the result of their authentication. The threads of the pool count too, so that counting takes
/// a locked instruction: little beside the hash of the credentials.
#[derive(Debug, Default)]
pub(crate) struct AuthMetrics {
    counts: [AtomicU64; AuthResult::ALL.len()],
}

/// The result of an authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AuthResult {
    Success,
    /// The name, the password or the header is wrong.
    Failure,
    /// The request has no credentials, as the first one of a browser.
    Missing,
    /// Too many passwords were to be checked.
    Busy,
}

impl AuthResult {
    pub(crate) const ALL: [(AuthResult, &str); 4] = [
        (AuthResult::Success, "success"),
        (AuthResult::Failure, "failure"),
        (AuthResult::Missing, "missing"),
        (AuthResult::Busy, "busy"),
    ];
}

impl AuthMetrics {
    fn count(&self, result: AuthResult) {
        self.counts[result as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of requests with this result.
    #[cfg(any(feature = "cli", test))]
    pub(crate) fn get(&self, result: AuthResult) -> u64 {
        self.counts[result as usize].load(Ordering::Relaxed)
    }
}

/// Creates the random key for the hashes in the cache.
fn secret() -> [u8; 32] {
    let mut secret = [0; 32];
    for chunk in secret.chunks_exact_mut(8) {
        chunk.copy_from_slice(&RandomState::new().hash_one(0).to_le_bytes());
    }
    secret
}

type Key = [u8; 32];

/// Identifies a layer, so that it accepts only the results of its own checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LayerId(u64);

impl LayerId {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        LayerId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The layers that have authenticated a request, which is checked again if it is resumed or has a body.
#[derive(Clone, Default)]
struct Passed(Vec<LayerId>);

/// The result of a password check on the thread pool, for the layer that started it.
#[derive(Clone)]
struct Verified {
    layer: LayerId,
    user: User,
}

struct BasicAuth<H> {
    inner: H,
    checker: Checker,
}

impl<H: Handler> Handler for BasicAuth<H> {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        self.checker.check(head).map_or_else(|| self.inner.head(head), BodyMode::Reject)
    }

    /// Checks here too: the server calls `head` only for requests with a body, and an outer layer may not forward it.
    fn call(&mut self, request: &Request<'_>) -> Response {
        self.checker.check(&request.head()).unwrap_or_else(|| self.inner.call(request))
    }
}

struct Checker {
    layer: LayerId,
    users: UserStore,
    cache: Arc<Mutex<Cache>>,
    queue: Arc<Mutex<FairQueue<QueuedCheck>>>,
    secret: [u8; 32],
    challenge: Arc<str>,
    pool: Pool,
    metrics: Option<Arc<AuthMetrics>>,
}

/// Cached correct credentials with their expiry, and the requests that wait for checks in progress.
#[derive(Default)]
struct Cache {
    valid: HashMap<Key, Instant>,
    /// The number of times the users had been replaced when `valid` was last used.
    generation: u64,
    waiting: HashMap<Key, Vec<Responder>>,
}

/// Credentials of a request.
struct Credentials {
    name: String,
    password: Vec<u8>,
}

impl Credentials {
    /// Parses an Authorization header (RFC 7617 section 2): `Basic` and `name:password` in Base64. Names must not
    /// contain control characters.
    fn parse(header: &[u8]) -> Option<Self> {
        let (scheme, rest) = header.split_at_checked(6)?;
        if !scheme.eq_ignore_ascii_case(b"basic ") {
            return None;
        }
        let mut name = STANDARD.decode(rest.trim_ascii()).ok()?;
        let colon = name.iter().position(|&byte| byte == b':')?;
        let password = name.split_off(colon + 1);
        name.pop();
        let name = String::from_utf8(name).ok().filter(|name| !name.contains(char::is_control))?;
        Some(Credentials { name, password })
    }
}

impl Checker {
    /// Returns `None` if the request is authenticated; otherwise the response, which suspends the request if the
    /// password has to be checked first.
    fn check(&self, head: &RequestHead<'_>) -> Option<Response> {
        if head.extension::<Passed>().is_some_and(|passed| passed.0.contains(&self.layer)) {
            return None;
        }
        if let Some(verified) = head.extension::<Verified>().filter(|verified| verified.layer == self.layer) {
            self.accept(head, verified.user);
            return None;
        }
        let authorization = head.header("authorization");
        let Some(credentials) = authorization.and_then(Credentials::parse) else {
            self.count(if authorization.is_some() { AuthResult::Failure } else { AuthResult::Missing });
            return Some(unauthorized(&self.challenge));
        };
        let (users, generation) = self.users.current();
        let key = self.key(&credentials, generation);
        let mut cache = lock(&self.cache);
        if cache.generation != generation {
            cache.generation = generation;
            cache.valid.clear();
        }
        if cache.is_valid(&key) {
            drop(cache);
            self.accept(head, User(credentials.name.into()));
            return None;
        }
        let (response, responder) = Response::suspend();
        if let Some(waiting) = cache.waiting.get_mut(&key) {
            waiting.push(responder);
            return Some(response);
        }
        cache.waiting.insert(key, vec![responder]);
        drop(cache);
        Some(self.start_check(QueuedCheck { check: self.new_check(key), users, credentials }, head.client(), response))
    }

    /// Marks the request as authenticated by this layer.
    fn accept(&self, head: &RequestHead<'_>, user: User) {
        let mut passed = head.extension::<Passed>().unwrap_or_default();
        passed.0.push(self.layer);
        head.insert(passed);
        head.insert(user);
        self.count(AuthResult::Success);
    }

    fn count(&self, result: AuthResult) {
        self.metrics.iter().for_each(|metrics| metrics.count(result));
    }

    fn new_check(&self, key: Key) -> Check {
        let (challenge, cache, metrics) = (self.challenge.clone(), self.cache.clone(), self.metrics.clone());
        Check { layer: self.layer, key, cache, challenge, metrics, outcome: Outcome::Refused }
    }

    /// Queues a check. Each job of the pool performs one check of the queue, which selects it.
    fn start_check(&self, check: QueuedCheck, client: Option<IpAddr>, response: Response) -> Response {
        let mut queue = lock(&self.queue);
        queue.push(client, check);
        let jobs = self.queue.clone();
        let job = move || {
            let next = lock(&jobs).pop();
            if let Some(QueuedCheck { check, users, credentials }) = next {
                check.perform(&users, credentials);
            }
        };
        let evicted = if self.pool.run(job).is_ok() { None } else { queue.evict() };
        drop(queue);
        if let Some(mut evicted) = evicted {
            evicted.check.outcome = Outcome::Busy;
        }
        response
    }

    /// Returns the cache key of the credentials. It is a keyed hash, so it does not reveal the password, and clients
    /// cannot construct collisions. The result of a check that began before the users were replaced has another key.
    fn key(&self, credentials: &Credentials, generation: u64) -> Key {
        let mut hash = Sha256::new();
        hash.update(self.secret);
        hash.update(generation.to_le_bytes());
        hash.update((credentials.name.len() as u64).to_le_bytes());
        hash.update(&credentials.name);
        hash.update(&credentials.password);
        hash.finalize().into()
    }
}

impl Cache {
    fn is_valid(&self, key: &Key) -> bool {
        // Expired entries are removed when space is needed.
        self.valid.get(key).is_some_and(|until| Instant::now() < *until)
    }

    fn insert(&mut self, key: Key) {
        let now = Instant::now();
        if self.valid.len() >= CACHE_ENTRIES_MAX {
            self.valid.retain(|_, until| now < *until);
        }
        if self.valid.len() >= CACHE_ENTRIES_MAX
            && let Some(oldest) = self.valid.iter().min_by_key(|(_, until)| **until).map(|(key, _)| *key)
        {
            self.valid.remove(&oldest);
        }
        self.valid.insert(key, now + CACHE_TIME);
    }
}

/// A check that waits for a thread.
struct QueuedCheck {
    check: Check,
    users: Arc<Users>,
    credentials: Credentials,
}

/// The result of a check.
enum Outcome {
    Accepted(User),
    Refused,
    /// The queue was full.
    Busy,
    /// Not checked, as nobody waits for the result.
    Abandoned,
}

/// A password check in progress. Dropping it, with or without a result, answers all requests that wait for it.
struct Check {
    layer: LayerId,
    key: Key,
    cache: Arc<Mutex<Cache>>,
    challenge: Arc<str>,
    metrics: Option<Arc<AuthMetrics>>,
    outcome: Outcome,
}

impl Check {
    fn perform(mut self, users: &Users, credentials: Credentials) {
        if self.abandon_if_unneeded() {
            return;
        }
        if users.check(&credentials.name, &credentials.password) {
            self.outcome = Outcome::Accepted(User(credentials.name.into()));
        }
    }

    /// If nobody waits for the result any more, removes the check, and returns true. Both in one step, so that a new
    /// request does not join a check that is not made.
    fn abandon_if_unneeded(&mut self) -> bool {
        let mut cache = lock(&self.cache);
        let is_needed = |waiting: &Vec<Responder>| waiting.iter().any(|responder| !responder.is_closed());
        if cache.waiting.get(&self.key).is_some_and(is_needed) {
            return false;
        }
        let closed = cache.waiting.remove(&self.key);
        drop(cache);
        drop(closed);
        self.outcome = Outcome::Abandoned;
        true
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        if matches!(self.outcome, Outcome::Abandoned) {
            return;
        }
        let mut cache = lock(&self.cache);
        if matches!(self.outcome, Outcome::Accepted(_)) {
            cache.insert(self.key);
        }
        let waiting = cache.waiting.remove(&self.key).unwrap_or_default();
        drop(cache);
        // The worker counts a success when it resumes the request.
        let result = match &self.outcome {
            Outcome::Accepted(_) | Outcome::Abandoned => None,
            Outcome::Refused => Some(AuthResult::Failure),
            Outcome::Busy => Some(AuthResult::Busy),
        };
        for responder in waiting {
            if let (Some(metrics), Some(result)) = (&self.metrics, result) {
                metrics.count(result);
            }
            match &self.outcome {
                Outcome::Accepted(user) => responder.resume(Verified { layer: self.layer, user: user.clone() }),
                Outcome::Refused => responder.respond(unauthorized(&self.challenge)),
                Outcome::Busy => responder.respond(busy()),
                Outcome::Abandoned => {}
            }
        }
    }
}

fn busy() -> Response {
    Response::from(StatusCode::SERVICE_UNAVAILABLE).header("Retry-After", "1")
}

fn unauthorized(challenge: &str) -> Response {
    let text = "authentication required\n";
    Response::error(StatusCode::UNAUTHORIZED, text).header("WWW-Authenticate", challenge)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> Users {
        let hash = |password: &str, cost| bcrypt::hash(password, cost).unwrap();
        Users::parse(&format!("# comment\n\nalice:{}\nb\u{f6}b:{}\n", hash("wonder:land", 4), hash("", 5))).unwrap()
    }

    #[test]
    fn only_the_correct_password_is_accepted() {
        let users = users();
        assert!(users.check("alice", b"wonder:land") && users.check("b\u{f6}b", b""));
        for (name, password) in
            [("alice", ""), ("alice", "wonder:lane"), ("Alice", "wonder:land"), ("", ""), ("eve", "")]
        {
            assert!(!users.check(name, password.as_bytes()), "{name} {password}");
        }
        // The slowest hash is the decoy; its password must not admit unknown users.
        assert!(users.decoy.starts_with("$2b$05$") && !users.check("unknown", b""));
    }

    #[test]
    fn errors_in_a_user_list_are_explained() {
        for (lines, message) in [
            ("", "no users given"),
            ("alice", "expected NAME:HASH"),
            ("alice:secret", "not a bcrypt hash"),
            ("alice:$apr1$x$y", "not a bcrypt hash"),
            ("alice:$2y$31$nF4wGCaEtRacYiOVnrhaQeX.3xDjiQ/U/lAOzoim86wOywsVSaKAy", "cost 31"),
        ] {
            let error = Users::parse(lines).unwrap_err();
            assert!(error.contains(message), "{lines}: {error}");
        }
        let line = "a:$2y$05$nF4wGCaEtRacYiOVnrhaQeX.3xDjiQ/U/lAOzoim86wOywsVSaKAy\n";
        assert!(Users::parse(&line.repeat(2)).unwrap_err().contains("duplicate user"));
    }

    #[test]
    fn credentials_are_parsed_according_to_rfc_7617() {
        let parse = |header: &str| {
            Credentials::parse(header.as_bytes()).map(|credentials| (credentials.name, credentials.password))
        };
        let some = |name: &str, password: &str| Some((name.to_owned(), password.as_bytes().to_vec()));
        assert_eq!(parse("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="), some("Aladdin", "open sesame"));
        assert_eq!(parse("bAsIc   dGVzdDoxMjPCow=="), some("test", "123\u{a3}"));
        assert_eq!(parse("Basic YTpiOmM="), some("a", "b:c"));
        assert_eq!(parse("Basic Og=="), some("", ""));
        for header in ["", "Basic", "Basic ", "Basic !", "Basic YQ==", "Bearer QTpi", "Basic CjpiCg==", "Basic /zpi"] {
            assert_eq!(parse(header), None, "{header:?}");
        }
    }

    #[test]
    fn requests_that_wait_for_a_check_are_counted_by_its_result() {
        let metrics = Arc::new(AuthMetrics::default());
        for outcome in [Outcome::Busy, Outcome::Refused, Outcome::Accepted(User("alice".into()))] {
            let cache = Arc::new(Mutex::new(Cache::default()));
            let (responses, waiting): (Vec<_>, _) = (0..2).map(|_| Response::suspend()).unzip();
            lock(&cache).waiting.insert([0; 32], waiting);
            let (layer, challenge, metrics) = (LayerId::new(), "".into(), Some(Arc::clone(&metrics)));
            drop(Check { layer, key: [0; 32], cache, challenge, metrics, outcome });
            drop(responses);
        }
        // A success is counted when a request is resumed.
        let counts = AuthResult::ALL.map(|(result, name)| (name, metrics.get(result)));
        assert_eq!(counts, [("success", 0), ("failure", 2), ("missing", 0), ("busy", 2)]);
    }

    #[test]
    fn a_check_that_nobody_waits_for_is_not_made_and_not_counted() {
        let (metrics, cache) = (Arc::new(AuthMetrics::default()), Arc::new(Mutex::new(Cache::default())));
        let (response, responder) = Response::suspend();
        drop(response);
        assert!(responder.is_closed());
        lock(&cache).waiting.insert([0; 32], vec![responder]);
        let (layer, challenge) = (LayerId::new(), "".into());
        let (outcome, counted) = (Outcome::Refused, Some(Arc::clone(&metrics)));
        let mut check = Check { layer, key: [0; 32], cache: Arc::clone(&cache), challenge, metrics: counted, outcome };
        assert!(check.abandon_if_unneeded());
        // Another request with the same credentials begins a check of its own.
        let (_response, responder) = Response::suspend();
        assert!(lock(&cache).waiting.insert([0; 32], vec![responder]).is_none());
        drop(check);
        assert!(lock(&cache).waiting.contains_key(&[0; 32]));
        assert!(AuthResult::ALL.iter().all(|(result, _)| metrics.get(*result) == 0));
    }

    #[test]
    fn the_cache_is_bounded_and_expires() {
        let mut cache = Cache::default();
        let key = |number: usize| -> Key { Sha256::digest(number.to_le_bytes()).into() };
        for number in 0..CACHE_ENTRIES_MAX + 10 {
            cache.insert(key(number));
        }
        assert_eq!(cache.valid.len(), CACHE_ENTRIES_MAX);
        assert!(!cache.is_valid(&key(0)) && cache.is_valid(&key(CACHE_ENTRIES_MAX + 9)));
        cache.valid.insert(key(20), Instant::now());
        assert!(!cache.is_valid(&key(20)));
    }
}

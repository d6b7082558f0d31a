//! Names and passwords (RFC 7617), checked against bcrypt hashes.
//!
//! A check takes as long as its author wants a guess to take, so it is made on a pool's threads; the request waits
//! meanwhile. What was found right is remembered for some minutes, by a keyed hash of name and password, so that only
//! the first request of a session pays. What was found wrong is not: guesses shall be slow.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use sha2::{Digest, Sha256};

use super::super::link::lock;
use super::guard;
use crate::httpserver::{Handler, Pool, RequestHead, Responder, Response};

/// How long a name and password that were right need not be checked again.
const REMEMBERED: Duration = Duration::from_secs(300);

/// Names and passwords that are remembered at once.
const REMEMBERED_MAX: usize = 1024;

/// Rounds as a power of two. 31, the most that bcrypt has, would take a day for one check.
const COST_MAX: u32 = 16;

/// Who is let in: names with the hashes of their passwords.
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
    /// Checked for names that nobody has, so that these take as long.
    decoy: String,
}

impl Users {
    /// Reads lines of the form `name:hash`, as `htpasswd -B` and `serverd hash` write them. Empty lines, and those that
    /// begin with `#`, count for nothing. All hashes should have the same cost: who is nobody takes as long as the
    /// slowest.
    ///
    /// # Errors
    /// One sentence that says what is wrong, and with which name.
    pub fn parse(lines: &str) -> Result<Self, String> {
        let mut hashes = HashMap::new();
        let mut decoy = (0, String::new());
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let Some((name, hash)) = line.split_once(':') else {
                return Err("write NAME:HASH, as `serverd hash NAME` prints it".into());
            };
            let cost = cost(name, hash)?;
            if cost >= decoy.0 {
                decoy = (cost, hash.to_owned());
            }
            if hashes.insert(name.to_owned(), hash.to_owned()).is_some() {
                return Err(format!("{name} is there twice"));
            }
        }
        if hashes.is_empty() {
            return Err("nobody is named; write NAME:HASH, as `serverd hash NAME` prints it".into());
        }
        Ok(Users { hashes, decoy: decoy.1 })
    }

    /// Whether the password is that of the name; takes as long where there is no such name.
    fn check(&self, name: &str, password: &[u8]) -> bool {
        let known = self.hashes.get(name);
        // The crate compares in constant time.
        let matches = bcrypt::verify(password, known.unwrap_or(&self.decoy)).unwrap_or(false);
        matches && known.is_some()
    }
}

/// The cost of a hash that can be checked.
fn cost(name: &str, hash: &str) -> Result<u32, String> {
    let advice = "is no bcrypt hash; make one by `serverd hash` or `htpasswd -nbB`, and quote it in the shell by '...'";
    let parts: bcrypt::HashParts = hash.parse().map_err(|_| format!("what stands behind {name:?}: {advice}"))?;
    match parts.get_cost() {
        cost @ 4..=COST_MAX => Ok(cost),
        cost => Err(format!("the hash of {name:?} has the cost {cost}; from 4 to {COST_MAX} can be checked")),
    }
}

/// Who a request is from, once [`basic`] let it through; found by [`RequestHead::extension`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User(pub Arc<str>);

/// Lets through who gives a name and its password by the Basic scheme (RFC 7617), and asks everybody else for one: 401 with
/// WWW-Authenticate. Passwords are checked on the threads of the pool; where its queue is full, the answer is 503 with
/// Retry-After. What was found right is remembered for five minutes; clones of `users` in other workers remember for
/// themselves. Without TLS in front, passwords can be read on the way.
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
/// let server = HttpServer::with(layers::basic(page, "the members", users, Pool::new(1, 64).expect("threads")));
/// # drop(server);
/// # Ok::<(), String>(())
/// ```
pub fn basic<H: Handler>(inner: H, realm: &str, users: Users, pool: Pool) -> impl Handler + use<H> {
    let realm: String = realm.chars().filter(|letter| !letter.is_control()).collect();
    let challenge = format!("Basic realm=\"{}\", charset=\"UTF-8\"", realm.replace('\\', "\\\\").replace('"', "\\\""));
    let door =
        Door { users: Arc::new(users), memory: Arc::default(), secret: secret(), challenge: challenge.into(), pool };
    guard(inner, move |head| door.refusal(head))
}

/// What hashes in memory are keyed by: random for each process, from the system.
fn secret() -> [u8; 32] {
    let mut secret = [0; 32];
    for chunk in secret.chunks_exact_mut(8) {
        chunk.copy_from_slice(&RandomState::new().hash_one(0).to_le_bytes());
    }
    secret
}

type Key = [u8; 32];

struct Door {
    users: Arc<Users>,
    memory: Arc<Mutex<Memory>>,
    secret: [u8; 32],
    challenge: Arc<str>,
    pool: Pool,
}

/// What was found right, and until when that holds; and who waits for what is being found out.
#[derive(Default)]
struct Memory {
    right: HashMap<Key, Instant>,
    waiting: HashMap<Key, Vec<Responder>>,
}

/// What a request brought.
struct Credentials {
    name: String,
    password: Vec<u8>,
}

impl Credentials {
    /// RFC 7617 section 2: `Basic`, and name, colon and password in Base64. Names have no control characters.
    fn read(field: &[u8]) -> Option<Self> {
        let (scheme, rest) = field.split_at_checked(6)?;
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

impl Door {
    fn refusal(&self, head: &RequestHead<'_>) -> Option<Response> {
        if head.extension::<User>().is_some() {
            return None;
        }
        let Some(credentials) = head.field("authorization").and_then(Credentials::read) else {
            return Some(unauthorized(&self.challenge));
        };
        let key = self.key(&credentials);
        let mut memory = lock(&self.memory);
        if memory.is_right(&key) {
            drop(memory);
            head.insert(User(credentials.name.into()));
            return None;
        }
        let (response, responder) = Response::undecided();
        if let Some(waiting) = memory.waiting.get_mut(&key) {
            waiting.push(responder);
            return Some(response);
        }
        memory.waiting.insert(key, vec![responder]);
        drop(memory);
        Some(self.begin(key, credentials, response))
    }

    fn begin(&self, key: Key, credentials: Credentials, response: Response) -> Response {
        let (users, challenge, memory) = (self.users.clone(), self.challenge.clone(), self.memory.clone());
        let check = Check { key, memory, challenge, user: None };
        if self.pool.run(move || check.perform(&users, credentials)).is_ok() {
            return response;
        }
        // The check was dropped, and nobody but this request had begun to wait for it.
        Response::from(StatusCode::SERVICE_UNAVAILABLE).field("Retry-After", "1")
    }

    /// By what a name and password are known: without the secret nothing can be learnt from it, nor made to collide.
    fn key(&self, credentials: &Credentials) -> Key {
        let mut hash = Sha256::new();
        hash.update(self.secret);
        hash.update((credentials.name.len() as u64).to_le_bytes());
        hash.update(&credentials.name);
        hash.update(&credentials.password);
        hash.finalize().into()
    }
}

impl Memory {
    fn is_right(&self, key: &Key) -> bool {
        // Expired ones go when there is need of room.
        self.right.get(key).is_some_and(|until| Instant::now() < *until)
    }

    fn remember(&mut self, key: Key) {
        let now = Instant::now();
        if self.right.len() >= REMEMBERED_MAX {
            self.right.retain(|_, until| now < *until);
        }
        if self.right.len() >= REMEMBERED_MAX
            && let Some(oldest) = self.right.iter().min_by_key(|(_, until)| **until).map(|(key, _)| *key)
        {
            self.right.remove(&oldest);
        }
        self.right.insert(key, now + REMEMBERED);
    }
}

/// A check under way. When it is dropped, whatever came of it, everybody who waits for it is answered.
struct Check {
    key: Key,
    memory: Arc<Mutex<Memory>>,
    challenge: Arc<str>,
    /// Who it is, once that is known.
    user: Option<User>,
}

impl Check {
    fn perform(mut self, users: &Users, credentials: Credentials) {
        let is_awaited = |waiting: &Vec<Responder>| waiting.iter().any(|responder| !responder.is_closed());
        if lock(&self.memory).waiting.get(&self.key).is_some_and(is_awaited)
            && users.check(&credentials.name, &credentials.password)
        {
            self.user = Some(User(credentials.name.into()));
        }
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        let mut memory = lock(&self.memory);
        if self.user.is_some() {
            memory.remember(self.key);
        }
        let waiting = memory.waiting.remove(&self.key).unwrap_or_default();
        drop(memory);
        for responder in waiting {
            match &self.user {
                Some(user) => responder.ask_again(user.clone()),
                None => responder.respond(unauthorized(&self.challenge)),
            }
        }
    }
}

fn unauthorized(challenge: &str) -> Response {
    let text = "a name and its password are needed\n";
    Response::error(StatusCode::UNAUTHORIZED, text).field("WWW-Authenticate", challenge)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> Users {
        let hash = |password: &str, cost| bcrypt::hash(password, cost).unwrap();
        Users::parse(&format!("# us\n\nalice:{}\nb\u{f6}b:{}\n", hash("wonder:land", 4), hash("", 5))).unwrap()
    }

    #[test]
    fn only_the_right_password_is_right() {
        let users = users();
        assert!(users.check("alice", b"wonder:land") && users.check("b\u{f6}b", b""));
        for (name, password) in
            [("alice", ""), ("alice", "wonder:lane"), ("Alice", "wonder:land"), ("", ""), ("eve", "")]
        {
            assert!(!users.check(name, password.as_bytes()), "{name} {password}");
        }
        // The slowest is the decoy, and its own password does not open the door for nobody.
        assert!(users.decoy.starts_with("$2b$05$") && !users.check("nobody", b""));
    }

    #[test]
    fn what_is_no_list_of_users_is_explained() {
        for (lines, advice) in [
            ("", "nobody is named"),
            ("alice", "write NAME:HASH"),
            ("alice:secret", "no bcrypt hash"),
            ("alice:$apr1$x$y", "no bcrypt hash"),
            ("alice:$2y$31$nF4wGCaEtRacYiOVnrhaQeX.3xDjiQ/U/lAOzoim86wOywsVSaKAy", "cost 31"),
        ] {
            let error = Users::parse(lines).unwrap_err();
            assert!(error.contains(advice), "{lines}: {error}");
        }
        let line = "a:$2y$05$nF4wGCaEtRacYiOVnrhaQeX.3xDjiQ/U/lAOzoim86wOywsVSaKAy\n";
        assert!(Users::parse(&line.repeat(2)).unwrap_err().contains("twice"));
    }

    #[test]
    fn credentials_are_read_as_rfc_7617_has_it() {
        let read = |field: &str| Credentials::read(field.as_bytes()).map(|read| (read.name, read.password));
        let some = |name: &str, password: &str| Some((name.to_owned(), password.as_bytes().to_vec()));
        assert_eq!(read("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="), some("Aladdin", "open sesame"));
        assert_eq!(read("bAsIc   dGVzdDoxMjPCow=="), some("test", "123\u{a3}"));
        assert_eq!(read("Basic YTpiOmM="), some("a", "b:c"));
        assert_eq!(read("Basic Og=="), some("", ""));
        for field in ["", "Basic", "Basic ", "Basic !", "Basic YQ==", "Bearer QTpi", "Basic CjpiCg==", "Basic /zpi"] {
            assert_eq!(read(field), None, "{field:?}");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded_and_expires() {
        let mut memory = Memory::default();
        let key = |number: usize| -> Key { Sha256::digest(number.to_le_bytes()).into() };
        for number in 0..REMEMBERED_MAX + 10 {
            memory.remember(key(number));
        }
        assert_eq!(memory.right.len(), REMEMBERED_MAX);
        assert!(!memory.is_right(&key(0)) && memory.is_right(&key(REMEMBERED_MAX + 9)));
        memory.right.insert(key(20), Instant::now());
        assert!(!memory.is_right(&key(20)));
    }
}

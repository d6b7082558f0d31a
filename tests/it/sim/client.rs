//! Clients of the simulated world: each follows a script and knows what must come of it.

use bytes::Bytes;

use super::world::World;

/// One step of a client.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Sends bytes, in pieces.
    Send(Bytes),
    /// Sends a byte again and again, so many milliseconds apart, until an answer or an end comes.
    Drip(u64),
    /// Sends bytes, whatever comes, until all are sent or the server resets.
    Push(Bytes),
    /// Does nothing for so many milliseconds.
    Pause(u64),
    /// Reads one answer with this status and a body that begins so.
    Answer(u16, String),
    /// Remembers the time.
    Mark,
    /// The end comes, with nothing before it.
    End,
    /// What came last took so many milliseconds since the mark: at least the first, at most the second.
    Took(u64, u64),
    /// The server has given up on who takes nothing.
    WasReset,
    /// Closes its sending half.
    Finish,
    /// Goes away with a reset.
    Reset,
}

/// How a client ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Not yet.
    Underway,
    /// As the script says.
    Done,
    /// Nobody listens any more.
    NotAdmitted,
    /// Otherwise, with the reason.
    Wronged(String),
}

pub(super) struct Client {
    pub(super) kind: &'static str,
    script: Vec<Step>,
    place: usize,
    /// How much of a `Send` is gone.
    sent: usize,
    pub(super) socket: Option<usize>,
    seen: Vec<u8>,
    mark_us: u64,
    /// The pause under way ends then.
    until_us: Option<u64>,
    /// When the first byte of the last `Send` left.
    asked_us: u64,
    /// The last answer said that it is the last.
    pub(super) told_close: bool,
    pub(super) fate: Fate,
    pub(super) answers: usize,
}

/// What looking for an answer finds.
enum Look {
    Wait,
    Answer { status: u16, body: String, close: bool },
    End,
    Reset,
}

impl Client {
    pub(super) fn new(kind: &'static str, script: Vec<Step>) -> Self {
        Client {
            kind,
            script,
            place: 0,
            sent: 0,
            socket: None,
            seen: Vec::new(),
            mark_us: 0,
            until_us: None,
            asked_us: 0,
            told_close: false,
            fate: Fate::Underway,
            answers: 0,
        }
    }

    /// Acts as far as it can now.
    pub(super) fn act(&mut self, world: &mut World, index: usize) {
        if self.fate != Fate::Underway {
            return;
        }
        let Some(socket) = self.socket.or_else(|| self.connect(world, index)) else {
            self.fate = Fate::NotAdmitted;
            return;
        };
        while self.fate == Fate::Underway {
            let Some(step) = self.script.get(self.place).cloned() else {
                self.fate = Fate::Done;
                world.client_finish(socket);
                return;
            };
            if !self.step(world, index, socket, step) {
                return;
            }
        }
        // A client that was wronged goes away.
        world.client_reset(socket);
    }

    fn connect(&mut self, world: &mut World, index: usize) -> Option<usize> {
        let socket = world.connect(index)?;
        self.socket = Some(socket);
        self.mark_us = world.now_us();
        Some(socket)
    }

    fn next(&mut self) -> bool {
        self.place += 1;
        self.sent = 0;
        self.until_us = None;
        true
    }

    /// What came is not what the script wants: a wrong, unless the connection was struck by a fault of the world, or
    /// the server drains and the client is of a kind that has no claim then.
    fn wronged(&mut self, world: &World, what: &str) -> bool {
        let struck = self.socket.is_some_and(|socket| world.sockets[socket].doomed);
        let unclaimed = !matches!(self.kind, "keep-alive" | "pipelining" | "half-closing" | "refused");
        if struck || (unclaimed && world.drain_us.is_some()) {
            self.fate = Fate::Done;
            return true;
        }
        let step = &self.script[self.place];
        let step = format!("{step:?}").chars().take(80).collect::<String>();
        self.fate =
            Fate::Wronged(format!("{} at {} us, step {} {step}: {what}", self.kind, world.now_us(), self.place));
        true
    }

    /// Takes a step; false when it has to wait.
    fn step(&mut self, world: &mut World, index: usize, socket: usize, step: Step) -> bool {
        match step {
            Step::Send(bytes) => self.send(world, index, socket, &bytes, false),
            Step::Push(bytes) => self.send(world, index, socket, &bytes, true),
            Step::Pause(ms) => self.pause(world, index, ms) && self.next(),
            Step::Drip(ms) => {
                if self.sees_nothing(world, socket) {
                    if self.pause(world, index, ms) {
                        self.until_us = None;
                        // Who still waits at the door would fill the head before its clock starts.
                        if world.sockets[socket].accepted_us.is_some() {
                            let _ = world.client_send(socket, b"a");
                        }
                        return self.step(world, index, socket, Step::Drip(ms));
                    }
                    return false;
                }
                self.next()
            }
            Step::Mark => {
                self.mark_us = world.now_us();
                self.next()
            }
            Step::Answer(status, body) => match self.look(world, socket) {
                Look::Wait => false,
                Look::Answer { status: got, body: text, close } => {
                    self.answers += 1;
                    self.told_close |= close;
                    if got == status && text.starts_with(&body) {
                        self.next()
                    } else {
                        self.wronged(world, &format!("got {got} {:?}", text.chars().take(40).collect::<String>()))
                    }
                }
                Look::End => self.unanswered(world, "an end"),
                Look::Reset => self.unanswered(world, "a reset"),
            },
            Step::End => match self.look(world, socket) {
                Look::Wait => false,
                Look::End => self.next(),
                Look::Reset => self.unanswered(world, "a reset"),
                Look::Answer { status, body, .. } => self.wronged(world, &format!("got {status} {body:?}")),
            },
            Step::WasReset => {
                let end = &world.sockets[socket];
                let due_us = end.accepted_us.unwrap_or(u64::MAX).saturating_add(35_000_000 + world.stalled_us);
                if !end.down_reset && world.now_us() >= due_us {
                    return self.wronged(world, "not reset");
                }
                self.next()
            }
            Step::Took(least_ms, most_ms) => {
                let since_us = self.mark_us.max(world.sockets[socket].accepted_us.unwrap_or(0));
                let took_us = world.now_us() - since_us;
                let latest_us = most_ms * 1000 + 150_000 + world.stalled_us;
                if took_us < least_ms * 1000 {
                    return self.wronged(world, &format!("early, after {took_us} us"));
                }
                if took_us > latest_us {
                    return self.wronged(world, &format!("late, after {took_us} us"));
                }
                self.next()
            }
            Step::Finish => {
                world.client_finish(socket);
                self.next()
            }
            Step::Reset => {
                world.client_reset(socket);
                self.next()
            }
        }
    }

    /// What is not answered was asked of a server that had said it would not, or that has drained for a while.
    fn unanswered(&mut self, world: &World, what: &str) -> bool {
        let late = world.drain_us.is_some_and(|drain| self.asked_us >= drain + 900_000);
        // Who pushes while the server stands still may push longer than the server promises to listen.
        let stalled = self.kind == "refused" && world.stalled_us > 1_000_000;
        // Where accepting fails for seconds while the server drains, it gives up who waits at the door.
        let waiting = self.socket.is_some_and(|socket| world.sockets[socket].accepted_us.is_none());
        let given_up = waiting && world.nature.faulty && world.drain_us.is_some();
        if self.told_close || late || stalled || given_up {
            self.fate = Fate::Done;
            return true;
        }
        self.wronged(world, what)
    }

    fn pause(&mut self, world: &mut World, index: usize, ms: u64) -> bool {
        match self.until_us {
            Some(until) if world.now_us() >= until => true,
            Some(_) => false,
            None => {
                self.until_us = Some(world.now_us() + ms * 1000);
                world.wake_client(index, ms * 1000);
                false
            }
        }
    }

    fn send(&mut self, world: &mut World, index: usize, socket: usize, bytes: &[u8], regardless: bool) -> bool {
        if self.until_us.is_some_and(|until| world.now_us() < until) {
            return false;
        }
        if self.sent == 0 {
            self.asked_us = world.now_us();
        }
        if self.kind != "deaf" {
            // Who asks for much and reads nothing meanwhile may find the server waiting for him.
            world.client_read(socket, &mut self.seen);
        }
        let Some(count) = world.client_send(socket, &bytes[self.sent..]) else {
            self.told_close |= self.seen.windows(17).any(|word| word == b"Connection: close");
            return if regardless { self.next() } else { self.unanswered(world, "a reset while sending") };
        };
        self.sent += count;
        if self.sent == bytes.len() {
            return self.next();
        }
        let delay_us = 1 + world.dice.below(20_000);
        self.until_us = Some(world.now_us() + delay_us);
        world.wake_client(index, delay_us);
        false
    }

    /// Whether neither a byte nor an end has come.
    fn sees_nothing(&mut self, world: &mut World, socket: usize) -> bool {
        world.client_read(socket, &mut self.seen);
        let end = &world.sockets[socket];
        self.seen.is_empty() && !end.down_reset && !end.down_fin
    }

    /// Reads what there is and looks whether it is an answer.
    fn look(&mut self, world: &mut World, socket: usize) -> Look {
        loop {
            if let Some((used, look)) = answer(&self.seen) {
                self.seen.drain(..used);
                return look;
            }
            if world.client_read(socket, &mut self.seen) == 0 {
                break;
            }
        }
        let end = &world.sockets[socket];
        match (end.down_reset, end.down_fin) {
            (true, _) => Look::Reset,
            (_, true) => Look::End,
            _ => Look::Wait,
        }
    }
}

/// A whole answer at the beginning of some bytes, with its length.
fn answer(seen: &[u8]) -> Option<(usize, Look)> {
    let head_len = seen.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&seen[..head_len]).expect("a head in ASCII");
    let status = head.get(9..12)?.parse().expect("a status");
    let lower = head.to_ascii_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.expect("a length").trim().parse().expect("a number");
    let body = seen.get(head_len..head_len + length)?;
    let body = String::from_utf8_lossy(&body[..length.min(200)]).into_owned();
    let close = lower.contains("connection: close");
    Some((head_len + length, Look::Answer { status, body, close }))
}

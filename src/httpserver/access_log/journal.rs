//! What one loop knows of the requests under way, and the lines of its turn.

use std::collections::HashMap;
use std::net::SocketAddr;

use http::StatusCode;

use super::AccessLog;
use super::line::{self, Asked, Date, Ended};
use crate::httpserver::{Nudge, RequestHead};
use crate::r#loop::{ConnId, Ending, Wire};

/// The client closed before it was answered; what nginx writes there.
const CLOSED_REQUEST: u16 = 499;

/// Lines that are handed over before the turn ends.
const BATCH_BYTES: usize = 64 * 1024;

/// Rendered requests whose memory is kept for the next ones.
const SPARES_MAX: usize = 64;

/// The access log as one loop sees it.
pub(crate) struct Journal {
    log: AccessLog,
    date: Date,
    callers: HashMap<ConnId, Caller>,
    spares: Vec<Asked>,
    batch: Vec<u8>,
    lines: u64,
    wall: u64,
    now_ms: u64,
}

/// A connection.
struct Caller {
    peer: Option<SocketAddr>,
    under_way: Option<UnderWay>,
}

/// A request that is not answered yet.
struct UnderWay {
    asked: Asked,
    began_ms: u64,
    /// The answer's, once it is known.
    status: Option<u16>,
}

fn millis(wire: &Wire<'_, Nudge>) -> u64 {
    u64::try_from(wire.now().as_millis()).unwrap_or(u64::MAX)
}

impl Journal {
    pub(crate) fn new(log: AccessLog) -> Self {
        let (date, callers, spares, batch) = (Date::default(), HashMap::new(), Vec::new(), Vec::new());
        Journal { log, date, callers, spares, batch, lines: 0, wall: 0, now_ms: 0 }
    }

    pub(crate) fn open(&mut self, id: ConnId, peer: Option<SocketAddr>) {
        self.callers.insert(id, Caller { peer, under_way: None });
    }

    /// A head came.
    pub(crate) fn begin(&mut self, wire: &Wire<'_, Nudge>, head: &RequestHead<'_>) {
        let asked = self.spares.pop().unwrap_or_default().by(self.log.format, head);
        self.put(wire, asked);
    }

    /// Something came that is no request: `input` is its beginning. One that was read so far that it is under way is told
    /// as what it is.
    pub(crate) fn refuse(&mut self, wire: &Wire<'_, Nudge>, input: &[u8]) {
        if self.caller(wire).under_way.is_none() {
            let asked = self.spares.pop().unwrap_or_default().unreadable(self.log.format, input);
            self.put(wire, asked);
        }
    }

    fn put(&mut self, wire: &Wire<'_, Nudge>, asked: Asked) {
        let began_ms = millis(wire);
        self.caller(wire).under_way = Some(UnderWay { asked, began_ms, status: None });
    }

    fn caller(&mut self, wire: &Wire<'_, Nudge>) -> &mut Caller {
        (self.wall, self.now_ms) = (wire.wall(), millis(wire));
        self.callers.entry(wire.id()).or_insert_with(|| Caller { peer: wire.ends().peer(), under_way: None })
    }

    /// The head of an answer is written.
    pub(crate) fn answer(&mut self, wire: &Wire<'_, Nudge>, status: StatusCode) {
        if let Some(under_way) = &mut self.caller(wire).under_way {
            under_way.status = Some(status.as_u16());
        }
    }

    /// The answer is whole, or as much of it as there will be, and its content has so many octets.
    pub(crate) fn end(&mut self, wire: &Wire<'_, Nudge>, bytes: u64) {
        let caller = self.caller(wire);
        let (peer, under_way) = (caller.peer, caller.under_way.take());
        if let Some(under_way) = under_way {
            self.write(peer, under_way, bytes);
        }
    }
}

impl Journal {
    /// The connection is gone; whatever was under way is told as far as it came. `bytes` of its content were handed to
    /// the loop.
    pub(crate) fn closed(&mut self, id: ConnId, bytes: u64, ending: &Ending) {
        let Some(Caller { peer, under_way }) = self.callers.remove(&id) else { return };
        self.wall = ending.wall;
        self.now_ms = u64::try_from(ending.now.as_millis()).unwrap_or(u64::MAX);
        if let Some(under_way) = under_way {
            self.write(peer, under_way, bytes.saturating_sub(ending.unsent_bytes));
        }
    }

    fn write(&mut self, peer: Option<SocketAddr>, under_way: UnderWay, bytes: u64) {
        let UnderWay { asked, began_ms, status } = under_way;
        let status = status.unwrap_or(CLOSED_REQUEST);
        self.date.set(self.wall);
        let ended = Ended { status, bytes, duration_ms: self.now_ms.saturating_sub(began_ms) };
        line::write(&mut self.batch, self.log.format, self.log.color, &self.date, peer, &asked, ended);
        self.lines += 1;
        if self.spares.len() < SPARES_MAX {
            self.spares.push(asked);
        }
        if self.batch.len() >= BATCH_BYTES {
            self.end_turn();
        }
    }

    /// Hands over what the turn brought.
    pub(crate) fn end_turn(&mut self) {
        if self.lines > 0 {
            self.log.sink.push(&mut self.batch, std::mem::take(&mut self.lines));
        }
    }
}

/// Lines that were written after the last turn, when the loop was stopped.
impl Drop for Journal {
    fn drop(&mut self) {
        self.end_turn();
    }
}

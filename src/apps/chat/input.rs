//! The input of a member: splits it into lines, answers telnet negotiation, and applies the limits of a chat.
//!
//! CR LF, CR NUL, a bare CR and a bare LF end a line: telnet sends the first in line mode and the second in character
//! mode (RFC 854, RFC 1123 section 3.3.1).
//!
//! A telnet command (RFC 854) begins with the byte IAC. The server supports no options: it refuses every request (DO,
//! WILL) and ignores every refusal (DONT, WONT), so that negotiation cannot loop. DO TIMING-MARK is refused, too (RFC
//! 860): after Ctrl-C, a telnet client discards all output until that reply. Each reply takes three bytes for three
//! bytes of input.
//!
//! LF always ends the line, even inside a telnet command: bytes that merely look like telnet must not swallow the
//! following text.
//!
//! A member has a budget and a rate limit. When the budget is used up, the member is not read for a while. The rate
//! limit is a token bucket that holds one second's worth of lines; when it is empty, the member is muted.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::time::Duration;

/// Interpret As Command.
pub(super) const IAC: u8 = 255;
const DONT: u8 = 254;
const DO: u8 = 253;
const WONT: u8 = 252;
const WILL: u8 = 251;
const SUBNEGOTIATION: u8 = 250;
const ARE_YOU_THERE: u8 = 246;
const SUBNEGOTIATION_END: u8 = 240;

/// The commands that are followed by an option code.
const OPTION_COMMANDS: RangeInclusive<u8> = WILL..=DONT;

/// Length of a reply to telnet negotiation in bytes.
pub(super) const REPLY_BYTES: usize = 3;

/// Maximum length of a subnegotiation in bytes; any excess is treated as text. Real ones have a few dozen bytes.
const SUBNEGOTIATION_MAX: u16 = 512;

/// Maximum length of a line in bytes, without its line ending.
pub(super) const LINE_BYTES_MAX: usize = 2000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum TelnetState {
    #[default]
    Text,
    Command,
    /// After one of the [`OPTION_COMMANDS`].
    Option(u8),
    /// Inside a subnegotiation, with the number of bytes received.
    Subnegotiation(u16),
    /// After an IAC inside a subnegotiation, with the number of bytes received.
    SubnegotiationIac(u16),
}

/// An event returned by [`LineReader::next`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LineEvent<'a> {
    /// A line without its line ending.
    Line(Cow<'a, [u8]>),
    /// The current line is longer than [`LINE_BYTES_MAX`]. Returned once per line; the rest of the line is skipped.
    TooLong,
    /// A telnet request, with the reply that refuses it.
    Refuse([u8; REPLY_BYTES]),
    /// Telnet's AYT (Are You There), which expects a visible reply.
    AreYouThere,
}

/// Returns whether a line is `METHOD TARGET HTTP/VERSION`.
fn is_request_line(line: &[u8]) -> bool {
    let (method, rest) = line.split_at(line.iter().position(|&byte| byte == b' ').unwrap_or(line.len()));
    let version = rest.rsplit(|&byte| byte == b' ').next().unwrap_or_default();
    is_method(method) && rest.len() > version.len() + 1 && version.starts_with(b"HTTP/")
}

/// Returns whether the beginning of a line that is too long looks like `METHOD /PATH` or `METHOD http...`.
fn is_long_request_line(start: &[u8]) -> bool {
    let end = start.iter().position(|&byte| byte == b' ').unwrap_or(start.len());
    let target = start.get(end + 1..).unwrap_or_default();
    is_method(&start[..end]) && (target.starts_with(b"/") || target.starts_with(b"http"))
}

fn is_method(word: &[u8]) -> bool {
    !word.is_empty() && word.iter().all(u8::is_ascii_uppercase)
}

/// Assembles lines from arbitrary chunks of input.
#[derive(Debug, Default)]
pub(super) struct LineReader {
    line: Vec<u8>,
    /// True while the rest of a line that is too long is skipped.
    skipping: bool,
    /// True if the last character was a CR that ended a line: an LF or NUL that follows belongs to it.
    after_cr: bool,
    telnet: TelnetState,
    /// True if the line that is too long looks like the first one of an HTTP request.
    is_http: bool,
}

impl LineReader {
    /// Returns whether the line of an event looks like the first one of an HTTP request.
    pub(super) fn is_http(&self, event: &LineEvent<'_>) -> bool {
        match event {
            LineEvent::Line(line) => is_request_line(line),
            LineEvent::TooLong => self.is_http,
            LineEvent::Refuse(_) | LineEvent::AreYouThere => false,
        }
    }

    /// Consumes `input` up to the next event and returns the event. Returns `None` once all input has been consumed.
    pub(super) fn next<'a>(&mut self, input: &mut &'a [u8]) -> Option<LineEvent<'a>> {
        while let Some(&byte) = input.first() {
            let event = match self.telnet {
                TelnetState::Text => self.read_text(input),
                _ => self.read_command(byte, input),
            };
            if event.is_some() {
                return event;
            }
        }
        None
    }

    /// Consumes text up to and including a line ending or an IAC.
    fn read_text<'a>(&mut self, input: &mut &'a [u8]) -> Option<LineEvent<'a>> {
        let bytes: &'a [u8] = input;
        if self.after_cr && bytes[0] != IAC {
            self.after_cr = false;
            if matches!(bytes[0], b'\n' | 0) {
                *input = &bytes[1..];
                return None;
            }
        }
        let stop = memchr::memchr3(b'\n', b'\r', IAC, bytes).unwrap_or(bytes.len());
        let (piece, rest) = bytes.split_at(stop);
        let Some((&byte, rest)) = rest.split_first() else {
            *input = rest;
            return self.append(piece);
        };
        *input = rest;
        if byte == IAC {
            self.telnet = TelnetState::Command;
            return self.append(piece);
        }
        self.after_cr = byte == b'\r';
        self.end_line(piece)
    }

    fn append(&mut self, piece: &[u8]) -> Option<LineEvent<'static>> {
        if self.skipping {
            return None;
        }
        if self.line.len() + piece.len() > LINE_BYTES_MAX {
            let start = std::mem::take(&mut self.line);
            self.is_http = is_long_request_line(&[&start, piece].concat());
            self.skipping = true;
            return Some(LineEvent::TooLong);
        }
        self.line.extend_from_slice(piece);
        None
    }

    /// Ends the line after its last piece. A line that is not cut is not copied.
    fn end_line<'a>(&mut self, piece: &'a [u8]) -> Option<LineEvent<'a>> {
        if std::mem::take(&mut self.skipping) {
            return None;
        }
        let line = if self.line.is_empty() {
            Cow::Borrowed(piece)
        } else {
            let mut line = std::mem::take(&mut self.line);
            line.extend_from_slice(piece);
            Cow::Owned(line)
        };
        if line.len() <= LINE_BYTES_MAX {
            return Some(LineEvent::Line(line));
        }
        self.is_http = is_long_request_line(&line);
        Some(LineEvent::TooLong)
    }

    /// Advances the telnet state machine by one byte, and consumes the byte if it is part of the command.
    #[allow(clippy::match_same_arms, reason = "the order of the arms matters")]
    fn read_command(&mut self, byte: u8, input: &mut &[u8]) -> Option<LineEvent<'static>> {
        let (mut next, mut taken, mut event) = (TelnetState::Text, true, None);
        match (self.telnet, byte) {
            (TelnetState::Option(command), _) => {
                event = refusal(command, byte);
                taken = byte != b'\n';
            }
            (_, b'\n') => taken = false,
            // The escaped byte 255, which never occurs in valid UTF-8.
            (TelnetState::Command, IAC) => {
                // If this makes the line too long, that is detected with the next piece or at the line ending.
                if !self.skipping && self.line.len() <= LINE_BYTES_MAX {
                    self.line.push(IAC);
                }
            }
            (TelnetState::Command, SUBNEGOTIATION) => next = TelnetState::Subnegotiation(0),
            (TelnetState::Command, ARE_YOU_THERE) => event = Some(LineEvent::AreYouThere),
            (TelnetState::Command, byte) if OPTION_COMMANDS.contains(&byte) => next = TelnetState::Option(byte),
            // Not a command: drop the IAC, treat the byte as text.
            (TelnetState::Command, ..SUBNEGOTIATION_END) => taken = false,
            (TelnetState::SubnegotiationIac(_), SUBNEGOTIATION_END) => {}
            (TelnetState::Subnegotiation(count) | TelnetState::SubnegotiationIac(count), _)
                if count >= SUBNEGOTIATION_MAX =>
            {
                taken = false;
            }
            (TelnetState::Subnegotiation(count), IAC) => next = TelnetState::SubnegotiationIac(count),
            (TelnetState::Subnegotiation(count) | TelnetState::SubnegotiationIac(count), _) => {
                next = TelnetState::Subnegotiation(count + 1);
            }
            // A command of two bytes.
            (TelnetState::Command | TelnetState::Text, _) => {}
        }
        self.telnet = next;
        *input = &input[usize::from(taken)..];
        event
    }
}

/// Returns the refusal of a telnet request; `None` for a refusal, which must not be answered.
fn refusal(command: u8, option: u8) -> Option<LineEvent<'static>> {
    let reply = match command {
        DO => WONT,
        WILL => DONT,
        _ => return None,
    };
    Some(LineEvent::Refuse([IAC, reply, option]))
}

/// The amount of input that is accepted from a member: `burst` at once, and `per_second` in the long run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// The amount accepted at once. At least 1.
    pub burst: u32,
    /// The amount per second by which a budget recovers, up to `burst`. At least 1.
    pub per_second: u32,
}

/// The limits of a chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bounds {
    /// Maximum number of members on all loops together. Further connections get a notice and are closed. Default:
    /// 10,000.
    pub members_max: usize,
    /// Maximum number of rooms, including the lobby. Rooms other than the lobby are removed when the last member
    /// leaves. Default: 1,000.
    pub rooms_max: usize,
    /// Budget in bytes of each member. When it is used up, the member is not read for a while (back-pressure): its
    /// lines are delayed, but none is lost, and no time limit runs while it waits. Default: 64 KiB, then 4 KiB per
    /// second.
    pub byte_budget: Option<Budget>,
    /// Budget in lines of each member, including empty lines, commands and telnet requests. Default: 100 lines, then 10
    /// per second.
    pub line_budget: Option<Budget>,
    /// Rate limit in lines per second per member, measured over one second. A member that exceeds it is muted for 3 s.
    /// Default: no limit, so that text can be pasted.
    pub rate: Option<u32>,
    /// Maximum number of unsent bytes queued for a member. For a client that is slower than its room, the oldest lines
    /// are skipped down to half of this, with a notice, and without delaying the other members. Default: 256 KiB, a few
    /// thousand lines.
    pub queue_bytes_max: usize,
    /// Number of recent lines sent to a member who joins a room. Default: 20, about a screenful.
    pub history_lines: usize,
}

impl Bounds {
    optional_setters! {
        byte_budget: Budget,
        line_budget: Budget,
        rate: u32,
    }

    setters! {
        members_max: usize,
        rooms_max: usize,
        queue_bytes_max: usize,
        history_lines: usize,
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            members_max: 10_000,
            rooms_max: 1000,
            byte_budget: Some(Budget { burst: 64 * 1024, per_second: 4 * 1024 }),
            line_budget: Some(Budget { burst: 100, per_second: 10 }),
            rate: None,
            queue_bytes_max: 256 * 1024,
            history_lines: 20,
        }
    }
}

/// Minimum time for which a member that has used up its budget is not read, so that a flood of short lines causes only
/// a few wake-ups per second.
const HOLD_TIME_MIN: Duration = Duration::from_millis(250);

/// The used part of a budget, represented by the time in nanoseconds at which the budget will be whole again.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    whole_at_ns: u64,
}

impl Used {
    fn add(&mut self, budget: Budget, now_ns: u64, amount: usize) {
        let cost_ns = (amount as u64).saturating_mul(1_000_000_000) / u64::from(budget.per_second.max(1));
        self.whole_at_ns = self.whole_at_ns.max(now_ns).saturating_add(cost_ns);
    }

    /// Returns the time in nanoseconds until some of the budget is left; 0 if there is some now.
    fn wait_ns(self, budget: Budget, now_ns: u64) -> u64 {
        let burst_ns = u64::from(budget.burst.max(1)) * 1_000_000_000 / u64::from(budget.per_second.max(1));
        (self.whole_at_ns + 1).saturating_sub(now_ns.saturating_add(burst_ns))
    }
}

/// The budgets of one member. A line that begins within the budget is accepted as a whole.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Budgets {
    bytes: Used,
    lines: Used,
}

impl Budgets {
    /// Counts input of the member.
    pub(super) fn add(&mut self, bounds: &Bounds, now: Duration, bytes: usize, lines: usize) {
        let now_ns = nanos(now);
        if let Some(budget) = bounds.byte_budget {
            self.bytes.add(budget, now_ns, bytes);
        }
        if let Some(budget) = bounds.line_budget {
            self.lines.add(budget, now_ns, lines);
        }
    }

    /// Returns the time for which the member is not to be read, or `None` if its budgets are not used up.
    pub(super) fn hold_time(&self, bounds: &Bounds, now: Duration) -> Option<Duration> {
        let now_ns = nanos(now);
        let bytes_ns = bounds.byte_budget.map_or(0, |budget| self.bytes.wait_ns(budget, now_ns));
        let lines_ns = bounds.line_budget.map_or(0, |budget| self.lines.wait_ns(budget, now_ns));
        let wait_ns = bytes_ns.max(lines_ns);
        (wait_ns > 0).then(|| Duration::from_nanos(wait_ns).max(HOLD_TIME_MIN))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Time for which a member is muted after exceeding the rate limit.
pub(super) const MUTE_TIME: Duration = Duration::from_secs(3);

/// The result of a rate limit check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Allowed,
    /// The line exceeds the limit; the member is muted from now on.
    Exceeded,
    Muted,
}

/// A token bucket, represented by the time at which it will be full again.
#[derive(Debug, Default)]
pub(super) struct RateLimiter {
    full_at: Duration,
    muted_until: Duration,
}

impl RateLimiter {
    /// Takes a token for one line from a bucket that is refilled with `rate` tokens per second.
    pub(super) fn check(&mut self, now: Duration, rate: u32) -> Decision {
        if now < self.muted_until {
            return Decision::Muted;
        }
        let after = self.full_at.max(now) + Duration::from_secs(1) / rate.max(1);
        if after > now + Duration::from_secs(1) {
            self.muted_until = now + MUTE_TIME;
            return Decision::Exceeded;
        }
        self.full_at = after;
        Decision::Allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an input in chunks of `chunk_len` bytes.
    fn lines_in_chunks(input: &[u8], chunk_len: usize) -> Vec<LineEvent<'static>> {
        let (mut reader, mut lines) = (LineReader::default(), Vec::new());
        for mut piece in input.chunks(chunk_len) {
            while let Some(event) = reader.next(&mut piece) {
                lines.push(match event {
                    LineEvent::Line(bytes) => line(&bytes),
                    LineEvent::TooLong => LineEvent::TooLong,
                    LineEvent::Refuse(reply) => LineEvent::Refuse(reply),
                    LineEvent::AreYouThere => LineEvent::AreYouThere,
                });
            }
            assert!(piece.is_empty());
            assert!(reader.line.len() <= LINE_BYTES_MAX + 1);
        }
        lines
    }

    /// Reads an input, and asserts that the result does not depend on the chunk size.
    fn lines(input: &[u8]) -> Vec<LineEvent<'static>> {
        let whole = lines_in_chunks(input, input.len());
        for chunk_len in [1, 2, 3, 7, 1999, 2001] {
            assert_eq!(lines_in_chunks(input, chunk_len), whole, "in chunks of {chunk_len}");
        }
        whole
    }

    fn line(bytes: &[u8]) -> LineEvent<'static> {
        LineEvent::Line(Cow::Owned(bytes.to_vec()))
    }

    #[test]
    fn every_line_ending_of_telnet_ends_a_line_and_an_unterminated_line_is_not_returned() {
        let ended = [line(b"a"), line(b"b"), line(b""), line(b"c"), line(b"d"), line(b"e"), line(b"")];
        assert_eq!(lines(b"a\nb\r\n\nc\rd\r\0e\n\r\nrest"), ended);
        assert_eq!(lines(b"a\r\xff\xf1\nb\r\r\n"), [line(b"a"), line(b"b"), line(b"")]);
        assert_eq!(lines("gr\u{fc}\u{df}e \u{1f600}\n".as_bytes()), [line("gr\u{fc}\u{df}e \u{1f600}".as_bytes())]);
    }

    #[test]
    fn a_line_of_2000_bytes_is_accepted_and_a_longer_one_is_reported_once_and_skipped() {
        let longest = vec![b'x'; LINE_BYTES_MAX];
        for end in ["\n", "\r\n", "\r", "\r\0"] {
            let input = [&longest, end.as_bytes(), b"next\n"].concat();
            assert_eq!(lines(&input), [line(&longest), line(b"next")]);
            let input = [&longest, &b"y"[..], end.as_bytes(), b"next\n"].concat();
            assert_eq!(lines(&input), [LineEvent::TooLong, line(b"next")]);
        }
        for tail in [&b"\xff\xff"[..], b"\xff\xff\xff\xff", b"y\xff\xff"] {
            assert_eq!(lines(&[&longest, tail, b"\nnext\n"].concat()), [LineEvent::TooLong, line(b"next")]);
        }
        assert_eq!(lines(&vec![b'x'; 100_000]), [LineEvent::TooLong]);
    }

    proptest::proptest! {
        #[test]
        fn every_lf_ends_a_line_whatever_precedes_it(
            input in proptest::collection::vec(proptest::sample::select(vec![IAC, 250, 240, 251, 241, 0, b'a', b'\n']), 1..400),
        ) {
            let mut events = lines(&input);
            events.retain(|event| !matches!(event, LineEvent::Refuse(_)));
            let ends = memchr::memchr_iter(b'\n', &input).count();
            assert_eq!(events.len(), ends);
            assert!(events.iter().all(|event| matches!(event, LineEvent::Line(line) if !line.contains(&b'\n'))));
        }

        #[test]
        fn text_without_telnet_is_split_at_its_line_endings(input in "[ab\r\n\0]{1,200}") {
            let split = input.replace("\r\n", "\n").replace("\r\0", "\n").replace('\r', "\n") + "end";
            let mut expected: Vec<_> = split.split('\n').map(|text| line(text.as_bytes())).collect();
            expected.pop();
            assert_eq!(lines(input.as_bytes()), expected);
        }
    }

    #[test]
    fn telnet_commands_leave_the_text_around_them_intact() {
        assert_eq!(lines(b"a\xff\xfa\x18\x00xterm\xff\xffx\xff\xf0b\n"), [line(b"ab")]);
        assert_eq!(lines(b"a\xff\xfa\x1f\x00\x50\x00\x0d\xff\xf0b\n"), [line(b"ab")]);
        assert_eq!(lines(b"a\xff\xffb\n"), [line(b"a\xffb")]);
        assert_eq!(lines(b"a\xff b\xff\xf1\xff\xf4\n"), [line(b"a b")]);
    }

    #[test]
    fn every_telnet_request_is_refused_and_no_refusal_is_answered() {
        for option in 0..=255 {
            let ends_line = option == b'\n';
            for (command, reply) in [(DO, Some(WONT)), (WILL, Some(DONT)), (DONT, None), (WONT, None)] {
                let mut expected: Vec<_> =
                    reply.map(|reply| LineEvent::Refuse([IAC, reply, option])).into_iter().collect();
                let text: &[&[u8]] = if ends_line { &[b"a", b"b"] } else { &[b"ab"] };
                expected.extend(text.iter().map(|text| line(text)));
                assert_eq!(lines(&[b'a', IAC, command, option, b'b', b'\n']), expected, "{command} {option}");
            }
        }
        assert_eq!(lines(b"a\xff\xf6b\n"), [LineEvent::AreYouThere, line(b"ab")]);
    }

    #[test]
    fn telnet_commands_never_swallow_a_line_ending_and_subnegotiations_are_bounded() {
        for command in [&b"\xff"[..], b"\xff\xfc", b"\xff\xfa", b"\xff\xfa\x1f\x00", b"\xff\xfa\x1f\xff"] {
            let input = [b"a", command, b"\nb\n"].concat();
            assert_eq!(lines(&input), [line(b"a"), line(b"b")], "{command:?}");
        }
        let endless = [&b"\xff\xfa"[..], &[b'x'; 600], b"\n"].concat();
        assert_eq!(lines(&endless), [line(&[b'x'; 600 - SUBNEGOTIATION_MAX as usize])]);
    }

    #[test]
    fn a_budget_allows_a_burst_and_then_recovers_at_its_rate() {
        let bounds = Bounds { byte_budget: None, ..Bounds::default() };
        let (mut budgets, now) = (Budgets::default(), Duration::from_secs(5));
        for line in 0..100 {
            assert_eq!(budgets.hold_time(&bounds, now), None, "line {line}");
            budgets.add(&bounds, now, 1, 1);
        }
        assert_eq!(budgets.hold_time(&bounds, now), Some(HOLD_TIME_MIN));
        let (start, mut accepted, mut now) = (now, 0, now);
        while accepted < 100 {
            if let Some(wait) = budgets.hold_time(&bounds, now) {
                now += wait;
            } else {
                budgets.add(&bounds, now, 1, 1);
                accepted += 1;
            }
        }
        let seconds = now.as_secs_f64() - start.as_secs_f64();
        assert!((9.5..=10.5).contains(&seconds), "100 lines in {seconds} s");
    }

    #[test]
    fn an_overdrawn_budget_is_paid_back() {
        let bounds = Bounds { line_budget: None, ..Bounds::default() };
        let mut budgets = Budgets::default();
        budgets.add(&bounds, Duration::ZERO, 64 * 1024 - 1, 0);
        assert_eq!(budgets.hold_time(&bounds, Duration::ZERO), None);
        budgets.add(&bounds, Duration::ZERO, 8 * 1024 + 1, 0);
        let wait = budgets.hold_time(&bounds, Duration::ZERO).expect("overdrawn");
        assert!((2.0..2.1).contains(&wait.as_secs_f64()), "{wait:?}");
        assert_eq!(budgets.hold_time(&bounds, wait), None);
        let unlimited = Bounds { byte_budget: None, line_budget: None, ..Bounds::default() };
        assert_eq!(budgets.hold_time(&unlimited, Duration::ZERO), None);
    }

    #[test]
    fn exceeding_the_rate_is_reported_once_and_then_mutes() {
        for rate in [1, 2, 3, 7, 1000] {
            let mut limiter = RateLimiter::default();
            let now = Duration::from_secs(100);
            for line in 0..rate {
                assert_eq!(limiter.check(now, rate), Decision::Allowed, "line {line} of {rate}");
            }
            assert_eq!(limiter.check(now, rate), Decision::Exceeded, "{rate}");
            let unmuted_at = now + MUTE_TIME;
            assert_eq!(limiter.check(unmuted_at.saturating_sub(Duration::from_millis(1)), rate), Decision::Muted);
            assert_eq!(limiter.check(unmuted_at, rate), Decision::Allowed);
        }
    }

    #[test]
    fn the_bucket_refills_over_time() {
        let mut limiter = RateLimiter::default();
        for half_second in 0..100 {
            assert_eq!(limiter.check(Duration::from_millis(500 * half_second), 2), Decision::Allowed);
        }
    }
}

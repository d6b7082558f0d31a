//! Tests of the chat through the [`App`] trait, without sockets: they check the output of each member after a turn.

use std::time::Duration;

use super::input::MUTE_TIME;
use super::*;
use crate::r#loop::Output;

/// Limits without budgets, for tests that send much at once.
fn unlimited() -> Bounds {
    Bounds { byte_budget: None, line_budget: None, ..Bounds::default() }
}

/// A member and its connection.
struct Member {
    loop_index: usize,
    id: ConnId,
    connection: Option<ChatConnection>,
    output: Output,
    closed: bool,
}

/// A chat on several simulated loops, and its members.
struct Harness {
    chats: Vec<Chat>,
    members: Vec<Member>,
    now: Duration,
    /// Number of input bytes that the last call did not consume.
    left: usize,
}

impl Harness {
    fn new(loops: usize, bounds: Bounds) -> Self {
        Self::with_options(loops, Options { bounds, ..Options::default() })
    }

    fn with_options(loops: usize, options: Options) -> Self {
        let mut chats = Chat::with_options(options, loops);
        for chat in &mut chats {
            chat.start(Remote::detached());
        }
        Harness { chats, members: Vec::new(), now: Duration::ZERO, left: 0 }
    }

    /// Creates a chat on one loop with `members` members who have read all their output so far.
    fn with(members: usize) -> Self {
        let mut harness = Harness::new(1, Bounds::default());
        harness.join_many(members);
        harness.turn();
        harness
    }

    /// Calls a method of the application for the connection of one member, and acts on the returned flow.
    fn call(
        &mut self,
        index: usize,
        input: &[u8],
        ended: bool,
        method: impl FnOnce(&mut Chat, &mut ChatConnection, &mut Wire<'_, Delivery>) -> Flow,
    ) {
        let member = &mut self.members[index];
        let Some(connection) = member.connection.as_mut().filter(|_| !member.closed) else { return };
        let mut messages = Vec::new();
        let mut wire = Wire::from_bytes(input, ended, &mut member.output, &mut messages).detached(member.id, self.now);
        let flow = method(&mut self.chats[member.loop_index], connection, &mut wire);
        self.left = input.len() - wire.consumed();
        let phase = if connection.has_sent_line { Phase::Unlimited } else { Phase::AwaitingFirstByte };
        match flow {
            Flow::Close => self.close(index, CloseReason::Done),
            Flow::Read(now) if now == phase => assert_eq!(self.left, 0),
            Flow::Yield(now) if now == phase => assert!(self.left > 0 || input.is_empty()),
            Flow::Pause => assert!(connection.held || connection.is_finished()),
            other => panic!("{other:?}"),
        }
    }

    fn join(&mut self, loop_index: usize) -> usize {
        let id = ConnId::detached(u32::try_from(self.members.len()).unwrap());
        let (mut output, mut messages) = (Output::new(), Vec::new());
        let mut wire = Wire::from_bytes(&[], false, &mut output, &mut messages).detached(id, self.now);
        let (connection, flow) = self.chats[loop_index].open(&Accepted::detached(), &mut wire);
        let closed = flow == Flow::Close;
        self.members.push(Member { loop_index, id, connection: Some(connection), output, closed });
        self.members.len() - 1
    }

    fn join_many(&mut self, count: usize) {
        for _ in 0..count {
            self.join(0);
        }
    }

    fn send(&mut self, index: usize, input: impl AsRef<[u8]>) {
        assert_eq!(self.send_part(index, input), 0, "the input does not fit into one turn");
    }

    /// Sends input, and returns the number of bytes left for another turn.
    fn send_part(&mut self, index: usize, input: impl AsRef<[u8]>) -> usize {
        self.call(index, input.as_ref(), false, App::receive);
        self.left
    }

    /// Half-closes the connection of a member.
    fn end(&mut self, index: usize) {
        self.call(index, &[], true, App::receive);
    }

    /// Resumes a member whose budget was used up.
    fn resume(&mut self, index: usize) {
        self.call(index, &[], false, |chat, connection, wire| chat.message(connection, Delivery::resume(), wire));
    }

    fn is_held(&self, index: usize) -> bool {
        self.members[index].connection.as_ref().is_some_and(|connection| connection.held)
    }

    fn close(&mut self, index: usize, reason: CloseReason) {
        let member = &mut self.members[index];
        member.closed = true;
        if let Some(connection) = member.connection.take() {
            let info = CloseInfo { reason, unsent_bytes: 0, unix_time: 0, now: Duration::ZERO };
            self.chats[member.loop_index].closed(member.id, connection, info);
        }
    }

    /// Ends the turn of every loop, and returns the output of each member.
    fn turn(&mut self) -> Vec<String> {
        self.end_turn();
        self.read()
    }

    /// Ends the turn of one loop, and returns the output of each member.
    fn turn_on(&mut self, loop_index: usize) -> Vec<String> {
        self.end_turn_on(loop_index);
        self.read()
    }

    fn read(&mut self) -> Vec<String> {
        (0..self.members.len()).map(|index| self.read_member(index)).collect()
    }

    fn read_member(&mut self, index: usize) -> String {
        let output = &mut self.members[index].output;
        let text = String::from_utf8(output.to_vec()).expect("UTF-8");
        output.clear();
        text
    }

    /// Ends the turn of every loop, without reading any output.
    fn end_turn(&mut self) {
        for loop_index in 0..self.chats.len() {
            self.end_turn_on(loop_index);
        }
    }

    fn end_turn_on(&mut self, loop_index: usize) {
        let mut messages = Vec::new();
        self.chats[loop_index].end_of_turn(&mut messages);
        for (id, delivery) in messages {
            let is_recipient = |member: &Member| member.loop_index == loop_index && member.id == id;
            let index = self.members.iter().position(is_recipient).expect("a delivery to a member");
            self.call(index, &[], false, |chat, connection, wire| chat.message(connection, delivery, wire));
        }
    }

    /// Sends input from one member, and returns the output of another one.
    fn send_and_read(&mut self, from: usize, input: impl AsRef<[u8]>, to: usize) -> String {
        self.send(from, input);
        self.turn().swap_remove(to)
    }
}

#[test]
fn a_new_member_gets_a_welcome_with_the_member_list_and_is_announced() {
    let mut harness = Harness::new(1, Bounds::default());
    harness.join(0);
    assert_eq!(harness.turn(), ["* Welcome, guest1! In lobby: only you. Type /help for a list of commands.\n"]);
    harness.join(0);
    let welcome = "* Welcome, guest2! In lobby: guest1 (2 including you). Type /help for a list of commands.\n";
    assert_eq!(harness.turn(), ["* guest2 joined\n", welcome]);
    for _ in 2..25 {
        harness.join(0);
    }
    harness.turn();
    harness.join(0);
    let welcome = harness.turn().pop().unwrap();
    assert!(welcome.contains("guest1, guest2, "), "{welcome}");
    assert!(welcome.contains(" and 5 more (26 including you)"), "{welcome}");
    assert_eq!(welcome.matches("guest").count(), 21, "{welcome}");
}

#[test]
fn a_new_member_gets_the_recent_lines_of_the_room() {
    let mut harness = Harness::new(1, Bounds { history_lines: 3, ..Bounds::default() });
    harness.join(0);
    harness.send(0, "one\ntwo\n/me waits\n/who\nthree\n");
    harness.join(0);
    let received = harness.turn();
    let lines: Vec<&str> = received[1].lines().skip(1).collect();
    assert_eq!(lines, ["[guest1] two", "- guest1 waits", "[guest1] three"]);
    let mut harness = Harness::new(1, Bounds { history_lines: 0, ..Bounds::default() });
    harness.join(0);
    harness.send(0, "one\n");
    harness.join(0);
    assert_eq!(harness.turn()[1].lines().count(), 1);
}

#[test]
fn a_message_reaches_every_other_member_once() {
    let mut harness = Harness::with(3);
    harness.send(1, "hello\r\nworld\n");
    harness.send(2, " hi \n");
    let received = harness.turn();
    assert_eq!(received[0], "[guest2] hello\n[guest2] world\n[guest3]  hi \n");
    assert_eq!(received[1], "[guest3]  hi \n");
    assert_eq!(received[2], "[guest2] hello\n[guest2] world\n");
    assert_eq!(harness.turn(), ["", "", ""]);
}

#[test]
fn a_long_paste_is_interleaved_with_the_lines_of_others() {
    let mut harness = Harness::new(1, unlimited());
    harness.join_many(3);
    harness.turn();
    let pasted = (0..100).map(|number| number.to_string()).collect::<Vec<_>>().join("\n") + "\n";
    let left = harness.send_part(0, &pasted);
    harness.send(1, "me too\n");
    assert_eq!(pasted.len() - left, pasted.find("64\n").unwrap());
    let received = harness.turn().pop().unwrap();
    assert!(received.ends_with("[guest1] 63\n[guest2] me too\n"), "{received}");
    assert_eq!(received.lines().count(), 65);
    // The remaining input is passed in again, and is processed before the end of input.
    let rest = &pasted[pasted.len() - left..];
    harness.call(0, rest.as_bytes(), true, App::receive);
    let received = harness.turn().pop().unwrap();
    assert!(received.starts_with("[guest1] 64\n") && received.ends_with("[guest1] 99\n* guest1 left\n"), "{received}");
}

#[test]
fn the_changes_of_one_turn_are_combined_into_one_notice() {
    let mut harness = Harness::with(4);
    harness.join_many(1000);
    harness.send(1, "/nick Bob\n");
    harness.send(2, "/quit\n");
    harness.close(3, CloseReason::Timeout(Phase::Unlimited));
    let received = harness.turn().swap_remove(0);
    assert!(received.starts_with("* guest5, guest6, "), "{received}");
    assert!(
        received.ends_with(" and 980 more joined; guest3 left; guest4 left (timed out); guest2 is now Bob\n"),
        "{received}"
    );
    assert_eq!(received.lines().count(), 1);
}

#[test]
fn a_departure_notice_states_the_reason() {
    for (reason, words) in [
        (CloseReason::Peer, "left"),
        (CloseReason::Error(io::ErrorKind::ConnectionReset.into()), "left"),
        (CloseReason::Error(io::ErrorKind::TimedOut.into()), "left (timed out)"),
        (CloseReason::Timeout(Phase::Unlimited), "left (timed out)"),
        (CloseReason::TooSlow, "left (too slow)"),
    ] {
        let mut harness = Harness::with(2);
        harness.close(1, reason);
        assert_eq!(harness.turn()[0], format!("* guest2 {words}\n"));
    }
    let mut harness = Harness::with(2);
    harness.end(1);
    assert_eq!(harness.turn()[0], "* guest2 left\n");
    assert!(harness.members[1].closed);
}

#[test]
fn a_member_that_joins_and_leaves_in_one_turn_is_not_announced() {
    let mut harness = Harness::with(1);
    let guest = harness.join(0);
    harness.close(guest, CloseReason::Peer);
    assert_eq!(harness.turn()[0], "");
    // If it sends a message, its arrival is announced before the message.
    let guest = harness.join(0);
    harness.send(guest, "boo\n");
    harness.close(guest, CloseReason::Peer);
    assert_eq!(harness.turn()[0], "* guest3 joined\n[guest3] boo\n* guest3 left\n");
}

#[test]
fn names_are_unique_ignoring_case_and_can_be_reused() {
    let mut harness = Harness::with(2);
    assert_eq!(harness.send_and_read(0, "/nick \u{c4}nne\n", 1), "* guest1 is now \u{c4}nne\n");
    assert_eq!(harness.send_and_read(1, "/nick \u{e4}NNE\n", 1), "* The name \u{e4}NNE is taken.\n");
    assert_eq!(harness.send_and_read(0, "/nick \u{e4}nne\n", 0), "* You are now \u{e4}nne.\n");
    for name in ["\u{c4}nn\u{435}", "\u{ff21}\u{308}nne"] {
        let received = harness.send_and_read(1, format!("/nick {name}\n"), 1);
        assert!(received.ends_with(" is taken.\n"), "{received}");
    }
    for name in ["Server", "l\u{43e}bby", "who"] {
        let received = harness.send_and_read(1, format!("/nick {name}\n"), 1);
        assert!(received.ends_with(" is reserved.\n"), "{received}");
    }
    for name in ["a b", "x\u{301}", "a/b", "Anna\u{3164}", &"x".repeat(25)] {
        let received = harness.send_and_read(0, format!("/nick {name}\n"), 0);
        assert!(received.starts_with("* Invalid name") || received.starts_with("* Usage: /nick NAME"), "{received}");
    }
    harness.close(0, CloseReason::Peer);
    harness.turn();
    assert_eq!(harness.send_and_read(1, "/nick \u{c4}NNE\n", 1), "* You are now \u{c4}NNE.\n");
    // Guest names that are already taken are skipped.
    harness.send(1, "/nick GUEST4\n");
    harness.join(0);
    let guest = harness.join(0);
    assert!(harness.turn()[guest].contains("Welcome, guest5!"));
}

#[test]
fn rooms_are_separate_and_removed_when_empty() {
    let mut harness = Harness::with(3);
    assert_eq!(harness.send_and_read(0, "/join Tea\n", 0), "* You are now in Tea: only you.\n");
    assert_eq!(harness.send_and_read(0, "secret\n", 1), "");
    harness.send(1, "/join tea\n/who\n");
    let received = harness.turn();
    assert_eq!(received[0], "* guest2 joined\n");
    assert_eq!(
        received[1],
        "* You are now in Tea: guest1 (2 including you).\n[guest1] secret\n* In Tea: guest1, guest2 (2)\n"
    );
    assert_eq!(received[2], "* guest2 moved to Tea\n");
    assert_eq!(harness.send_and_read(1, "/join TEA\n", 1), "* You are already in TEA.\n");
    assert_eq!(harness.send_and_read(2, "/rooms\n", 2), "* Rooms: lobby (1), Tea (2)\n");
    assert_eq!(harness.send_and_read(0, "/me sips\n", 1), "- guest1 sips\n");
    assert_eq!(harness.send_and_read(0, "/join lobby\n", 1), "* guest1 moved to lobby\n");
    assert_eq!(harness.send_and_read(1, "/quit\n", 1), "* Goodbye.\n");
    assert_eq!(harness.send_and_read(2, "/rooms\n", 2), "* Rooms: lobby (2)\n");
    assert_eq!(harness.send_and_read(2, "/join tea\n", 2), "* You are now in tea: only you.\n");
}

#[test]
fn a_message_goes_to_the_room_it_was_sent_in_when_the_sender_moves_in_the_same_turn() {
    let mut harness = Harness::with(3);
    harness.send(1, "/join tea\n");
    harness.turn();
    harness.send(0, "in the lobby\n/join tea\nin the tea room\n");
    let received = harness.turn();
    assert_eq!(received[1], "* guest1 joined\n[guest1] in the tea room\n");
    assert_eq!(received[2], "[guest1] in the lobby\n* guest1 moved to tea\n");
}

#[test]
fn rooms_and_members_are_bounded() {
    let mut harness = Harness::new(1, Bounds { rooms_max: 2, members_max: 2, ..Bounds::default() });
    harness.join(0);
    harness.join(0);
    let third = harness.join(0);
    assert!(harness.members[third].closed);
    assert_eq!(harness.turn()[third], "* The chat is full; try again later.\n");
    harness.send(0, "/join tea\n");
    harness.turn();
    assert!(harness.send_and_read(1, "/join coffee\n", 1).starts_with("* Room limit reached"));
    harness.close(0, CloseReason::Peer);
    let fourth = harness.join(0);
    assert!(harness.turn()[fourth].starts_with("* Welcome"));
}

#[test]
fn a_private_message_is_shown_only_to_sender_and_recipient() {
    let mut harness = Harness::with(3);
    harness.send(0, "/join tea\n");
    harness.turn();
    harness.send(1, "/msg GUEST1  psst \n");
    assert_eq!(harness.turn(), ["[guest2 -> guest1] psst\n", "[guest2 -> guest1] psst\n", ""]);
    for name in ["unknown", "\u{1f600}"] {
        assert!(harness.send_and_read(1, format!("/msg {name} x\n"), 1).starts_with("* No such user"));
    }
}

#[test]
fn help_lists_the_commands_and_unknown_ones_get_a_hint() {
    let mut harness = Harness::with(1);
    assert_eq!(harness.send_and_read(0, "/help\n", 0), text::HELP);
    let received = harness.send_and_read(0, "/jion tea\n", 0);
    assert_eq!(received, "* Unknown command /jion; did you mean /join? Type /help for a list.\n");
    let received = harness.send_and_read(0, format!("/{}\n", "x".repeat(1900)), 0);
    assert!(received.len() < 100, "{received}");
    assert_eq!(harness.send_and_read(0, "/msg bob\n", 0), "* Usage: /msg NAME text\n");
}

#[test]
fn terminal_control_characters_are_removed_from_messages() {
    let mut harness = Harness::with(2);
    assert_eq!(
        harness.send_and_read(0, b"\x1b[2Ja\x07\xc2\x9b\xe2\x80\xaeb\tc\xfe\xff\xff\r\n", 1),
        "[guest1] [2Jab\tc\u{fffd}\u{fffd}\n"
    );
    // Text may arrive in arbitrary chunks.
    for byte in "gr\u{fc}\u{df}e \u{1f600}\n".bytes() {
        harness.send(0, [byte]);
    }
    assert_eq!(harness.turn()[1], "[guest1] gr\u{fc}\u{df}e \u{1f600}\n");
    assert_eq!(harness.send_and_read(0, b"\x1b\x07\n", 1), "");
}

#[test]
fn an_overlong_line_is_reported_once_and_the_next_one_is_delivered() {
    let mut harness = Harness::new(1, unlimited());
    harness.join_many(2);
    harness.turn();
    harness.send(0, "x".repeat(1500));
    assert_eq!(harness.turn(), ["", ""]);
    harness.send(0, "x".repeat(1500));
    assert_eq!(harness.turn(), ["* Line too long (more than 2000 bytes); not delivered.\n", ""]);
    harness.send(0, "x".repeat(60_000));
    harness.send(0, "\nnext\n");
    assert_eq!(harness.turn(), ["", "[guest1] next\n"]);
}

#[test]
fn an_unterminated_line_is_never_delivered() {
    let mut harness = Harness::with(2);
    harness.send(0, "never");
    assert_eq!(harness.turn(), ["", ""]);
    harness.end(0);
    assert_eq!(harness.turn(), ["", "* guest1 left\n"]);
}

#[test]
fn a_member_that_exceeds_the_rate_limit_is_notified_and_muted() {
    let mut harness = Harness::new(1, Bounds { rate: Some(2), ..Bounds::default() });
    harness.join(0);
    harness.join(0);
    harness.turn();
    harness.send(0, "1\n2\n3\n4\n/nick x\n");
    let received = harness.turn();
    assert_eq!(received[1], "[guest1] 1\n[guest1] 2\n");
    assert!(
        received[0].starts_with("* Rate limit of 2 lines per second exceeded") && received[0].lines().count() == 1,
        "{received:?}"
    );
    harness.now += MUTE_TIME;
    assert_eq!(harness.send_and_read(0, "5\n", 1), "[guest1] 5\n");
}

#[test]
fn a_slow_client_misses_the_oldest_lines_and_the_others_lose_nothing() {
    let mut harness = Harness::new(1, Bounds { queue_bytes_max: 1000, ..unlimited() });
    harness.join_many(3);
    harness.turn();
    let line = "x".repeat(90);
    let mut received = String::new();
    for _ in 0..200 {
        harness.send(0, format!("{line}\n"));
        harness.end_turn();
        received += &harness.read_member(1);
        harness.read_member(0);
        assert!(harness.members[2].output.len() <= 1000);
    }
    assert_eq!(received.matches(&line).count(), 200);
    let slow = harness.read_member(2);
    let skipped: usize = slow.lines().nth(1).unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    assert_eq!(slow.lines().nth(1).unwrap(), format!("* {skipped} lines skipped"));
    assert_eq!(slow.matches(&line).count() + skipped, 200);
}

#[test]
fn a_sender_that_has_used_up_its_budget_is_not_read_and_loses_nothing() {
    let mut harness = Harness::with(2);
    let lines: Vec<String> = (0..130).map(|number| number.to_string()).collect();
    let input = lines.join("\n") + "\n";
    let mut rest = input.as_bytes();
    let (mut received, mut holds) = (String::new(), 0);
    while !rest.is_empty() {
        let left = harness.send_part(0, rest);
        rest = &rest[rest.len() - left..];
        received += &harness.turn()[1];
        if harness.is_held(0) {
            holds += 1;
            harness.now += Duration::from_millis(250);
            harness.resume(0);
        }
    }
    assert!(received.lines().eq(lines.iter().map(|line| format!("[guest1] {line}")).collect::<Vec<_>>()));
    let seconds = harness.now.as_secs_f64();
    assert!((2.5..3.5).contains(&seconds) && holds <= 14, "{seconds} s, {holds} holds");
    // Another member has its own budget, and input without lines counts as well.
    harness.send(1, "x".repeat(60_000));
    assert!(!harness.is_held(1));
    harness.send(1, "x".repeat(6_000));
    assert_eq!(harness.send_part(1, "\n"), 1);
    assert!(harness.is_held(1));
}

#[test]
fn a_held_member_gets_deliveries_and_leaves_at_the_end_of_its_input() {
    let mut harness = Harness::with(2);
    let rest = "1\n".repeat(36) + "last\n";
    harness.send(0, "0\n".repeat(64));
    assert_eq!(harness.send_part(0, &rest), 5);
    assert!(harness.is_held(0));
    harness.turn();
    assert_eq!(harness.send_and_read(1, "hello\n", 0), "[guest2] hello\n");
    assert!(harness.is_held(0));
    harness.now += Duration::from_secs(1);
    harness.resume(0);
    harness.call(0, b"last\n", true, App::receive);
    assert_eq!(harness.turn()[1], "[guest1] last\n* guest1 left\n");
}

#[test]
fn a_flood_by_all_members_is_delivered_in_bounded_turns() {
    let mut harness = Harness::new(1, unlimited());
    harness.join_many(100);
    harness.turn();
    let input = (format!("{}\n", "x".repeat(1900))).repeat(40);
    let mut rests: Vec<&[u8]> = vec![input.as_bytes(); 100];
    let mut turns = 0;
    while rests.iter().any(|rest| !rest.is_empty()) {
        for (index, rest) in rests.iter_mut().enumerate() {
            let left = harness.send_part(index, *rest);
            *rest = &rest[rest.len() - left..];
        }
        harness.end_turn();
        for member in &mut harness.members {
            assert!(member.output.len() < 5 << 20, "{} bytes in one turn", member.output.len());
            member.output.clear();
        }
        turns += 1;
        assert!(turns < 10);
    }
    assert!(turns > 1);
}

#[test]
fn joining_again_and_again_copies_no_history() {
    let mut harness = Harness::new(1, unlimited());
    harness.join_many(2);
    harness.send(1, "/join a\n");
    harness.send(1, format!("{}\n", "x".repeat(1900)).repeat(20));
    harness.turn();
    harness.send(0, "/join a\n/join lobby\n".repeat(32));
    harness.end_turn();
    // All copies of the history are slices of one block.
    let pieces = harness.members[0].output.take_bytes();
    let mut blocks: Vec<_> = pieces.iter().filter(|piece| piece.len() > 30_000).map(|piece| piece.as_ptr()).collect();
    assert_eq!(blocks.len(), 32);
    blocks.dedup();
    assert_eq!(blocks.len(), 1);
}

#[test]
fn rooms_are_listed_in_pages_of_a_hundred() {
    let mut harness = Harness::new(1, unlimited());
    harness.join_many(250);
    for index in 0..250 {
        harness.send(index, format!("/join r{index}\n"));
    }
    harness.turn();
    let first = harness.send_and_read(0, "/rooms\n", 0);
    assert!(
        first.starts_with("* Rooms: lobby (0), r0 (1), ") && first.ends_with("r98 (1) and 151 more; see /rooms 2\n")
    );
    assert!(harness.send_and_read(0, "/rooms 2\n", 0).starts_with("* More rooms: r99 (1), "));
    assert!(harness.send_and_read(0, "/rooms 3\n", 0).ends_with(", r249 (1)\n"));
    assert_eq!(harness.send_and_read(0, "/rooms 4\n", 0), "* The last page of rooms is 3.\n");
    // Every room is listed once, also after some have been removed.
    for index in [3, 249, 0] {
        harness.close(index, CloseReason::Peer);
    }
    harness.turn();
    let pages: String = (1..=3).map(|page| harness.send_and_read(1, format!("/rooms {page}\n"), 1)).collect();
    for index in 0..250 {
        let listed = pages.matches(&format!(" r{index} (1)")).count();
        assert_eq!(listed, usize::from(![3, 249, 0].contains(&index)), "r{index}");
    }
}

#[test]
fn telnet_requests_are_answered_at_once() {
    let mut harness = Harness::with(2);
    harness.send(0, b"he\xff\xf4\xff\xfd\x06llo\xff\xf6\r\0");
    assert_eq!(harness.members[0].output.to_vec(), b"\xff\xfc\x06* Yes, the chat is here.\n");
    harness.members[0].output.clear();
    assert_eq!(harness.turn()[1], "[guest1] hello\n");
}

#[test]
fn no_line_of_a_member_begins_like_a_notice() {
    let mut harness = Harness::with(2);
    let notice = "* The server is shutting down. Goodbye.";
    harness.send(0, "/nick The\n");
    harness.turn();
    for line in
        [notice, "/me server is shutting down. Goodbye.", "x\r* guest2 left", "//* x", "/msg guest2 * x", "\u{b}* x"]
    {
        let received = harness.send_and_read(0, format!("{line}\n"), 1);
        assert!(received.lines().count() >= 1 && received.lines().all(|line| !line.starts_with('*')), "{received}");
    }
}

#[test]
fn a_password_is_asked_for_three_times() {
    let options =
        Options { password: Some("tea".into()), motd: "Be nice.\n\nRead /help.".into(), ..Options::default() };
    let mut harness = Harness::with_options(1, options);
    harness.join(0);
    harness.join(0);
    harness.join(0);
    let prompt = "* This chat has a password. Enter it:\n";
    assert_eq!(harness.turn(), [prompt; 3]);
    harness.send(0, "wrong\r\n\r\ntea\r\nhello\n");
    let received = harness.turn();
    let welcome =
        "* Welcome, guest1! In lobby: only you. Type /help for a list of commands.\n* Be nice.\n* \n* Read /help.\n";
    assert_eq!(received[0], format!("* Wrong password; try again:\n{welcome}"));
    assert_eq!(received[1], "", "a connection that has not logged in gets nothing");
    harness.send_part(1, "te\nTea\nteas\ntea\n");
    let retry = "* Wrong password; try again:\n".repeat(2);
    assert_eq!(harness.turn()[1], format!("{retry}* Wrong password. Goodbye.\n"));
    assert!(harness.members[1].closed);
    harness.call(2, &[], false, App::drain);
    assert!(harness.members[2].closed && !harness.members[0].closed);
}

#[test]
fn the_console_speaks_lists_mutes_kicks_and_bans() {
    let mut harness = Harness::with(3);
    let console = harness.chats[0].console();
    harness.send(1, "/nick Eve\n/join tea\n");
    harness.turn();
    assert_eq!(console.execute("  hello \u{1b}all "), "");
    assert_eq!(harness.turn(), ["* Server: hello all\n"; 3]);
    assert_eq!(
        console.execute("/who"),
        "3 members\nguest1 in lobby from -\nEve in tea from -\nguest3 in lobby from -\n"
    );
    assert_eq!(console.execute("/mute EVE"), "muted EVE\n");
    let received = harness.send_and_read(1, "hi\n/me waves\n/msg guest1 hi\n/nick x\n/who\n", 1);
    assert_eq!(received, format!("* The server has muted you.\n{}* In tea: Eve (1)\n", "* You are muted.\n".repeat(4)));
    assert_eq!(console.execute("/unmute Eve"), "unmuted Eve\n");
    assert_eq!(harness.send_and_read(1, "/msg guest1 hi\n", 0), "[Eve -> guest1] hi\n");
    for line in ["/kick nobody", "/mute \u{415}ve", "/ban nobody"] {
        assert_eq!(console.execute(line), "no such member\n");
    }
    assert!(console.execute("/kick").starts_with("usage: ") && console.execute("/x").starts_with("unknown command"));
    assert_eq!(console.execute("/kick guest3"), "disconnected guest3\n");
    // Input that arrives before the connection is closed belongs to no member, not even to one in the same slot.
    let newcomer = harness.join(0);
    harness.send_part(2, "after\n");
    let received = harness.turn();
    assert_eq!(received[0], "* guest4 joined; guest3 left (kicked)\n");
    assert_eq!(received[2], "* You were removed by the server.\n");
    assert!(harness.members[2].closed && !harness.members[newcomer].closed);
    assert!(received[newcomer].starts_with("* Welcome, guest4!"));
    assert_eq!(console.execute("/ban Eve"), "unknown address; disconnected Eve\n");
    harness.turn();
    assert!(harness.members[1].closed);
}

#[test]
fn public_lines_are_logged_by_room() {
    let directory = tempfile::tempdir().unwrap();
    let (log, end) = RoomLog::open(directory.path()).unwrap();
    let mut harness = Harness::with_options(1, Options { log: Some(log), ..Options::default() });
    harness.join_many(2);
    harness.send(0, "one\n/me waves\n/msg guest2 secret\n/join t\u{e9}\ntwo\n");
    harness.turn();
    drop(harness);
    end.wait(Duration::from_secs(20));
    let mut texts: Vec<String> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let lines: String = std::fs::read_to_string(path)
                .unwrap()
                .lines()
                .map(|line| line[10..].trim_start_matches("* ").to_owned() + "|")
                .collect();
            format!("{} {lines}", &name[11..])
        })
        .collect();
    texts.sort();
    assert_eq!(
        texts,
        [
            "lobby.log guest1, guest2 joined|[guest1] one|- guest1 waves|guest1 moved to t\u{e9}|",
            "t+0000e9.log guest1 joined|[guest1] two|",
        ]
    );
}

#[test]
fn on_drain_members_get_their_queued_lines_and_a_notice() {
    let mut harness = Harness::with(3);
    harness.send(0, "last words\n");
    harness.send(2, "/quit\n");
    for index in 0..3 {
        harness.call(index, &[], false, App::drain);
    }
    let notice = "* The server is shutting down. Goodbye.\n";
    let received = harness.turn();
    assert_eq!(received[0], notice);
    assert_eq!(received[1], format!("[guest1] last words\n{notice}"));
    assert_eq!(received[2], "[guest1] last words\n* Goodbye.\n");
    assert!(harness.members.iter().all(|member| member.closed));
}

#[test]
fn loops_share_one_chat() {
    let mut harness = Harness::new(3, Bounds { members_max: 3, ..Bounds::default() });
    for loop_index in 0..3 {
        harness.join(loop_index);
    }
    harness.turn();
    harness.turn();
    harness.send(1, "/nick Bob\nhello\n/msg guest3 psst\n");
    let mut received = harness.turn();
    // The first loop ended its turn before the second loop published its events.
    for (received, more) in received.iter_mut().zip(harness.turn()) {
        received.push_str(&more);
    }
    assert_eq!(received[0], "* guest2 is now Bob\n[Bob] hello\n");
    assert_eq!(received[1], "* You are now Bob.\n[Bob -> guest3] psst\n");
    assert_eq!(received[2], "* guest2 is now Bob\n[Bob] hello\n[Bob -> guest3] psst\n");
    let fourth = harness.join(2);
    assert!(harness.members[fourth].closed);
    harness.send(0, "/nick BOB\n");
    assert_eq!(harness.turn()[0], "* The name BOB is taken.\n");
}

/// A deterministic pseudo-random number generator.
struct Rng(u64);

impl Rng {
    fn below(&mut self, max: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % max
    }
}

/// A reference model, which delivers messages at once, regardless of the order in which the loops run.
#[derive(Default)]
struct Model {
    /// The room of each member, or `None` once it has left.
    rooms: Vec<Option<usize>>,
    expected: Vec<Vec<String>>,
    received: Vec<String>,
}

impl Model {
    fn join(&mut self) {
        self.rooms.push(Some(0));
        self.expected.push(Vec::new());
        self.received.push(String::new());
    }

    fn say(&mut self, index: usize, message: &str) {
        for other in 0..self.rooms.len() {
            if other != index && self.rooms[other].is_some() && self.rooms[other] == self.rooms[index] {
                self.expected[other].push(message.to_owned());
            }
        }
    }

    /// Extracts the messages from an output, without the names of the senders.
    fn messages(text: &str) -> Vec<String> {
        let message = |line: &str| line.strip_prefix('[')?.split_once("] ").map(|(_, message)| message.to_owned());
        text.lines().filter_map(message).collect()
    }
}

/// Runs a thousand random actions on several loops whose turns end in random order. Asserts that members receive every
/// message exactly once, in order, in the right room, and none after they have left.
fn run_random_session(seed: u64) {
    let mut rng = Rng(seed);
    let loops = 1 + rng.below(4);
    let mut harness = Harness::new(loops, Bounds { history_lines: 0, ..unlimited() });
    let mut model = Model::default();
    for step in 0..1000 {
        let action = rng.below(20);
        if action == 0 || harness.members.len() < 3 {
            harness.join(rng.below(loops));
            model.join();
            continue;
        }
        let index = rng.below(harness.members.len());
        if model.rooms[index].is_none() {
            continue;
        }
        match action {
            1 => {
                let room = rng.below(3);
                harness.send(index, format!("/join {}\n", ["lobby", "tea", "coffee"][room]));
                model.rooms[index] = Some(room);
            }
            2 => harness.send(index, format!("/nick n{}\n", rng.below(20))),
            3 if rng.below(4) == 0 => {
                harness.send(index, "/quit\n");
                model.rooms[index] = None;
            }
            4 if rng.below(4) == 0 => {
                harness.close(index, CloseReason::Peer);
                // Unread messages are lost.
                model.rooms[index] = None;
                model.expected[index].clear();
                model.received[index].clear();
            }
            5..10 => {
                let loop_index = rng.below(loops);
                for (index, text) in harness.turn_on(loop_index).into_iter().enumerate() {
                    model.received[index].push_str(&text);
                }
            }
            _ => {
                harness.send(index, format!("{step}\n"));
                model.say(index, &step.to_string());
            }
        }
    }
    for loop_index in 0..loops {
        for (index, text) in harness.turn_on(loop_index).into_iter().enumerate() {
            model.received[index].push_str(&text);
        }
    }
    for (index, (expected, received)) in model.expected.iter().zip(&model.received).enumerate() {
        assert_eq!(Model::messages(received), *expected, "member {index}, seed {seed}");
    }
}

#[test]
fn members_receive_exactly_the_messages_of_their_rooms_in_random_sessions() {
    for seed in 0..100 {
        run_random_session(seed);
    }
}

/// Plays a random game in which some members read late, and some only a part of their output. Returns the output of
/// each member. The actions do not depend on `bounds`.
fn run_slow_session(seed: u64, bounds: Bounds) -> Vec<Vec<u8>> {
    const MEMBERS: usize = 6;
    let mut rng = Rng(seed);
    let loops = 1 + rng.below(3);
    let mut harness = Harness::new(loops, bounds);
    for index in 0..MEMBERS {
        harness.join(index % loops);
    }
    let mut received = vec![Vec::new(); MEMBERS];
    for step in 0..600 {
        let (index, action) = (rng.below(MEMBERS), rng.below(12));
        let long = "x".repeat(rng.below(200));
        match action {
            0 => harness.send(index, format!("/join {}\n", ["lobby", "tea"][rng.below(2)])),
            1 => harness.send(index, "/who\n/help\n"),
            2 => harness.send(index, format!("/me {step}\n/nick n{}\n", rng.below(20))),
            3 => harness.send(index, [255, 253, 6]),
            4..6 => {
                // The socket accepts a part of the output, which may end within a line.
                let part = rng.below(1000);
                let output = &mut harness.members[index].output;
                let mut sent = output.take_bytes().concat();
                let unsent = sent.split_off(if action == 4 { sent.len() } else { sent.len().min(part) });
                output.extend(&unsent);
                received[index].extend(sent);
            }
            6..9 => harness.end_turn_on(rng.below(loops)),
            _ => harness.send(index, format!("{step} {long}\n")),
        }
    }
    for _ in 0..2 {
        harness.end_turn();
    }
    for (member, received) in harness.members.iter().zip(&mut received) {
        received.extend(member.output.to_vec());
    }
    received
}

/// Returns the lines of an output without telnet replies, and the number of replies.
fn split_lines(output: &[u8]) -> (Vec<String>, usize) {
    let replies = memchr::memmem::find_iter(output, b"\xff\xfc\x06").count();
    let text = String::from_utf8(output.iter().copied().filter(|&byte| !matches!(byte, 6 | 252 | 255)).collect());
    (text.expect("UTF-8").lines().map(str::to_owned).collect(), replies)
}

/// A member that reads late receives the same lines as one that reads everything, except for those that the notices
/// count.
#[test]
fn skipped_lines_are_counted_exactly_in_random_sessions() {
    let mut skipped_total = 0;
    for seed in 0..20 {
        let complete = run_slow_session(seed, unlimited());
        let bounded = run_slow_session(seed, Bounds { queue_bytes_max: 2000, ..unlimited() });
        for (index, (complete, bounded)) in complete.iter().zip(&bounded).enumerate() {
            let ((expected, replies), (lines, replies_received)) = (split_lines(complete), split_lines(bounded));
            assert_eq!(replies, replies_received, "telnet replies of member {index}, seed {seed}");
            let mut at = 0;
            for line in lines {
                let count = line.strip_prefix("* ").and_then(|line| line.strip_suffix(" lines skipped"));
                if let Some(count) = count {
                    let count: usize = count.parse().expect("a number");
                    skipped_total += count;
                    at += count;
                } else {
                    assert_eq!(line, expected[at], "member {index}, seed {seed}");
                    at += 1;
                }
            }
            assert_eq!(at, expected.len(), "member {index}, seed {seed}");
        }
    }
    assert!(skipped_total > 1000, "{skipped_total}");
}

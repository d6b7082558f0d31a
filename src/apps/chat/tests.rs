//! The chat against the contract of applications, without sockets: what each person reads at the end of a turn.

use std::time::Duration;

use super::*;
use crate::r#loop::Output;

/// One person.
struct Person {
    desk: usize,
    id: ConnId,
    caller: Option<Caller>,
    output: Output,
    closed: bool,
}

/// A chat on some loops that turn in step, and people who talk in it.
struct Stage {
    chats: Vec<Chat>,
    people: Vec<Person>,
    now: Duration,
    /// Input of the last call that was not consumed.
    left: usize,
}

impl Stage {
    fn new(loops: usize, bounds: Bounds) -> Self {
        let mut chats = Chat::shared(bounds, loops);
        for chat in &mut chats {
            chat.start(Remote::detached());
        }
        Stage { chats, people: Vec::new(), now: Duration::ZERO, left: 0 }
    }

    /// A stage with so many people, who have read what they were told so far.
    fn with(people: usize) -> Self {
        let mut stage = Stage::new(1, Bounds::default());
        stage.crowd(people);
        stage.turn();
        stage
    }

    /// Lets a method of the application work on one person's connection.
    fn call(
        &mut self,
        who: usize,
        input: &[u8],
        ended: bool,
        method: impl FnOnce(&mut Chat, &mut Caller, &mut Wire<'_, Letter>) -> Flow,
    ) {
        let person = &mut self.people[who];
        let Some(caller) = person.caller.as_mut().filter(|_| !person.closed) else { return };
        let mut posts = Vec::new();
        let mut wire = Wire::over(input, ended, &mut person.output, &mut posts).detached(person.id, self.now);
        let flow = method(&mut self.chats[person.desk], caller, &mut wire);
        self.left = input.len() - wire.consumed();
        assert!(self.left == 0 || flow == Flow::Yield(Phase::Open));
        match flow {
            Flow::Close => self.close(who, Closed::Done),
            Flow::Abort => self.close(who, Closed::Refused),
            Flow::Read(Phase::Open) | Flow::Yield(Phase::Open) | Flow::Pause => {}
            other => panic!("{other:?}"),
        }
    }

    fn join(&mut self, desk: usize) -> usize {
        let id = ConnId::detached(u32::try_from(self.people.len()).unwrap());
        let (mut output, mut posts) = (Output::new(), Vec::new());
        let mut wire = Wire::over(&[], false, &mut output, &mut posts).detached(id, self.now);
        let (caller, flow) = self.chats[desk].open(&Accepted::detached(), &mut wire);
        let closed = flow == Flow::Close;
        self.people.push(Person { desk, id, caller: Some(caller), output, closed });
        self.people.len() - 1
    }

    fn crowd(&mut self, count: usize) {
        for _ in 0..count {
            self.join(0);
        }
    }

    fn send(&mut self, who: usize, input: impl AsRef<[u8]>) {
        assert_eq!(self.send_part(who, input), 0, "more than one turn takes");
    }

    /// Returns how much was left for another turn.
    fn send_part(&mut self, who: usize, input: impl AsRef<[u8]>) -> usize {
        self.call(who, input.as_ref(), false, App::receive);
        self.left
    }

    /// The person sends no more.
    fn end(&mut self, who: usize) {
        self.call(who, &[], true, App::receive);
    }

    fn close(&mut self, who: usize, reason: Closed) {
        let person = &mut self.people[who];
        person.closed = true;
        if let Some(caller) = person.caller.take() {
            let ending = Ending { reason, unsent_bytes: 0, wall: 0, now: Duration::ZERO };
            self.chats[person.desk].closed(person.id, caller, ending);
        }
    }

    /// Ends the turn of every loop; what each person reads.
    fn turn(&mut self) -> Vec<String> {
        self.turn_over();
        self.read()
    }

    /// The same for one loop.
    fn turn_of(&mut self, desk: usize) -> Vec<String> {
        self.turn_over_of(desk);
        self.read()
    }

    fn read(&mut self) -> Vec<String> {
        let read = |person: &mut Person| {
            let text = String::from_utf8(person.output.to_vec()).expect("UTF-8");
            person.output.clear();
            text
        };
        self.people.iter_mut().map(read).collect()
    }

    /// The same, but nobody reads.
    fn turn_over(&mut self) {
        for desk in 0..self.chats.len() {
            self.turn_over_of(desk);
        }
    }

    fn turn_over_of(&mut self, desk: usize) {
        let mut posts = Vec::new();
        self.chats[desk].end_of_turn(&mut posts);
        for (id, letter) in posts {
            let is_meant = |person: &Person| person.desk == desk && person.id == id;
            let who = self.people.iter().position(is_meant).expect("a letter to somebody");
            self.call(who, &[], false, |chat, caller, wire| chat.letter(caller, letter, wire));
        }
    }

    /// What one person reads of what another sends.
    fn told(&mut self, from: usize, input: impl AsRef<[u8]>, to: usize) -> String {
        self.send(from, input);
        self.turn().swap_remove(to)
    }
}

#[test]
fn who_comes_is_welcomed_and_told_who_is_there_and_the_others_are_told() {
    let mut stage = Stage::new(1, Bounds::default());
    stage.join(0);
    assert_eq!(stage.turn(), ["* Welcome, guest1! In lobby: nobody but you. Type /help for the commands.\n"]);
    stage.join(0);
    let welcome = "* Welcome, guest2! In lobby: guest1 (2 with you). Type /help for the commands.\n";
    assert_eq!(stage.turn(), ["* guest2 joined\n", welcome]);
    for _ in 2..25 {
        stage.join(0);
    }
    stage.turn();
    stage.join(0);
    let welcome = stage.turn().pop().unwrap();
    assert!(welcome.contains("guest1, guest2, "), "{welcome}");
    assert!(welcome.contains(" and 5 more (26 with you)"), "{welcome}");
    assert_eq!(welcome.matches("guest").count(), 21, "{welcome}");
}

#[test]
fn who_comes_reads_the_last_lines_of_the_room() {
    let mut stage = Stage::new(1, Bounds { history_lines: 3, ..Bounds::default() });
    stage.join(0);
    stage.send(0, "one\ntwo\n/me waits\n/who\nthree\n");
    stage.join(0);
    let told = stage.turn();
    let lines: Vec<&str> = told[1].lines().skip(1).collect();
    assert_eq!(lines, ["[guest1] two", "* guest1 waits", "[guest1] three"]);
    let mut stage = Stage::new(1, Bounds { history_lines: 0, ..Bounds::default() });
    stage.join(0);
    stage.send(0, "one\n");
    stage.join(0);
    assert_eq!(stage.turn()[1].lines().count(), 1);
}

#[test]
fn a_message_reaches_everybody_else_once() {
    let mut stage = Stage::with(3);
    stage.send(1, "hello\r\nworld\n");
    stage.send(2, " hi \n");
    let told = stage.turn();
    assert_eq!(told[0], "[guest2] hello\n[guest2] world\n[guest3]  hi \n");
    assert_eq!(told[1], "[guest3]  hi \n");
    assert_eq!(told[2], "[guest2] hello\n[guest2] world\n");
    assert_eq!(stage.turn(), ["", "", ""]);
}

#[test]
fn who_pastes_much_is_heard_in_turn_with_the_others() {
    let mut stage = Stage::with(3);
    let pasted = (0..100).map(|number| number.to_string()).collect::<Vec<_>>().join("\n") + "\n";
    let left = stage.send_part(0, &pasted);
    stage.send(1, "me too\n");
    assert_eq!(pasted.len() - left, pasted.find("64\n").unwrap());
    let told = stage.turn().pop().unwrap();
    assert!(told.ends_with("[guest1] 63\n[guest2] me too\n"), "{told}");
    assert_eq!(told.lines().count(), 65);
    // What is left is shown again, and the end of input waits for it.
    let rest = &pasted[pasted.len() - left..];
    stage.call(0, rest.as_bytes(), true, App::receive);
    let told = stage.turn().pop().unwrap();
    assert!(told.starts_with("[guest1] 64\n") && told.ends_with("[guest1] 99\n* guest1 left\n"), "{told}");
}

#[test]
fn what_happens_in_one_turn_is_one_notice() {
    let mut stage = Stage::with(4);
    stage.crowd(1000);
    stage.send(1, "/nick Bob\n");
    stage.send(2, "/quit\n");
    stage.close(3, Closed::Timeout(Phase::Open));
    let told = stage.turn().swap_remove(0);
    assert!(told.starts_with("* guest5, guest6, "), "{told}");
    assert!(
        told.ends_with(" and 980 more joined; guest3 left; guest4 left (timed out); guest2 is now Bob\n"),
        "{told}"
    );
    assert_eq!(told.lines().count(), 1);
}

#[test]
fn every_departure_has_its_reason() {
    for (reason, words) in [
        (Closed::Peer, "left"),
        (Closed::Error(io::ErrorKind::ConnectionReset.into()), "left"),
        (Closed::Error(io::ErrorKind::TimedOut.into()), "left (timed out)"),
        (Closed::Timeout(Phase::Open), "left (timed out)"),
        (Closed::TooSlow, "left (too slow)"),
    ] {
        let mut stage = Stage::with(2);
        stage.close(1, reason);
        assert_eq!(stage.turn()[0], format!("* guest2 {words}\n"));
    }
    let mut stage = Stage::with(2);
    stage.end(1);
    assert_eq!(stage.turn()[0], "* guest2 left\n");
    assert!(stage.people[1].closed);
}

#[test]
fn who_came_and_went_unannounced_is_not_announced() {
    let mut stage = Stage::with(1);
    let guest = stage.join(0);
    stage.close(guest, Closed::Peer);
    assert_eq!(stage.turn()[0], "");
    // But not before what it said is told of whom it came from.
    let guest = stage.join(0);
    stage.send(guest, "boo\n");
    stage.close(guest, Closed::Peer);
    assert_eq!(stage.turn()[0], "* guest3 joined\n[guest3] boo\n* guest3 left\n");
}

#[test]
fn names_are_unique_whatever_their_case_and_free_again_afterwards() {
    let mut stage = Stage::with(2);
    assert_eq!(stage.told(0, "/nick \u{c4}nne\n", 1), "* guest1 is now \u{c4}nne\n");
    assert_eq!(stage.told(1, "/nick \u{e4}NNE\n", 1), "* The name \u{e4}NNE is taken.\n");
    assert_eq!(stage.told(0, "/nick \u{e4}nne\n", 0), "* You are now \u{e4}nne.\n");
    for name in ["a b", "x\u{301}", "a/b", &"x".repeat(25)] {
        let told = stage.told(0, format!("/nick {name}\n"), 0);
        assert!(told.starts_with("* A name has") || told.starts_with("* Use it so: /nick NAME"), "{told}");
    }
    stage.close(0, Closed::Peer);
    stage.turn();
    assert_eq!(stage.told(1, "/nick \u{c4}NNE\n", 1), "* You are now \u{c4}NNE.\n");
    // A guest does not take the name of somebody who chose it.
    stage.send(1, "/nick GUEST4\n");
    stage.join(0);
    let guest = stage.join(0);
    assert!(stage.turn()[guest].contains("Welcome, guest5!"));
}

#[test]
fn rooms_are_apart_and_go_with_the_last_who_leaves() {
    let mut stage = Stage::with(3);
    assert_eq!(stage.told(0, "/join Tea\n", 0), "* You are now in Tea: nobody but you.\n");
    assert_eq!(stage.told(0, "secret\n", 1), "");
    stage.send(1, "/join tea\n/who\n");
    let told = stage.turn();
    assert_eq!(told[0], "* guest2 joined\n");
    assert_eq!(told[1], "* You are now in Tea: guest1 (2 with you).\n[guest1] secret\n* In Tea: guest1, guest2 (2)\n");
    assert_eq!(told[2], "* guest2 left for Tea\n");
    assert_eq!(stage.told(1, "/join TEA\n", 1), "* You are in TEA already.\n");
    assert_eq!(stage.told(2, "/rooms\n", 2), "* Rooms: lobby (1), Tea (2)\n");
    assert_eq!(stage.told(0, "/me sips\n", 1), "* guest1 sips\n");
    assert_eq!(stage.told(0, "/join lobby\n", 1), "* guest1 left for lobby\n");
    assert_eq!(stage.told(1, "/quit\n", 1), "* Goodbye.\n");
    assert_eq!(stage.told(2, "/rooms\n", 2), "* Rooms: lobby (2)\n");
    assert_eq!(stage.told(2, "/join tea\n", 2), "* You are now in tea: nobody but you.\n");
}

#[test]
fn who_says_something_and_moves_in_one_turn_is_heard_where_it_was_said() {
    let mut stage = Stage::with(3);
    stage.send(1, "/join tea\n");
    stage.turn();
    stage.send(0, "in the lobby\n/join tea\nin the tea room\n");
    let told = stage.turn();
    assert_eq!(told[1], "* guest1 joined\n[guest1] in the tea room\n");
    assert_eq!(told[2], "[guest1] in the lobby\n* guest1 left for tea\n");
}

#[test]
fn rooms_and_members_are_bounded() {
    let mut stage = Stage::new(1, Bounds { rooms_max: 2, members_max: 2, ..Bounds::default() });
    stage.join(0);
    stage.join(0);
    let third = stage.join(0);
    assert!(stage.people[third].closed);
    assert_eq!(stage.turn()[third], "* The chat is full; come back later.\n");
    stage.send(0, "/join tea\n");
    stage.turn();
    assert!(stage.told(1, "/join coffee\n", 1).starts_with("* There are as many rooms as there may be"));
    stage.close(0, Closed::Peer);
    let fourth = stage.join(0);
    assert!(stage.turn()[fourth].starts_with("* Welcome"));
}

#[test]
fn a_private_message_is_told_to_both_and_to_nobody_else() {
    let mut stage = Stage::with(3);
    stage.send(0, "/join tea\n");
    stage.turn();
    stage.send(1, "/msg GUEST1  psst \n");
    assert_eq!(stage.turn(), ["[guest2 -> guest1] psst\n", "[guest2 -> guest1] psst\n", ""]);
    for name in ["nobody", "\u{1f600}"] {
        assert!(stage.told(1, format!("/msg {name} x\n"), 1).starts_with("* Nobody has that name"));
    }
}

#[test]
fn help_names_the_commands_and_an_unknown_one_is_told_with_a_hint() {
    let mut stage = Stage::with(1);
    assert_eq!(stage.told(0, "/help\n", 0), command::HELP);
    let told = stage.told(0, "/jion tea\n", 0);
    assert_eq!(told, "* There is no command /jion; did you mean /join? /help tells them all.\n");
    let told = stage.told(0, format!("/{}\n", "x".repeat(1900)), 0);
    assert!(told.len() < 100, "{told}");
    assert_eq!(stage.told(0, "/msg bob\n", 0), "* Use it so: /msg NAME text\n");
}

#[test]
fn nobody_drives_the_terminal_of_another() {
    let mut stage = Stage::with(2);
    assert_eq!(
        stage.told(0, b"\x1b[2Ja\x07\xc2\x9b\xe2\x80\xaeb\tc\xfe\xff\xff\r\n", 1),
        "[guest1] [2Jab\tc\u{fffd}\u{fffd}\n"
    );
    // Cut anywhere, text is the same.
    for byte in "gr\u{fc}\u{df}e \u{1f600}\n".bytes() {
        stage.send(0, [byte]);
    }
    assert_eq!(stage.turn()[1], "[guest1] gr\u{fc}\u{df}e \u{1f600}\n");
    assert_eq!(stage.told(0, b"\x1b\x07\n", 1), "");
}

#[test]
fn a_line_too_long_is_explained_once_and_the_next_one_is_heard() {
    let mut stage = Stage::with(2);
    stage.send(0, "x".repeat(1500));
    assert_eq!(stage.turn(), ["", ""]);
    stage.send(0, "x".repeat(1500));
    assert_eq!(stage.turn(), ["* A line has at most 2000 bytes; this one was not delivered.\n", ""]);
    stage.send(0, "x".repeat(60_000));
    stage.send(0, "\nnext\n");
    assert_eq!(stage.turn(), ["", "[guest1] next\n"]);
}

#[test]
fn a_line_without_an_end_is_never_delivered() {
    let mut stage = Stage::with(2);
    stage.send(0, "never");
    assert_eq!(stage.turn(), ["", ""]);
    stage.end(0);
    assert_eq!(stage.turn(), ["", "* guest1 left\n"]);
}

#[test]
fn who_is_too_fast_is_told_and_muted_for_a_moment() {
    let mut stage = Stage::new(1, Bounds { rate: Some(2), ..Bounds::default() });
    stage.join(0);
    stage.join(0);
    stage.turn();
    stage.send(0, "1\n2\n3\n4\n/nick x\n");
    let told = stage.turn();
    assert_eq!(told[1], "[guest1] 1\n[guest1] 2\n");
    assert!(told[0].starts_with("* Too fast: at most 2 lines a second.") && told[0].lines().count() == 1, "{told:?}");
    stage.now += MUTE;
    assert_eq!(stage.told(0, "5\n", 1), "[guest1] 5\n");
}

#[test]
fn who_takes_too_little_is_dropped_at_the_bound_and_the_others_lose_nothing() {
    let mut stage = Stage::new(1, Bounds { queue_bytes_max: 1000, ..Bounds::default() });
    stage.crowd(3);
    stage.turn();
    let line = "x".repeat(90);
    let mut heard = String::new();
    for _ in 0..20 {
        stage.send(0, format!("{line}\n"));
        stage.turn_over();
        heard.push_str(&String::from_utf8(stage.people[1].output.to_vec()).unwrap());
        stage.people[1].output.clear();
        stage.people[0].output.clear();
        assert!(stage.people[2].output.len() <= 1000);
    }
    assert!(stage.people[2].closed && !stage.people[1].closed);
    assert_eq!(heard.matches(&line).count(), 20);
    assert_eq!(heard.matches("* guest3 left (too slow)\n").count(), 1);
}

#[test]
fn everybody_gets_what_is_due_and_a_line_when_the_loop_drains() {
    let mut stage = Stage::with(3);
    stage.send(0, "last words\n");
    stage.send(2, "/quit\n");
    for who in 0..3 {
        stage.call(who, &[], false, App::drain);
    }
    let down = "* The server is going down. Goodbye.\n";
    let told = stage.turn();
    assert_eq!(told[0], down);
    assert_eq!(told[1], format!("[guest1] last words\n{down}"));
    assert_eq!(told[2], "[guest1] last words\n* Goodbye.\n");
    assert!(stage.people.iter().all(|person| person.closed));
}

#[test]
fn loops_share_one_chat() {
    let mut stage = Stage::new(3, Bounds { members_max: 3, ..Bounds::default() });
    for desk in 0..3 {
        stage.join(desk);
    }
    stage.turn();
    stage.turn();
    stage.send(1, "/nick Bob\nhello\n/msg guest3 psst\n");
    let mut told = stage.turn();
    // The first loop turned before the second spoke.
    for (told, more) in told.iter_mut().zip(stage.turn()) {
        told.push_str(&more);
    }
    assert_eq!(told[0], "* guest2 is now Bob\n[Bob] hello\n");
    assert_eq!(told[1], "* You are now Bob.\n[Bob -> guest3] psst\n");
    assert_eq!(told[2], "* guest2 is now Bob\n[Bob] hello\n[Bob -> guest3] psst\n");
    let fourth = stage.join(2);
    assert!(stage.people[fourth].closed);
    stage.send(0, "/nick BOB\n");
    assert_eq!(stage.turn()[0], "* The name BOB is taken.\n");
}

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }
}

/// What everybody should read of what is said: said at once by all the loops, however they turn.
#[derive(Default)]
struct Model {
    /// Each person's room, as long as it is there.
    rooms: Vec<Option<usize>>,
    due: Vec<Vec<String>>,
    read: Vec<String>,
}

impl Model {
    fn come(&mut self) {
        self.rooms.push(Some(0));
        self.due.push(Vec::new());
        self.read.push(String::new());
    }

    fn say(&mut self, who: usize, words: &str) {
        for other in 0..self.rooms.len() {
            if other != who && self.rooms[other].is_some() && self.rooms[other] == self.rooms[who] {
                self.due[other].push(words.to_owned());
            }
        }
    }

    /// What of the text was said by people, without their names.
    fn said(text: &str) -> Vec<String> {
        let words = |line: &str| line.strip_prefix('[')?.split_once("] ").map(|(_, words)| words.to_owned());
        text.lines().filter_map(words).collect()
    }
}

/// A thousand things happen on several loops that turn as they like. Nobody misses a line, reads one twice, in another
/// order, in the wrong room, or after it left.
fn play(seed: u64) {
    let mut dice = Dice(seed);
    let loops = 1 + dice.roll(4);
    let mut stage = Stage::new(loops, Bounds { history_lines: 0, ..Bounds::default() });
    let mut model = Model::default();
    for step in 0..1000 {
        let act = dice.roll(20);
        if act == 0 || stage.people.len() < 3 {
            stage.join(dice.roll(loops));
            model.come();
            continue;
        }
        let who = dice.roll(stage.people.len());
        if model.rooms[who].is_none() {
            continue;
        }
        match act {
            1 => {
                let room = dice.roll(3);
                stage.send(who, format!("/join {}\n", ["lobby", "tea", "coffee"][room]));
                model.rooms[who] = Some(room);
            }
            2 => stage.send(who, format!("/nick n{}\n", dice.roll(20))),
            3 if dice.roll(4) == 0 => {
                stage.send(who, "/quit\n");
                model.rooms[who] = None;
            }
            4 if dice.roll(4) == 0 => {
                stage.close(who, Closed::Peer);
                // What it did not read yet it never will.
                model.rooms[who] = None;
                model.due[who].clear();
                model.read[who].clear();
            }
            5..10 => {
                let desk = dice.roll(loops);
                for (who, text) in stage.turn_of(desk).into_iter().enumerate() {
                    model.read[who].push_str(&text);
                }
            }
            _ => {
                stage.send(who, format!("{step}\n"));
                model.say(who, &step.to_string());
            }
        }
    }
    for desk in 0..loops {
        for (who, text) in stage.turn_of(desk).into_iter().enumerate() {
            model.read[who].push_str(&text);
        }
    }
    for (who, (due, read)) in model.due.iter().zip(&model.read).enumerate() {
        assert_eq!(Model::said(read), *due, "person {who}, seed {seed}");
    }
}

#[test]
fn whatever_happens_everybody_reads_what_was_said_where_they_were() {
    for seed in 0..300 {
        play(seed);
    }
}

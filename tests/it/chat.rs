//! The chat over sockets: on one loop and on several, with people who are slow, silent, many, or gone.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use serverd::apps::chat::{Bounds, Chat};
use serverd::r#loop::Limits;
use serverd::{EventLoop, Poller, Timeouts};

use crate::harness::{Backend, Client, PATIENCE, Random, Server, on_every_backend, serve_on, serve_with};

/// One chat on so many loops, each with a port of its own.
fn chat<B: Backend>(loops: usize, bounds: Bounds, timeouts: &Timeouts) -> Vec<Server> {
    let parts = Chat::shared(bounds, loops).into_iter();
    parts.map(|part| serve_with::<B, _>(timeouts.clone(), Limits::default(), move || part)).collect()
}

fn plain<B: Backend>(loops: usize) -> Vec<Server> {
    chat::<B>(loops, Bounds::default(), &Timeouts::default())
}

/// Somebody in the chat.
struct Person {
    client: Client,
    name: String,
}

impl Person {
    fn come(server: &Server) -> Self {
        let mut client = server.connect();
        let welcome = client.line();
        let name = welcome.strip_prefix("* Welcome, ").and_then(|rest| rest.split('!').next()).expect("a welcome");
        Person { name: name.to_owned(), client }
    }

    fn send(&mut self, text: &str) {
        self.client.send(text);
    }

    fn line(&mut self) -> String {
        self.client.line()
    }

    /// Reads up to a line that ends so; returns what came before it.
    fn until(&mut self, end: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let line = self.line();
            if line.ends_with(end) {
                return lines;
            }
            lines.push(line);
        }
    }
}

/// Everybody comes, one after the other, and everybody has read of it.
fn gather(servers: &[Server], count: usize) -> Vec<Person> {
    let mut people: Vec<Person> = (0..count).map(|number| Person::come(&servers[number % servers.len()])).collect();
    let last = people[count - 1].name.clone();
    for person in &mut people[..count - 1] {
        person.until(&format!("{last} joined"));
    }
    people
}

/// A hundred people say things at random, on so many loops: each reads the same lines in the same order, without its own.
fn order<B: Backend>(loops: usize) {
    const PEOPLE: usize = 100;
    const LINES: usize = 1000;
    let servers = plain::<B>(loops);
    let mut people = gather(&servers, PEOPLE);
    let mut random = Random::new(loops as u64);
    for number in 0..LINES {
        // The first only listens.
        people[1 + random.below(PEOPLE - 1)].send(&format!("{number}\n"));
    }
    // Whoever says so said everything else before.
    for person in &mut people[1..] {
        person.send("done\n");
    }
    let mut logs = Vec::new();
    for (number, person) in people.iter_mut().enumerate() {
        let mut log = Vec::new();
        let mut dones = if number == 0 { PEOPLE - 1 } else { PEOPLE - 2 };
        while dones > 0 {
            let line = person.line();
            dones -= usize::from(line.ends_with("] done"));
            log.push(line);
        }
        logs.push(log);
    }
    assert_eq!(logs[0].len(), LINES + PEOPLE - 1);
    for (person, log) in people.iter().zip(&logs) {
        let own = format!("[{}] ", person.name);
        let others = logs[0].iter().filter(|line| !line.starts_with(&own));
        assert!(log.iter().eq(others), "{} read another order", person.name);
    }
}

on_every_backend! {
    fn two_people_talk<B>() {
        let servers = plain::<B>(1);
        let mut anna = Person::come(&servers[0]);
        let mut bert = Person::come(&servers[0]);
        assert_eq!(anna.line(), "* guest2 joined");
        anna.send("/nick Anna\r\n");
        assert_eq!(anna.line(), "* You are now Anna.");
        assert_eq!(bert.line(), "* guest1 is now Anna");
        bert.send("good day");
        bert.send(" to you\n");
        assert_eq!(anna.line(), "[guest2] good day to you");
        anna.client.send(b"\xff\xfb\x01gr\xc3").send(b"\xbc\xc3\x9fe \x1b[1m\r\n");
        assert_eq!(bert.line(), "[Anna] gr\u{fc}\u{df}e [1m");
        bert.send("/quit\n");
        assert_eq!(bert.line(), "* Goodbye.");
        bert.client.expect_close();
        assert_eq!(anna.line(), "* guest2 left");
    }

    fn commands_piped_in_are_answered_before_the_end<B>() {
        let servers = plain::<B>(1);
        let mut client = servers[0].connect();
        client.send("/who\n/rooms\nhello\nnever").finish();
        let told = String::from_utf8(client.rest()).expect("UTF-8");
        let lines: Vec<&str> = told.lines().skip(1).collect();
        assert_eq!(lines, ["* In lobby: guest1 (1)", "* Rooms: lobby (1)"]);
    }

    fn everybody_reads_the_same_order_on_one_loop<B>() {
        order::<B>(1);
    }

    fn everybody_reads_the_same_order_on_two_loops<B>() {
        order::<B>(2);
    }

    fn everybody_reads_the_same_order_on_four_loops<B>() {
        order::<B>(4);
    }

    fn members_on_different_loops_are_one_chat<B>() {
        let servers = plain::<B>(4);
        let mut people = gather(&servers, 4);
        people[3].send("/msg guest1 psst\n");
        assert_eq!(people[0].line(), "[guest4 -> guest1] psst");
        people[1].send("/nick guest3\n");
        assert_eq!(people[1].line(), "* The name guest3 is taken.");
        people[2].send("/join tea\n");
        assert_eq!(people[2].line(), "* You are now in tea: nobody but you.");
        people[0].send("/join tea\n");
        assert_eq!(people[2].line(), "* guest1 joined");
        people[2].send("hot\n");
        people[0].until("[guest3] hot");
        people[0].client.socket.shutdown(std::net::Shutdown::Both).expect("alive");
        assert_eq!(people[2].line(), "* guest1 left");
    }

    fn who_stops_reading_is_dropped_and_ninety_nine_others_lose_no_line<B>() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        // So that the system holds little for who does not read.
        socket2::SockRef::from(&listener).set_send_buffer_size(16 * 1024).expect("alive");
        let server =
            serve_on::<B, _>(listener, Timeouts::default(), Limits::default(), || Chat::new(Bounds::default()));
        let mut people = gather(std::slice::from_ref(&server), 101);
        let mut slow = people.swap_remove(50);
        let notice = format!("* {} left (too slow)", slow.name);
        socket2::SockRef::from(&slow.client.socket).set_recv_buffer_size(4096).expect("alive");
        let words = "x".repeat(1900);
        let (mut said, mut dropped) = (0, 0);
        // Everybody else reads everything before more is said.
        while dropped == 0 {
            let lines: Vec<String> = (said..said + 20).map(|number| format!("{number} {words}")).collect();
            said += 20;
            people[0].send(&(lines.join("\n") + "\n"));
            for person in &mut people[1..] {
                let mut before = person.until(&lines[19]);
                before.retain(|line| *line != notice);
                assert!(before.iter().eq(lines[..19].iter().map(|line| format!("[guest1] {line}")).collect::<Vec<_>>().iter()));
            }
            dropped = usize::from(people[0].client.line_within(Duration::from_millis(1)).is_some_and(|line| line == notice));
            assert!(said < 10_000, "never dropped");
        }
        assert!(said * 1900 > 256 * 1024, "dropped after {said} lines");
        // What it reads now ends, and is not everything.
        let mut rest = Vec::new();
        let _ = std::io::Read::read_to_end(&mut slow.client.socket, &mut rest);
        assert!(rest.len() < said * 1900);
    }

    fn who_takes_nothing_for_the_time_of_writing_is_too_slow<B>() {
        let timeouts = Timeouts { write: Some(Duration::from_millis(100)), ..Timeouts::default() };
        let bounds = Bounds { queue_bytes_max: 1 << 30, ..Bounds::default() };
        let servers = chat::<B>(1, bounds, &timeouts);
        let mut people = gather(&servers, 2);
        let words = "x".repeat(1900) + "\n";
        let mut reader = people[0].client.socket.try_clone().expect("alive");
        // The second reads nothing at all, until nothing more fits.
        let told = std::thread::spawn(move || {
            let mut told = Vec::new();
            let mut buffer = [0; 4096];
            while !told.ends_with(b"(too slow)\n") {
                let count = std::io::Read::read(&mut reader, &mut buffer).expect("in time");
                told.extend_from_slice(&buffer[..count]);
            }
            told
        });
        while !told.is_finished() {
            people[0].send(&words.repeat(30));
        }
        assert_eq!(told.join().expect("told"), b"* guest2 left (too slow)\n");
    }

    fn who_is_silent_stays_unless_a_time_is_set<B>() {
        let timeouts = Timeouts { open: Some(Duration::from_millis(300)), ..Timeouts::default() };
        let servers = chat::<B>(1, Bounds::default(), &timeouts);
        let mut silent = Person::come(&servers[0]);
        let mut lively = Person::come(&servers[0]);
        silent.until("* guest2 joined");
        let gone = loop {
            lively.send("hello?\n");
            if let Some(line) = lively.client.line_within(Duration::from_millis(20)) {
                break line;
            }
        };
        assert_eq!(gone, "* guest1 left (timed out)");
        assert!(silent.until("* You said nothing for too long. Goodbye.").iter().all(|line| line == "[guest2] hello?"));
        silent.client.expect_close();
    }

    fn what_is_pasted_comes_whole_though_others_have_their_turn_between<B>() {
        let servers = plain::<B>(1);
        let mut people = gather(&servers, 3);
        let pasted: Vec<String> = (0..5000).map(|number| number.to_string()).collect();
        people[0].send(&(pasted.join("\n") + "\n"));
        people[1].send("me too\n");
        let mut told = people[2].until("] 4999");
        told.retain(|line| line != "[guest2] me too");
        assert_eq!(told.len(), 4999);
        assert!(told.iter().zip(&pasted).all(|(line, said)| *line == format!("[guest1] {said}")));
    }

    fn a_chat_that_is_full_says_so<B>() {
        let servers = chat::<B>(1, Bounds { members_max: 2, ..Bounds::default() }, &Timeouts::default());
        let people = gather(&servers, 2);
        let mut third = servers[0].connect();
        assert_eq!(third.line(), "* The chat is full; come back later.");
        third.expect_close();
        drop(people);
    }

    fn at_drain_everybody_gets_what_is_queued_and_a_line<B>() {
        let servers = plain::<B>(2);
        let mut people = gather(&servers, 10);
        let words = "x".repeat(1000);
        let said: Vec<String> = (0..100).map(|number| format!("{number} {words}")).collect();
        people[0].send(&(said.join("\n") + "\n"));
        // What one has read is on its way to all the others, on the other loop too.
        people[9].until(&said[99]);
        for server in &servers {
            server.handle.drain();
        }
        for (number, person) in people.iter_mut().enumerate() {
            let before = person.until("* The server is going down. Goodbye.");
            let expected = if number == 0 || number == 9 { &[] } else { &said[..] };
            assert!(before.iter().eq(expected.iter().map(|line| format!("[guest1] {line}")).collect::<Vec<_>>().iter()));
            person.client.expect_close();
        }
        for server in servers {
            server.drain();
        }
    }
}

/// Turns a loop by hand, with people who talk at random, and compares its counters.
fn sends<B: Backend>() {
    const PEOPLE: usize = 50;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let mut event_loop =
        EventLoop::<B, _>::with(Timeouts::default(), Limits::default(), Chat::new(Bounds::default())).expect("a loop");
    event_loop.listen(listener).expect("watched");
    let mut clients: Vec<TcpStream> =
        (0..PEOPLE).map(|_| TcpStream::connect_timeout(&address, PATIENCE).expect("a connection")).collect();
    let handle = event_loop.handle();
    let (mut random, mut most) = (Random::new(10), 0);
    for round in 0..300 {
        for _ in 0..random.below(20) {
            let who = random.below(PEOPLE);
            let what = ["hello\n", "/who\n", "/me waves\n", "/msg guest1 psst\n", "a\nb\nc\n"][random.below(5)];
            clients[who].write_all(what.as_bytes()).expect("sent");
        }
        let before = event_loop.counters().clone();
        // A turn that nothing came for ends too.
        handle.wake();
        event_loop.turn().expect("turned");
        let writes = event_loop.counters().writes - before.writes;
        assert!(writes <= PEOPLE as u64, "{writes} sends in turn {round}");
        most = most.max(writes);
    }
    assert_eq!(event_loop.connections(), PEOPLE);
    assert_eq!(most, PEOPLE as u64, "everybody was sent something in some turn");
}

/// Not under chaos, where a socket refuses at random and one that takes bytes again is sent to once more.
#[test]
fn nobody_is_sent_to_twice_in_a_turn() {
    sends::<serverd::r#loop::Select>();
    #[cfg(target_os = "linux")]
    sends::<serverd::r#loop::Epoll>();
    #[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
    sends::<serverd::r#loop::Kqueue>();
}

/// A crowd that comes at once costs each one notice, not one for each of the others.
#[test]
fn a_crowd_is_announced_in_one_line() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let mut event_loop = EventLoop::<serverd::r#loop::Select, _>::with(
        Timeouts::default(),
        Limits::default(),
        Chat::new(Bounds::default()),
    )
    .expect("a loop");
    event_loop.listen(listener).expect("watched");
    let mut first = Client::new(address);
    while event_loop.connections() == 0 {
        event_loop.turn().expect("turned");
    }
    assert!(first.line().starts_with("* Welcome, guest1!"));
    let crowd: Vec<Client> = (0..40).map(|_| Client::new(address)).collect();
    while event_loop.connections() < 41 {
        event_loop.turn().expect("turned");
    }
    let notice = first.line();
    assert!(notice.starts_with("* guest2, guest3, ") && notice.ends_with(" and 20 more joined"), "{notice}");
    drop(crowd);
}

//! The chat server over sockets, on one loop and on several, with many clients, some of them slow or idle.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use serverd::apps::chat::{Bounds, Budget, Chat, Options};
use serverd::{EventLoop, LoopLimits, Timeouts};

use crate::harness::{Backend, Client, Random, Server, WAIT_MAX, on_every_backend, serve_on, serve_with};

/// Starts one chat on `loops` loops, each with its own port.
fn chat_with<B: Backend>(loops: usize, bounds: Bounds, timeouts: &Timeouts) -> Vec<Server> {
    let chats = Chat::shared(bounds, loops).into_iter();
    chats.map(|chat| serve_with::<B, _>(timeouts.clone(), LoopLimits::default(), move || chat)).collect()
}

fn start_chat<B: Backend>(loops: usize) -> Vec<Server> {
    chat_with::<B>(loops, Bounds::default(), &timeouts())
}

/// The default timeouts, with enough time for members that only read.
fn timeouts() -> Timeouts {
    Timeouts::default().silent(Duration::from_secs(600))
}

/// Limits without budgets, for tests that send much at once.
fn unlimited() -> Bounds {
    Bounds::default().byte_budget(None).line_budget(None)
}

/// A client that has joined the chat.
struct Member {
    client: Client,
    name: String,
}

impl Member {
    fn join(server: &Server) -> Self {
        let mut client = server.connect();
        let welcome = client.line();
        let name = welcome.strip_prefix("* Welcome, ").and_then(|rest| rest.split('!').next()).expect("a welcome line");
        Member { name: name.to_owned(), client }
    }

    fn send(&mut self, text: &str) {
        self.client.send(text);
    }

    fn line(&mut self) -> String {
        self.client.line()
    }

    /// Reads up to a line that ends with `end`, and returns the lines before it.
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

/// Connects `count` members one after the other, and waits until each has seen the last one join.
fn join_all(servers: &[Server], count: usize) -> Vec<Member> {
    let mut members: Vec<Member> = (0..count).map(|number| Member::join(&servers[number % servers.len()])).collect();
    let last = members[count - 1].name.clone();
    for member in &mut members[..count - 1] {
        member.until(&format!("{last} joined"));
    }
    members
}

/// Asserts that when a hundred members on `loops` loops send messages at random, all of them receive the messages in
/// the same order.
fn check_order<B: Backend>(loops: usize) {
    const MEMBERS: usize = 100;
    const LINES: usize = 1000;
    let servers = start_chat::<B>(loops);
    let mut members = join_all(&servers, MEMBERS);
    let mut random = Random::new(loops as u64);
    for number in 0..LINES {
        // The first member only receives.
        members[1 + random.below(MEMBERS - 1)].send(&format!("{number}\n"));
    }
    // Marks the end of the messages of each member.
    for member in &mut members[1..] {
        member.send("done\n");
    }
    let mut logs = Vec::new();
    for (number, member) in members.iter_mut().enumerate() {
        let mut log = Vec::new();
        let mut dones_left = if number == 0 { MEMBERS - 1 } else { MEMBERS - 2 };
        while dones_left > 0 {
            let line = member.line();
            dones_left -= usize::from(line.ends_with("] done"));
            log.push(line);
        }
        logs.push(log);
    }
    assert_eq!(logs[0].len(), LINES + MEMBERS - 1);
    for (member, log) in members.iter().zip(&logs) {
        let own = format!("[{}] ", member.name);
        let others = logs[0].iter().filter(|line| !line.starts_with(&own));
        assert!(log.iter().eq(others), "{} received a different order", member.name);
    }
}

on_every_backend! {
    fn two_members_talk<B>() {
        let servers = start_chat::<B>(1);
        let mut alice = Member::join(&servers[0]);
        let mut bob = Member::join(&servers[0]);
        assert_eq!(alice.line(), "* guest2 joined");
        alice.send("/nick Alice\r\n");
        assert_eq!(alice.line(), "* You are now Alice.");
        assert_eq!(bob.line(), "* guest1 is now Alice");
        bob.send("good day");
        bob.send(" to you\n");
        assert_eq!(alice.line(), "[guest2] good day to you");
        alice.client.send(b"\xff\xfb\x01gr\xc3").send(b"\xbc\xc3\x9fe \x1b[1m\r\n");
        assert_eq!(bob.line(), "[Alice] gr\u{fc}\u{df}e [1m");
        assert_eq!(alice.client.read(3), b"\xff\xfe\x01");
        alice.client.send(b"one\r\0two\rthree\r\n\xff\xf4\xff\xfd\x06");
        assert_eq!([bob.line(), bob.line(), bob.line()], ["[Alice] one", "[Alice] two", "[Alice] three"]);
        assert_eq!(alice.client.read(3), b"\xff\xfc\x06");
        bob.send("/quit\n");
        assert_eq!(bob.line(), "* Goodbye.");
        bob.client.expect_close();
        assert_eq!(alice.line(), "* guest2 left");
    }

    fn http_requests_do_not_become_messages<B>() {
        let servers = start_chat::<B>(1);
        let mut alice = Member::join(&servers[0]);
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(5000));
        for request in ["POST / HTTP/1.1\r\n", "GET http://a.test/ HTTP/1.0\n", "PRI * HTTP/2.0\r\n", &long] {
            let mut browser = Member::join(&servers[0]);
            let name = browser.name.clone();
            assert_eq!(alice.line(), format!("* {name} joined"));
            browser.send(&format!("{request}Cookie: secret\r\n\r\n/nick Evil\nfrom a web page\n"));
            assert_eq!(browser.line(), "* This is a chat, not an HTTP server. Connect with nc or telnet.");
            assert_eq!(alice.line(), format!("* {name} left"));
        }
        let mut bob = Member::join(&servers[0]);
        bob.send("HTTP/1.1 is from 1997\nGET / HTTP/1.1\n");
        assert_eq!(alice.line(), format!("* {} joined", bob.name));
        assert_eq!(alice.line(), format!("[{}] HTTP/1.1 is from 1997", bob.name));
        assert_eq!(alice.line(), format!("[{}] GET / HTTP/1.1", bob.name), "only the first line counts");
    }

    fn piped_commands_get_replies_before_the_connection_closes<B>() {
        let servers = start_chat::<B>(1);
        let mut client = servers[0].connect();
        client.send("/who\n/rooms\nhello\nnever").finish();
        let received = String::from_utf8(client.read_to_end()).expect("UTF-8");
        let lines: Vec<&str> = received.lines().skip(1).collect();
        assert_eq!(lines, ["* In lobby: guest1 (1)", "* Rooms: lobby (1)"]);
    }

    fn all_members_receive_the_same_order_on_one_loop<B>() {
        check_order::<B>(1);
    }

    fn all_members_receive_the_same_order_on_two_loops<B>() {
        check_order::<B>(2);
    }

    fn all_members_receive_the_same_order_on_four_loops<B>() {
        check_order::<B>(4);
    }

    fn members_on_different_loops_share_one_chat<B>() {
        let servers = start_chat::<B>(4);
        let mut members = join_all(&servers, 4);
        members[3].send("/msg guest1 psst\n");
        assert_eq!(members[0].line(), "[guest4 -> guest1] psst");
        members[1].send("/nick guest3\n");
        assert_eq!(members[1].line(), "* The name guest3 is taken.");
        members[2].send("/join tea\n");
        assert_eq!(members[2].line(), "* You are now in tea: only you.");
        members[0].send("/join tea\n");
        assert_eq!(members[2].line(), "* guest1 joined");
        members[2].send("hot\n");
        members[0].until("[guest3] hot");
        members[0].client.socket.shutdown(std::net::Shutdown::Both).expect("an open socket");
        assert_eq!(members[2].line(), "* guest1 left");
    }

    fn a_client_slower_than_its_room_stays_and_the_others_lose_no_line<B>() {
        const BATCHES: usize = 40;
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        // Small socket buffers, so that the kernel holds little for the slow client.
        socket2::SockRef::from(&listener).set_send_buffer_size(16 * 1024).expect("an open socket");
        let server = serve_on::<B, _>(listener, timeouts(), LoopLimits::default(), || Chat::new(unlimited()));
        let mut members = join_all(std::slice::from_ref(&server), 11);
        let mut slow = members.swap_remove(5);
        socket2::SockRef::from(&slow.client.socket).set_recv_buffer_size(4096).expect("an open socket");
        let text = "x".repeat(1900);
        let mut sent = Vec::new();
        // The other members read each batch before the next one is sent.
        for batch in 0..BATCHES {
            let lines: Vec<String> = (20 * batch..20 * batch + 20).map(|number| format!("{number} {text}")).collect();
            members[0].send(&(lines.join("\n") + "\n"));
            for member in &mut members[1..] {
                let before = member.until(&lines[19]);
                assert!(before.iter().eq(lines[..19].iter().map(|line| format!("[guest1] {line}")).collect::<Vec<_>>().iter()));
            }
            sent.extend(lines);
        }
        let (mut next, mut skipped) = (0, 0);
        while next < sent.len() {
            let line = slow.line();
            if let Some(count) = line.strip_prefix("* ").and_then(|line| line.strip_suffix(" lines skipped")) {
                skipped += count.parse::<usize>().expect("a number");
                next += count.parse::<usize>().expect("a number");
            } else {
                assert_eq!(line, format!("[guest1] {}", sent[next]));
                next += 1;
            }
        }
        assert!(skipped > 0, "no line was skipped");
        slow.send("still here\n");
        assert_eq!(members[1].line(), format!("[{}] still here", slow.name));
    }

    fn a_sender_is_slowed_down_to_its_budget_and_its_time_limits_pause<B>() {
        let bounds = Bounds::default().byte_budget(Budget { burst: 100, per_second: 2000 });
        let timeouts = timeouts().open(Duration::from_millis(300));
        let servers = chat_with::<B>(2, bounds, &timeouts);
        let mut members = join_all(&servers, 2);
        let start = std::time::Instant::now();
        let text = "x".repeat(1900);
        members[0].send(&format!("{text}\nsecond\n"));
        assert_eq!(members[1].line(), format!("[guest1] {text}"));
        assert_eq!(members[1].line(), "[guest1] second");
        assert!(start.elapsed() >= Duration::from_millis(850), "{:?}", start.elapsed());
    }

    fn a_flood_arrives_complete_at_the_rate_of_the_budget<B>() {
        let bounds = Bounds::default().line_budget(Budget { burst: 50, per_second: 200 });
        let servers = chat_with::<B>(1, bounds, &timeouts());
        let mut members = join_all(&servers, 3);
        let start = std::time::Instant::now();
        let flood: Vec<String> = (0..200).map(|number| number.to_string()).collect();
        members[0].send(&(flood.join("\n") + "\n"));
        members[0].client.finish();
        // Others are not delayed.
        members[1].send("me too\n");
        let mut lines = members[2].until("guest1 left");
        assert!(start.elapsed() >= Duration::from_millis(700), "{:?}", start.elapsed());
        let at = lines.iter().position(|line| line == "[guest2] me too").expect("the line of the other member");
        assert!(at <= 101, "delayed by {at} lines");
        lines.remove(at);
        assert!(lines.iter().eq((0..200).map(|number| format!("[guest1] {number}")).collect::<Vec<_>>().iter()));
    }

    fn a_member_that_sends_no_line_is_disconnected<B>() {
        let timeouts = Timeouts::default().silent(Duration::from_secs(1)).linger_total(Duration::from_millis(200));
        let servers = chat_with::<B>(1, Bounds::default(), &timeouts);
        let mut active = Member::join(&servers[0]);
        active.send("hello\n");
        let mut silent = Member::join(&servers[0]);
        silent.until("[guest1] hello");
        // Bytes that are no line do not count, however steadily they arrive.
        let mut dripping = silent.client.socket.try_clone().expect("an open socket");
        let drip = std::thread::spawn(move || {
            while dripping.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        silent.until("* Disconnected: no line received for too long.");
        active.until("guest2 left (timed out)");
        drop(silent);
        drip.join().expect("the writing thread");
        active.send("/who\n");
        assert_eq!(active.line(), "* In lobby: guest1 (1)");
    }

    fn a_password_is_required_and_the_console_sees_addresses<B>() {
        let options = Options::default().password("secret".to_owned()).motd("Be nice.".into());
        let chats = Chat::with_options(options, 2);
        let console = chats[0].console();
        let serve = |chat| serve_with::<B, _>(timeouts(), LoopLimits::default(), move || chat);
        let servers: Vec<Server> = chats.into_iter().map(serve).collect();
        let mut wrong = servers[0].connect();
        assert_eq!(wrong.line(), "* This chat has a password. Enter it:");
        wrong.send("/who\nhello\nSecret\n");
        assert_eq!([wrong.line(), wrong.line()], ["* Wrong password; try again:"; 2]);
        assert_eq!(wrong.line(), "* Wrong password. Goodbye.");
        wrong.expect_close();
        let mut member = servers[1].connect();
        member.line();
        member.send("secret\r\n");
        assert!(member.line().starts_with("* Welcome, guest1!"));
        assert_eq!(member.line(), "* Be nice.");
        let own = member.socket.local_addr().expect("an address");
        assert_eq!(console.execute("/who"), format!("1 members\nguest1 in lobby from {own}\n"));
        assert_eq!(console.execute("/ban guest1"), "banned 127.0.0.1; disconnected 1 members\n");
        assert_eq!(member.line(), "* You were banned by the server.");
        member.expect_close();
        let mut banned = servers[0].connect();
        assert_eq!(banned.line(), "* You are banned from this chat.");
        banned.expect_close();
        assert_eq!(console.execute("/unban 127.0.0.1"), "unbanned 127.0.0.1\n");
        assert_eq!(servers[0].connect().line(), "* This chat has a password. Enter it:");
    }

    fn a_client_that_exceeds_the_write_timeout_is_too_slow<B>() {
        let timeouts = timeouts().write(Duration::from_millis(100));
        let servers = chat_with::<B>(1, unlimited(), &timeouts);
        let mut members = join_all(&servers, 2);
        let text = "x".repeat(1900) + "\n";
        let mut reader = members[0].client.socket.try_clone().expect("an open socket");
        // The second member never reads, so that its buffers fill up.
        let received = std::thread::spawn(move || {
            let mut received = Vec::new();
            let mut buffer = [0; 4096];
            while !received.ends_with(b"(too slow)\n") {
                let count = std::io::Read::read(&mut reader, &mut buffer).expect("a read in time");
                received.extend_from_slice(&buffer[..count]);
            }
            received
        });
        while !received.is_finished() {
            members[0].send(&text.repeat(30));
        }
        assert_eq!(received.join().expect("the reader thread"), b"* guest2 left (too slow)\n");
    }

    fn an_idle_member_is_disconnected_after_the_timeout<B>() {
        let timeouts = timeouts().open(Duration::from_millis(300));
        let servers = chat_with::<B>(1, unlimited(), &timeouts);
        let mut idle = Member::join(&servers[0]);
        idle.send("/who\n");
        let mut active = Member::join(&servers[0]);
        idle.until("* guest2 joined");
        let notice = loop {
            active.send("hello?\n");
            if let Some(line) = active.client.line_within(Duration::from_millis(20)) {
                break line;
            }
        };
        assert_eq!(notice, "* guest1 left (timed out)");
        assert!(idle.until("* Disconnected: idle too long.").iter().all(|line| line == "[guest2] hello?"));
        idle.client.expect_close();
    }

    fn a_long_paste_arrives_complete_and_is_interleaved_with_other_messages<B>() {
        let servers = chat_with::<B>(1, unlimited(), &timeouts());
        let mut members = join_all(&servers, 3);
        let pasted: Vec<String> = (0..5000).map(|number| number.to_string()).collect();
        members[0].send(&(pasted.join("\n") + "\n"));
        members[1].send("me too\n");
        let mut received = members[2].until("] 4999");
        received.retain(|line| line != "[guest2] me too");
        assert_eq!(received.len(), 4999);
        assert!(received.iter().zip(&pasted).all(|(line, sent)| *line == format!("[guest1] {sent}")));
    }

    fn a_full_chat_rejects_clients_with_a_notice<B>() {
        let servers = chat_with::<B>(1, Bounds::default().members_max(2), &timeouts());
        let members = join_all(&servers, 2);
        let mut third = servers[0].connect();
        assert_eq!(third.line(), "* The chat is full; try again later.");
        third.expect_close();
        drop(members);
    }

    fn on_drain_members_get_their_queued_lines_and_a_notice<B>() {
        let servers = chat_with::<B>(2, unlimited(), &timeouts());
        let mut members = join_all(&servers, 10);
        let text = "x".repeat(1000);
        let sent: Vec<String> = (0..100).map(|number| format!("{number} {text}")).collect();
        members[0].send(&(sent.join("\n") + "\n"));
        // Once one member has received the last line, it is queued for all others, on the other loop as well.
        members[9].until(&sent[99]);
        for server in &servers {
            server.handle.drain();
        }
        for (number, member) in members.iter_mut().enumerate() {
            let before = member.until("* The server is shutting down. Goodbye.");
            let expected = if number == 0 || number == 9 { &[] } else { &sent[..] };
            assert!(before.iter().eq(expected.iter().map(|line| format!("[guest1] {line}")).collect::<Vec<_>>().iter()));
            member.client.expect_close();
        }
        for server in servers {
            server.drain();
        }
    }
}

/// Runs the turns of a loop one by one while members send at random, and checks the number of writes in each turn.
fn check_writes<B: Backend>() {
    const MEMBERS: usize = 50;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let mut event_loop =
        EventLoop::<B, _>::with_limits(timeouts(), LoopLimits::default(), Chat::new(unlimited())).expect("a loop");
    event_loop.listen(listener).expect("the listener is added");
    let mut clients: Vec<TcpStream> =
        (0..MEMBERS).map(|_| TcpStream::connect_timeout(&address, WAIT_MAX).expect("a connection")).collect();
    let handle = event_loop.handle();
    let (mut random, mut writes_max) = (Random::new(10), 0);
    for round in 0..300 {
        for _ in 0..random.below(20) {
            let index = random.below(MEMBERS);
            let line = ["hello\n", "/who\n", "/me waves\n", "/msg guest1 psst\n", "a\nb\nc\n"][random.below(5)];
            clients[index].write_all(line.as_bytes()).expect("a write");
        }
        let before = event_loop.counters().clone();
        // Ensures that the turn ends even if there is no input.
        handle.wake();
        event_loop.turn().expect("a turn");
        let writes = event_loop.counters().writes - before.writes;
        assert!(writes <= MEMBERS as u64, "{writes} writes in turn {round}");
        writes_max = writes_max.max(writes);
    }
    assert_eq!(event_loop.connections(), MEMBERS);
    assert_eq!(writes_max, MEMBERS as u64, "no turn wrote to all members");
}

/// Not run under Chaos, which makes writes fail at random, so that they are repeated within a turn.
#[test]
fn a_member_is_written_to_at_most_once_per_turn() {
    check_writes::<serverd::Select>();
    #[cfg(target_os = "linux")]
    check_writes::<serverd::Epoll>();
    #[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
    check_writes::<serverd::Kqueue>();
}

/// When many members join in one turn, each member gets one notice rather than one per arrival.
#[test]
fn simultaneous_arrivals_are_announced_in_one_line() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let mut event_loop =
        EventLoop::<serverd::Select, _>::with_limits(timeouts(), LoopLimits::default(), Chat::new(Bounds::default()))
            .expect("a loop");
    event_loop.listen(listener).expect("the listener is added");
    let mut first = Client::new(address);
    while event_loop.connections() == 0 {
        event_loop.turn().expect("a turn");
    }
    assert!(first.line().starts_with("* Welcome, guest1!"));
    let crowd: Vec<Client> = (0..40).map(|_| Client::new(address)).collect();
    while event_loop.connections() < 41 {
        event_loop.turn().expect("a turn");
    }
    let notice = first.line();
    assert!(notice.starts_with("* guest2, guest3, ") && notice.ends_with(" and 20 more joined"), "{notice}");
    drop(crowd);
}

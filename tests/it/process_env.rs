//! The process and its environment: signals, file descriptors, ports.
#![cfg(target_os = "linux")]

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, PipeWriter, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{Client, accepted, program, retry, wait_for};
use crate::process::{Running, backends, run, serverd};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// Starts the server from a shell script, after the commands in `preparation`.
fn start_after(preparation: &str, arguments: &str) -> Running {
    let server = program(env!("CARGO_BIN_EXE_serverd"));
    let words: Vec<&str> =
        [server.get_program()].into_iter().chain(server.get_args()).filter_map(|word| word.to_str()).collect();
    let script = format!("{preparation}; exec {} {arguments}", words.join(" "));
    let mut command = Command::new("sh");
    command.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Running::spawn(&mut command)
}

/// Sends a request and checks the response.
fn request(client: &mut Client) {
    client.send(GET);
    assert_eq!(client.response().status, 200);
}

/// Returns the CPU time that the server has used, in clock ticks (1/100 s).
fn cpu_ticks(server: &Running) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.child.id())).expect("the process is running");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("a name in parentheses").1.split(' ').collect();
    fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum()
}

fn wait_until_stopped(server: &Running) {
    let status =
        || std::fs::read_to_string(format!("/proc/{}/stat", server.child.id())).expect("the process is running");
    wait_for("the server is not stopped", || status().contains(") T "));
}

#[test]
fn a_hangup_signal_does_not_stop_the_server() {
    for backend in backends() {
        let server = Running::start(&["--port", "0", "--backend", backend]);
        let mut client = server.connect();
        request(&mut client);
        for _ in 0..3 {
            server.signal("HUP");
        }
        request(&mut client);
        server.signal("TERM");
        assert_eq!(server.wait().0, Some(0));
    }
}

#[test]
fn a_second_signal_of_another_kind_exits_too_and_determines_the_exit_code() {
    let (server, _stuck) = Running::start_draining();
    server.signal("HUP");
    server.signal("INT");
    assert_eq!(server.wait().0, Some(128 + 2));
}

#[test]
fn connections_survive_a_stopped_and_continued_process() {
    for backend in backends() {
        let server = Running::start(&["--port", "0", "--backend", backend, "--workers", "2"]);
        let mut client = server.connect();
        request(&mut client);
        server.signal("STOP");
        wait_until_stopped(&server);
        client.send(GET);
        let mut new_client = server.connect();
        new_client.send(GET);
        assert_eq!(client.line_within(Duration::from_millis(50)), None, "a stopped server responds");
        server.signal("CONT");
        assert_eq!(client.response().status, 200);
        assert_eq!(new_client.response().status, 200);
        server.signal("TERM");
        assert_eq!(server.wait().0, Some(0));
    }
}

#[test]
fn writing_to_a_reset_connection_does_not_kill_the_server() {
    let server = start_after("trap '' HUP", "--port 0 --max-body 16MiB");
    for _ in 0..20 {
        let mut client = server.connect();
        let _ = client.socket.write_all(GET.repeat(2000).as_bytes());
        client.reset();
    }
    request(&mut server.connect());
    server.signal("TERM");
    assert_eq!(server.wait().0, Some(0));
}

#[test]
fn closed_standard_descriptors_are_not_reused_for_sockets() {
    for closed in ["<&-", "2>&-", "<&- 2>&-"] {
        let server = start_after(&format!("exec {closed}"), "--port 0 -v");
        let mut client = server.connect();
        request(&mut client);
        for descriptor in 0..3 {
            let link = std::fs::read_link(format!("/proc/{}/fd/{descriptor}", server.child.id()));
            let target = link.expect("open").to_string_lossy().into_owned();
            assert!(!target.starts_with("socket:") && !target.contains("anon_inode"), "{descriptor} is {target}");
        }
        drop(client);
        server.signal("TERM");
        assert_eq!(server.wait().0, Some(0), "{closed}");
    }
}

#[test]
fn a_second_server_on_the_same_port_fails_to_start() {
    for (first, second) in [("1", "1"), ("2", "1"), ("1", "2"), ("2", "2")] {
        let server = Running::start(&["--port", "0", "--workers", first]);
        let port = server.address().rsplit_once(':').expect("a port").1.to_owned();
        let (code, text) = run(&["--port", &port, "--workers", second]);
        assert_eq!(code, Some(1), "{first} and {second} workers");
        assert_eq!(
            text,
            format!(
                "serverd: cannot listen on 127.0.0.1:{port}: the port is in use; stop the process using it or \
                 choose another with --port\n"
            )
        );
        request(&mut server.connect());
    }
}

#[test]
fn the_soft_file_descriptor_limit_is_raised_to_the_hard_limit() {
    let server = start_after("ulimit -S -n 40", "--port 0");
    let mut clients: Vec<Client> = (0..100).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(request);
    clients.iter_mut().for_each(request);
}

#[test]
fn the_default_connection_limit_fits_the_file_descriptor_limit() {
    for workers in ["1", "2"] {
        let server = start_after("ulimit -n 60", &format!("--port 0 --workers {workers}"));
        let mut clients: Vec<Client> = (0..30).map(|_| server.connect()).collect();
        for client in &mut clients {
            request(client);
            // An idle connection would be closed for a new one.
            client.send(GET.trim_end());
        }
        let mut waiting: Vec<Client> = (0..30).map(|_| server.connect()).collect();
        for client in &mut waiting {
            client.send(GET);
        }
        let line = waiting[29].line_within(Duration::from_millis(100));
        assert_eq!(line, None, "60 connections with 60 descriptors");
        // The waiting clients are served as others disconnect.
        drop(clients);
        for mut client in waiting {
            assert_eq!(client.response().status, 200);
        }
    }
}

#[test]
fn the_connection_limit_applies_to_all_workers_together() {
    for backend in backends() {
        let server = Running::start(&["--port", "0", "--backend", backend, "--workers", "3", "--max-connections", "4"]);
        let mut accepted: Vec<Client> = (0..4).map(|_| server.connect()).collect();
        for client in &mut accepted {
            request(client);
            // An idle connection would be closed for a new one.
            client.send(GET.trim_end());
        }
        let mut waiting: Vec<Client> = (0..8).map(|_| server.connect()).collect();
        for client in &mut waiting {
            client.send(GET);
        }
        for client in &mut waiting {
            assert_eq!(client.line_within(Duration::from_millis(30)), None, "accepted beyond the limit");
        }
        for client in &mut accepted {
            client.send(format!("\r\n\r\n{}", GET.trim_end()));
            assert_eq!(client.response().status, 200);
        }
        drop(accepted);
        // The kernel chooses the order; each client disconnects once it has been served.
        let responses: Vec<_> =
            waiting.into_iter().map(|mut client| std::thread::spawn(move || client.response().status)).collect();
        for response in responses {
            assert_eq!(response.join().expect("no panic"), 200);
        }
    }
}

#[test]
fn connections_of_one_address_are_limited_for_every_command_and_all_workers_together() {
    let public = tempfile::TempDir::new().expect("a directory");
    let public = public.path().to_str().expect("UTF-8");
    let commands = [&["http"][..], &["whoami"], &["files", public], &["echo"], &["chat"]];
    for command in commands {
        let text = if matches!(command[0], "echo" | "chat") { "hello\n" } else { GET };
        for (backend, balance) in
            backends().iter().flat_map(|backend| [(*backend, "auto"), (backend, "least-connections")])
        {
            let options = ["-p", "0", "-b", backend, "--workers", "3", "--balance", balance];
            let options = [command, &options[..], &["--max-connections-per-address", "4"]].concat();
            let server = Running::start(&options);
            let connect = || accepted(server.socket_addr(), text);
            let mut clients: Vec<Client> = (0..4).map(|_| connect().expect("accepted")).collect();
            assert!((0..3).all(|_| connect().is_none()), "{options:?}");
            for _ in 0..4 {
                clients.remove(0);
                let still_counts = || format!("{options:?}: a closed connection still counts");
                clients.push(retry(|| connect().ok_or_else(still_counts)));
                assert!(connect().is_none(), "{options:?}");
            }
        }
    }
}

#[test]
fn refused_connections_of_an_address_are_logged_once_a_second() {
    let server = Running::start(&["-p", "0", "--max-connections-per-address", "1"]);
    let open = accepted(server.socket_addr(), GET).expect("accepted");
    let start = Instant::now();
    for _ in 0..50 {
        assert!(accepted(server.socket_addr(), GET).is_none());
    }
    let seconds = start.elapsed().as_secs();
    drop(open);
    let text = server.stop_and_log();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("refused a connection of 127.0.0.1")).collect();
    assert!((1..=seconds + 1).contains(&(lines.len() as u64)), "{text}");
    assert!(lines[0].ends_with("1 refused so far (see --max-connections-per-address)"), "{text}");
}

/// Returns a writer for the same pipe that does not block. The flag must not be set for `pipe` itself, because the
/// server inherits that.
fn non_blocking(pipe: &PipeWriter) -> File {
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).expect("a small number");
    let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    OpenOptions::new().write(true).custom_flags(flags).open(path).expect("the pipe is open")
}

/// Waits for the server to exit with code 0.
fn expect_exit(mut server: Running) {
    let status = retry(|| server.child.try_wait().expect("the child exists").ok_or("the server does not exit"));
    assert_eq!(status.code(), Some(0));
}

#[test]
fn an_output_that_is_never_read_does_not_stop_the_server() {
    for backend in backends() {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut full = non_blocking(&writer);
        while full.write(&[b'\n'; 4096]).is_ok() {}
        let options = ["-p", "0", "-b", backend, "-vv", "--access-log", "-", "--max-body", "1KiB"];
        let mut command = serverd(&options);
        let server = Running::spawn(command.stderr(writer.try_clone().expect("a descriptor")));
        for _ in 0..20 {
            let mut client = server.connect();
            client.send("BAD\r\n\r\n");
            assert_eq!(client.response().status, 400);
        }
        // Fills the pipe of the access log, too.
        let mut client = server.connect();
        for _ in 0..400 {
            client.send(format!("GET / HTTP/1.1\r\nHost: x\r\nReferer: {}\r\n\r\n", "r".repeat(1000)));
            assert_eq!(client.response().status, 200);
        }
        server.signal("TERM");
        let start = Instant::now();
        expect_exit(server);
        // One second for all outputs, and the shutdown; allow for a busy machine.
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        drop(reader);
    }
}

#[test]
fn a_missing_page_that_each_request_needs_is_logged_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let page = directory.path().join("index.html");
    std::fs::write(&page, "page").expect("writable");
    let path = directory.path().display().to_string();
    let server = Running::start(&["files", &path, "-p", "0", "--spa", "index.html", "--file-cache", "0"]);
    std::fs::remove_file(&page).expect("it exists");
    let mut client = server.connect();
    for _ in 0..100 {
        client.send("GET /page HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\n\r\n");
        assert_eq!(client.response().status, 404);
    }
    let text = server.stop_and_log();
    let count = text.matches("cannot read the --spa page").count();
    assert_eq!(count, 1, "{text}");
}

#[test]
fn ctrl_c_at_a_terminal_reports_the_connections_that_are_being_finished() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    for (busy, report) in [(2, Some("finishing 2 connections; press Ctrl-C again")), (0, None)] {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("a pseudo-terminal");
        let name = ptsname(&master, Vec::new()).expect("a name").into_string().expect("text");
        let terminal = OpenOptions::new().read(true).write(true).open(name).expect("a pseudo-terminal");
        let server = Running::spawn(serverd(&["-p", "0"]).stderr(terminal));
        let mut clients: Vec<Client> = (0..busy).map(|_| server.connect_in_flight()).collect();
        let mut idle = server.connect();
        request(&mut idle);
        server.signal("INT");
        idle.expect_close();
        drop(idle);
        let mut lines = BufReader::new(File::from(master)).lines().map_while(Result::ok);
        if let Some(report) = report {
            assert!(lines.any(|line| line.contains(report)), "not reported");
        }
        for client in &mut clients {
            client.send("ab");
            assert_eq!(client.response().status, 200);
        }
        expect_exit(server);
        // The terminal is at its end once the server has exited.
        assert!(lines.all(|line| !line.contains("finishing")));
    }
}

#[test]
fn a_directory_that_cannot_be_read_is_refused_at_start() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let directory = tempfile::tempdir().expect("a directory");
    let set_mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("the owner may");
    };
    set_mode(directory.path(), 0o755);
    let site = directory.path().join("site");
    std::fs::create_dir(&site).expect("writable");
    std::fs::write(site.join("a.txt"), "a").expect("writable");
    let binary = directory.path().join("serverd");
    std::fs::copy(env!("CARGO_BIN_EXE_serverd"), &binary).expect("writable");
    let start = |options: &[&str]| {
        let mut command = program(&binary);
        command.arg("files").arg(&site).args(["-p", "0"]).args(options);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Root may read everything.
        if rustix::process::geteuid().is_root() {
            command.uid(65_534).gid(65_534);
        }
        command
    };
    // The permissions of the server's user, which is not the owner if the tests run as root.
    let mode_for_server = |bits: u32| if rustix::process::geteuid().is_root() { 0o700 | bits } else { bits << 6 };
    for (bits, options) in [(0, &[][..]), (1, &[]), (4, &[]), (0, &["--no-listing"])] {
        set_mode(&site, mode_for_server(bits));
        // A process that another test forks may still have the copy open for writing.
        let output = retry(|| match start(options).output() {
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => Err(error),
            output => Ok(output.expect("the binary runs")),
        });
        let text = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(1), "{bits} {options:?}: {text}");
        assert!(text.contains("cannot serve") && text.contains("specify a readable directory"), "{text}");
    }
    // Files in a directory that cannot be listed can be served.
    set_mode(&site, mode_for_server(1));
    let server = Running::spawn(&mut start(&["--no-listing"]));
    let mut client = server.connect();
    client.send("GET /a.txt HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.response().text(), "a");
    set_mode(&site, 0o755);
}

#[test]
fn running_out_of_file_descriptors_pauses_accepting_until_some_are_free() {
    for backend in backends() {
        let server = start_after("ulimit -n 46", &format!("--port 0 --backend {backend} --max-connections 1000"));
        // Idle connections would be closed for new ones, so each begins a request at once.
        let connect = |bytes: &str| {
            let mut client = server.connect();
            client.send(bytes);
            client
        };
        let mut held: Vec<Client> = (0..20).map(|_| connect(&format!("{GET}{}", GET.trim_end()))).collect();
        let mut waiting: Vec<Client> = (0..40).map(|_| connect(GET.trim_end())).collect();
        let before = (Instant::now(), cpu_ticks(&server));
        while before.0.elapsed() < Duration::from_secs(2) {
            for client in &mut held {
                assert_eq!(client.response().status, 200);
                client.send(format!("\r\n\r\n{}", GET.trim_end()));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let used = cpu_ticks(&server) - before.1;
        assert!(used <= 20, "{backend} used {used} ticks (1/100 s) of CPU time in 2 s without descriptors");
        held.clear();
        for mut client in waiting.drain(..) {
            client.send("\r\n\r\n");
            assert_eq!(client.response().status, 200);
        }
        let text = server.stop_and_log();
        let warnings = text.matches("cannot accept").count();
        let seconds = usize::try_from(before.0.elapsed().as_secs()).expect("small");
        assert!((1..=seconds + 2).contains(&warnings), "{warnings} in {seconds} s: {text}");
        assert!(text.contains("raise the limit"), "{text}");
    }
}

#[test]
fn out_of_file_descriptors_idle_connections_give_way() {
    for backend in backends() {
        for workers in ["--workers 1", "--workers 2 --balance least-connections"] {
            let arguments = format!("--port 0 --backend {backend} --max-connections 1000 {workers}");
            let server = start_after("ulimit -n 60", &arguments);
            let mut clients = Vec::new();
            for number in 0..150 {
                let mut client = server.connect();
                let start = Instant::now();
                request(&mut client);
                assert!(start.elapsed() < Duration::from_secs(2), "{backend}, client {number}: {:?}", start.elapsed());
                clients.push(client);
            }
        }
    }
}

#[test]
fn a_burst_of_clients_waits_in_the_accept_queue_and_is_served() {
    for backend in backends() {
        let server = Running::start(&["--port", "0", "--backend", backend]);
        server.signal("STOP");
        wait_until_stopped(&server);
        let mut clients: Vec<Client> = (0..500).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.send(GET);
        }
        server.signal("CONT");
        for client in &mut clients {
            assert_eq!(client.response().status, 200);
        }
    }
}

#[test]
fn select_serves_more_than_a_thousand_clients_and_suggests_epoll_once() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("the soft limit can be raised");
    if maximum.is_some_and(|maximum| maximum < 3000) {
        return println!("skipped: no more than {maximum:?} descriptors here");
    }
    let server = Running::start(&["--port", "0", "--backend", "select"]);
    let connect = || {
        let mut client = server.connect();
        request(&mut client);
        client
    };
    let mut clients: Vec<Client> = (0..1200).map(|_| connect()).collect();
    clients.iter_mut().for_each(request);
    drop(clients);
    let again: Vec<Client> = (0..1200).map(|_| connect()).collect();
    drop(again);
    let text = server.stop_and_log();
    assert_eq!(text.matches("epoll and kqueue scale better").count(), 1, "{text}");
}

#[test]
fn usage_errors_exit_with_2_and_start_up_errors_with_1() {
    for (arguments, code, hint) in [
        (&["--max-connections", "0"][..], 2, "--help"),
        (&["--drain-timeout", "5"], 2, "missing unit; use 5s"),
        (&["--no-such-option"], 2, "--help"),
        (&["--host", "192.0.2.1", "--port", "0"], 1, "192.0.2.1"),
    ] {
        let output = serverd(arguments).output().expect("the binary runs");
        let text = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(hint), "{text}");
    }
}

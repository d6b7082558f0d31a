//! Logs that other services receive: syslog, and the journal of systemd.

use std::os::unix::net::UnixDatagram;

use crate::harness::WAIT_MAX;
use crate::process::{Running, backends, run};

#[test]
fn the_access_log_is_sent_to_syslog() {
    for backend in backends() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        let service = UnixDatagram::bind(&path).expect("a socket");
        service.set_read_timeout(Some(WAIT_MAX)).expect("the socket is open");
        let target = format!("syslog:unix:{}", path.display());
        let server = Running::start(&["--port", "0", "--backend", backend, "--access-log", &target]);
        let mut client = server.connect();
        for request in ["/a", "/b"] {
            client.send(format!("GET {request} HTTP/1.1\r\nHost: x\r\n\r\n")).response();
            let mut buffer = [0; 1024];
            let length = service.recv(&mut buffer).expect("a message");
            let message = String::from_utf8_lossy(&buffer[..length]);
            let words: Vec<&str> = message.splitn(8, ' ').collect();
            let [priority, time, _host, program, process, id, data, line] = words[..] else { panic!("{message}") };
            assert_eq!((priority, program, id, data), ("<190>1", "serverd", "access", "-"), "{message}");
            assert!(time.len() == 24 && process.parse::<u32>().is_ok(), "{message}");
            assert!(line.starts_with("127.0.0.1 - - [") && line.contains(&format!("\"GET {request} ")), "{message}");
        }
    }
}

#[test]
fn a_syslog_service_that_cannot_be_reached_is_reported() {
    let (code, stderr) = run(&["--port", "0", "--access-log", "syslog:unix:/no/such/socket"]);
    assert!(code == Some(1) && stderr.contains("to syslog at /no/such/socket: "), "{stderr}");
    let (code, stderr) = run(&["--access-log", "syslog:tcp:127.0.0.1:514"]);
    assert!(code == Some(2) && stderr.contains("syslog:udp:HOST:PORT"), "{stderr}");
}

#[cfg(target_os = "linux")]
#[test]
fn messages_have_a_priority_if_standard_error_is_the_journal() {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::MetadataExt;

    for is_journal in [true, false] {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let file = std::fs::File::from(OwnedFd::from(reader.try_clone().expect("a descriptor")));
        let metadata = file.metadata().expect("the pipe is open");
        let stream = format!("{}:{}", metadata.dev(), metadata.ino() + u64::from(!is_journal));
        let mut command = crate::process::serverd(&["--port", "0", "-vv"]);
        let server = Running::spawn(command.env("JOURNAL_STREAM", stream).stderr(writer));
        drop(command);
        server.connect().send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").response();
        server.signal("TERM");
        assert_eq!(server.wait().0, Some(0));
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("UTF-8");
        let priorities = ["<4>serverd::", "<6>serverd::", "<7>serverd::"];
        let has_priority = |line: &str| priorities.iter().any(|priority| line.starts_with(priority));
        let is_closed = |line: &str| line.starts_with("<7>serverd::") && line.contains("closed");
        assert_eq!(text.lines().all(has_priority), is_journal, "{text}");
        assert_eq!(text.lines().any(is_closed), is_journal, "{text}");
        assert!(text.contains(" of 127.0.0.1:"), "{text}");
    }
}

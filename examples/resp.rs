//! A small server with the protocol of Redis (RESP): PING, SET, GET and DEL, with pipelining.
//!
//!     cargo run --release --example resp
//!     redis-cli -p 8888 set greeting hello
//!     redis-benchmark -p 8888 -t set,get -P 16 -q

use std::collections::HashMap;
use std::net::TcpListener;

use serverd::{DefaultLoop, Flow, Output, Phase, Wire};

const ARGUMENTS_MAX: usize = 16;
const ARGUMENT_BYTES_MAX: usize = 64 * 1024;
const KEYS_MAX: usize = 10_000;

/// Output after which other connections are served.
const BATCH_BYTES: usize = 64 * 1024;

/// Maximum length of a line with a number.
const LINE_MAX: usize = 16;

type Store = HashMap<Vec<u8>, Vec<u8>>;

fn execute(store: &mut Store, command: &[&[u8]], output: &mut Output) {
    let Some((name, arguments)) = command.split_first() else { return };
    match (name.to_ascii_uppercase().as_slice(), arguments) {
        (b"PING", []) => output.extend(b"+PONG\r\n"),
        (b"PING", [text]) => write_bulk(output, text),
        (b"GET", [key]) => match store.get(*key) {
            Some(value) => write_bulk(output, value),
            None => output.extend(b"$-1\r\n"),
        },
        (b"SET", [key, value]) if store.len() < KEYS_MAX || store.contains_key(*key) => {
            store.insert(key.to_vec(), value.to_vec());
            output.extend(b"+OK\r\n");
        }
        (b"SET", [_, _]) => output.extend(b"-OOM too many keys\r\n"),
        (b"DEL", [_, ..]) => {
            let count = arguments.iter().filter(|key| store.remove(**key).is_some()).count();
            output.extend(format!(":{count}\r\n").as_bytes());
        }
        (b"PING" | b"GET" | b"SET" | b"DEL", _) => output.extend(b"-ERR wrong number of arguments\r\n"),
        _ => output.extend(b"-ERR unknown command\r\n"),
    }
}

fn write_bulk(output: &mut Output, bytes: &[u8]) {
    output.extend(format!("${}\r\n", bytes.len()).as_bytes());
    output.extend(bytes);
    output.extend(b"\r\n");
}

/// A value and the rest of the input, or `None` if the input is incomplete; an error if it is malformed.
type Parsed<'a, T> = Result<Option<(T, &'a [u8])>, &'static str>;

/// Reads a line such as `*3` or `$5`. Returns the number.
fn parse_number(input: &[u8], kind: u8, max: usize) -> Parsed<'_, usize> {
    let Some(&first) = input.first() else { return Ok(None) };
    if first != kind {
        return Err("expected an array of bulk strings");
    }
    let Some(end) = input.iter().take(LINE_MAX).position(|&byte| byte == b'\n') else {
        return if input.len() < LINE_MAX { Ok(None) } else { Err("invalid length") };
    };
    let digits = input[1..end].strip_suffix(b"\r").and_then(|digits| std::str::from_utf8(digits).ok());
    let number = digits.and_then(|digits| digits.parse().ok()).filter(|&number| number <= max);
    Ok(Some((number.ok_or("invalid length")?, &input[end + 1..])))
}

/// Returns the arguments of a command.
fn parse_command(input: &[u8]) -> Parsed<'_, Vec<&[u8]>> {
    let Some((count, mut rest)) = parse_number(input, b'*', ARGUMENTS_MAX)? else { return Ok(None) };
    let mut arguments = Vec::with_capacity(count);
    for _ in 0..count {
        let Some((length, after)) = parse_number(rest, b'$', ARGUMENT_BYTES_MAX)? else { return Ok(None) };
        let Some((argument, after)) = after.split_at_checked(length + 2) else { return Ok(None) };
        arguments.push(argument.strip_suffix(b"\r\n").ok_or("expected CRLF")?);
        rest = after;
    }
    Ok(Some((arguments, rest)))
}

/// Executes the commands that are complete.
fn serve(store: &mut Store, wire: &mut Wire<'_, ()>) -> Flow {
    loop {
        match parse_command(wire.input()) {
            Ok(Some((arguments, rest))) => {
                let length = wire.input().len() - rest.len();
                execute(store, &arguments, wire.output());
                wire.consume(length);
                wire.restart_timer();
            }
            Ok(None) if wire.ended() => return Flow::Close,
            Ok(None) => return Flow::Read(Phase::Idle),
            Err(problem) => {
                wire.output().extend(format!("-ERR Protocol error: {problem}\r\n").as_bytes());
                return Flow::Refuse;
            }
        }
        if wire.output().len() >= BATCH_BYTES {
            return Flow::Yield(Phase::Idle);
        }
    }
}

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8888".into());
    let listener = TcpListener::bind(address)?;
    println!("listening on tcp://{}", listener.local_addr()?);
    let mut store = Store::new();
    DefaultLoop::new(listener, None, move |wire: &mut Wire<'_, ()>| serve(&mut store, wire))?.run()
}

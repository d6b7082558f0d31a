//! `serverd connect`: standard input to a socket, the socket to standard output.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use crate::dial::{Authority, Deadline, DialError};

/// What one read takes.
const BUFFER_BYTES: usize = 128 * 1024;

/// Whom to talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// The server.
    pub authority: Authority,
    /// What connecting may take; once connected nothing is limited.
    pub wait: Duration,
}

/// Why a conversation failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectError {
    /// Not reached, or lost.
    Dial(DialError),
    /// Standard output takes no more.
    Output(io::Error),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Dial(error) => write!(formatter, "{error}"),
            ConnectError::Output(error) => write!(formatter, "cannot write to standard output: {error}"),
        }
    }
}

impl std::error::Error for ConnectError {}

impl Connect {
    /// Talks until the server closes. The end of `input` is told to the server, which may still answer. Input is read
    /// in a thread of its own, because no system call waits for a socket and a pipe on every system; it is left
    /// behind when the server closes first.
    ///
    /// # Errors
    /// Where the server is not reached or goes away with a reset, or `output` takes no more. That nobody reads
    /// `output` any more is an end, not an error.
    pub fn run(&self, input: impl Read + Send + 'static, output: &mut impl Write) -> Result<(), ConnectError> {
        let stream = self.authority.dial(Deadline::after(self.wait)).map_err(ConnectError::Dial)?;
        // What a person types is sent as it is typed.
        let writer = stream.set_nodelay(true).and_then(|()| stream.try_clone()).map_err(lost)?;
        thread::Builder::new().name("input".into()).spawn(move || send(input, writer)).map_err(lost)?;
        receive(stream, output)
    }
}

fn lost(error: io::Error) -> ConnectError {
    ConnectError::Dial(DialError::Io(error))
}

/// Sends all of the input, then says its end. An error here shows on the reading side too, which tells it.
fn send(mut input: impl Read, mut stream: TcpStream) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                if stream.write_all(&buffer[..count]).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                log::error!("cannot read standard input: {error}");
                break;
            }
        }
    }
    // Fails only when the connection is gone.
    let _ = stream.shutdown(Shutdown::Write);
}

fn receive(mut stream: TcpStream, output: &mut impl Write) -> Result<(), ConnectError> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(lost(error)),
        };
        match output.write_all(&buffer[..count]).and_then(|()| output.flush()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(ConnectError::Output(error)),
        }
    }
}

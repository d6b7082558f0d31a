//! `serverd connect`: copies standard input to a TCP connection, and the data received from it to standard output.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use super::dial::{Authority, Deadline, DialError};

/// The size of the buffer for each direction.
const BUFFER_BYTES: usize = 128 * 1024;

/// Options of `serverd connect`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// The server to connect to.
    pub authority: Authority,
    /// The timeout for establishing the connection. There is no timeout afterwards.
    pub timeout: Duration,
}

/// The reason a connection failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectError {
    /// The connection could not be established, or was lost.
    Dial(DialError),
    /// Writing to standard output failed.
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
    /// Copies data in both directions until the server closes the connection. At the end of `input`, shuts down the
    /// sending side (half-close) and continues to receive.
    ///
    /// Reads input on a separate thread, because not every platform can wait for a socket and a pipe at the same time.
    /// If the server closes first, this thread is abandoned.
    ///
    /// # Errors
    /// Returns an error if the connection cannot be established or is reset, or if writing to `output` fails. A closed
    /// output pipe (`BrokenPipe`) is not an error.
    pub fn run(&self, input: impl Read + Send + 'static, output: &mut impl Write) -> Result<(), ConnectError> {
        let stream = self.authority.dial(Deadline::after(self.timeout)).map_err(ConnectError::Dial)?;
        // Disable Nagle's algorithm, so that typed lines are sent immediately.
        let writer = stream.set_nodelay(true).and_then(|()| stream.try_clone()).map_err(connection_error)?;
        thread::Builder::new().name("input".into()).spawn(move || send(input, writer)).map_err(connection_error)?;
        receive(stream, output)
    }
}

fn connection_error(error: io::Error) -> ConnectError {
    ConnectError::Dial(DialError::Io(error))
}

/// Sends all of the input, then shuts down the sending side. Write errors are not reported here, since the receiving
/// side fails, too, and reports them.
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
    // Fails only if the connection is already closed.
    let _ = stream.shutdown(Shutdown::Write);
}

fn receive(mut stream: TcpStream, output: &mut impl Write) -> Result<(), ConnectError> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(connection_error(error)),
        };
        match output.write_all(&buffer[..count]).and_then(|()| output.flush()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(ConnectError::Output(error)),
        }
    }
}

//! The client commands of the `serverd` binary, built on [`dial`] and [`http1`](crate::http1).

use std::error::Error;
use std::io;

use self::check::Check;
use self::connect::Connect;
use self::console::Output;
use self::hash::Hash;

pub mod check;
pub mod connect;
pub mod console;
pub mod dial;
pub mod hash;

/// A client command with its options.
#[derive(Clone, Debug)]
pub enum Client {
    /// Check another server.
    Check(Check),
    /// Connect to another server.
    Connect(Connect),
    /// Hash a password for `--auth`.
    Hash(Hash),
}

impl Client {
    /// Runs the command with the standard streams of the process.
    ///
    /// # Errors
    /// Returns the error of the command, preceded by the server that it concerns.
    pub fn run(&self) -> Result<(), Box<dyn Error>> {
        match self {
            Client::Check(check) => {
                check.run(&mut Output::stdout()).map_err(|error| format!("{}: {error}", check.target))?;
            }
            Client::Connect(connect) => {
                let outcome = connect.run(io::stdin(), &mut Output::stdout());
                outcome.map_err(|error| format!("{}: {error}", connect.authority))?;
            }
            Client::Hash(hash) => hash.run(&mut io::stdout().lock())?,
        }
        Ok(())
    }
}

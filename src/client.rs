//! The client commands of the `serverd` binary, built on [`dial`] and [`http1`](crate::http1).

use std::error::Error;
use std::io::{self, BufRead, IsTerminal, Write};

use self::check::Check;
use self::connect::Connect;
use self::console::Output;

pub mod check;
pub mod connect;
pub mod console;
pub mod dial;

/// The maximum length of a password: bcrypt ignores any further bytes.
const PASSWORD_BYTES_MAX: usize = 72;

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

/// Options of `serverd hash`, which hashes a password for `serverd files --auth`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hash {
    /// The user name.
    pub name: String,
    /// The bcrypt cost: the base-2 logarithm of the number of rounds.
    pub cost: u32,
}

impl Hash {
    /// Reads a password and writes the line `NAME:HASH` to `out`. If standard input is a terminal, prompts for the
    /// password without echoing it; otherwise reads it from the first line.
    ///
    /// # Errors
    /// Returns a message for the user if the password cannot be read or is not valid, or if writing fails.
    pub fn run(&self, out: &mut impl Write) -> Result<(), String> {
        let password = if io::stdin().is_terminal() { prompt()? } else { first_line(&mut io::stdin().lock())? };
        let line = self.line(&password)?;
        out.write_all(line.as_bytes()).and_then(|()| out.flush()).map_err(|error| format!("cannot write: {error}"))
    }

    fn line(&self, password: &str) -> Result<String, String> {
        if password.is_empty() {
            return Err("no password given; type one, or pipe it in as one line".into());
        }
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(format!("the password is longer than {PASSWORD_BYTES_MAX} bytes, the limit of bcrypt"));
        }
        let hash = bcrypt::hash(password, self.cost).map_err(|error| format!("cannot hash the password: {error}"))?;
        Ok(format!("{}:{hash}\n", self.name))
    }
}

fn prompt() -> Result<String, String> {
    let read =
        |text: &str| rpassword::prompt_password(text).map_err(|error| format!("cannot read the password: {error}"));
    let password = read("Password: ")?;
    if read("Repeat password: ")? == password {
        Ok(password)
    } else {
        Err("the passwords do not match; try again".into())
    }
}

fn first_line(input: &mut impl BufRead) -> Result<String, String> {
    let mut line = String::new();
    input.read_line(&mut line).map_err(|error| format!("cannot read the password: {error}"))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hashed_password_verifies() {
        let hash = Hash { name: "alice".into(), cost: 4 };
        let line = hash.line("wonder land ").unwrap();
        let hashed = line.strip_prefix("alice:").and_then(|rest| rest.strip_suffix('\n')).unwrap();
        assert!(bcrypt::verify("wonder land ", hashed).unwrap());
        assert!(hash.line("").unwrap_err().contains("no password given"));
        assert!(hash.line(&"x".repeat(73)).unwrap_err().contains("72 bytes"));
        assert_eq!(first_line(&mut &b"a b \r\nc"[..]).unwrap(), "a b ");
    }
}

//! `serverd hash`: a password becomes a line for `serverd files --auth`.

use std::io::{self, BufRead, IsTerminal, Write};

/// What bcrypt takes into account; the rest of a longer password would count for nothing.
const PASSWORD_BYTES_MAX: usize = 72;

/// A line to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hash {
    /// Whose password it is.
    pub name: String,
    /// Rounds as a power of two.
    pub cost: u32,
}

impl Hash {
    /// Asks for the password, on the terminal without showing it, else as the first line of standard input, and writes
    /// `NAME:HASH`.
    ///
    /// # Errors
    /// One sentence that says what is wrong.
    pub fn run(&self, out: &mut impl Write) -> Result<(), String> {
        let password = if io::stdin().is_terminal() { ask()? } else { first_line(&mut io::stdin().lock())? };
        let line = self.line(&password)?;
        out.write_all(line.as_bytes()).and_then(|()| out.flush()).map_err(|error| format!("cannot write: {error}"))
    }

    fn line(&self, password: &str) -> Result<String, String> {
        if password.is_empty() {
            return Err("there is no password; type one, or pipe it in as a line".into());
        }
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(format!("the password is longer than {PASSWORD_BYTES_MAX} bytes, all that bcrypt looks at"));
        }
        let hash = bcrypt::hash(password, self.cost).map_err(|error| format!("cannot hash: {error}"))?;
        Ok(format!("{}:{hash}\n", self.name))
    }
}

fn ask() -> Result<String, String> {
    let read =
        |prompt: &str| rpassword::prompt_password(prompt).map_err(|error| format!("cannot read the password: {error}"));
    let password = read("Password: ")?;
    if read("Once more: ")? == password { Ok(password) } else { Err("the two passwords differ; try again".into()) }
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
    fn a_password_becomes_a_line_that_lets_in() {
        let hash = Hash { name: "alice".into(), cost: 4 };
        let line = hash.line("wonder land ").unwrap();
        let told = line.strip_prefix("alice:").and_then(|rest| rest.strip_suffix('\n')).unwrap();
        assert!(bcrypt::verify("wonder land ", told).unwrap());
        assert!(hash.line("").unwrap_err().contains("no password"));
        assert!(hash.line(&"x".repeat(73)).unwrap_err().contains("72 bytes"));
        assert_eq!(first_line(&mut &b"a b \r\nc"[..]).unwrap(), "a b ");
    }
}

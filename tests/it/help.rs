//! Snapshots of all help texts, in tests/help. `SERVERD_UPDATE_HELP=1 cargo test --test it help::` rewrites them.

use std::path::Path;
use std::process::Stdio;

use crate::harness::program;

const UPDATE: &str = "SERVERD_UPDATE_HELP";

/// The output of `-h` must fit on a small terminal.
const SHORT_HELP_LINES_MAX: usize = 25;

/// The terminal width at which the texts are wrapped.
const COLUMNS: usize = 100;

/// All commands; the empty string is `serverd` without a command.
const COMMANDS: [&str; 10] = ["", "http", "whoami", "files", "echo", "chat", "check", "connect", "hash", "cert"];

/// Returns the output of `serverd COMMAND FLAG`, normalized to be the same on every platform.
fn help(command: &str, flag: &str) -> String {
    help_with(command, flag, &[])
}

/// Returns the output of `serverd COMMAND FLAG` with more environment variables.
fn help_with(command: &str, flag: &str, variables: &[(&str, &str)]) -> String {
    let mut binary = program(env!("CARGO_BIN_EXE_serverd"));
    binary.args((!command.is_empty()).then_some(command)).arg(flag);
    // The text must not depend on the terminal.
    binary.env("COLUMNS", COLUMNS.to_string()).env("NO_COLOR", "1").env_remove("CLICOLOR_FORCE");
    binary.envs(variables.iter().copied());
    let output = binary.stdin(Stdio::null()).stderr(Stdio::piped()).output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(0), "serverd {command} {flag}: {output:?}");
    let text = String::from_utf8(output.stdout).expect("valid UTF-8");
    let text = text.replace("\r\n", "\n").replace("serverd.exe", "serverd");
    // clap pads empty lines.
    text.lines().flat_map(|line| [line.trim_end(), "\n"]).collect()
}

#[test]
fn help_texts_match_their_snapshots() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/help");
    let update = std::env::var_os(UPDATE).is_some_and(|value| !value.is_empty());
    for command in COMMANDS {
        for (flag, suffix) in [("-h", "short"), ("--help", "long")] {
            let name = if command.is_empty() { "serverd" } else { command };
            let path = directory.join(format!("{name}.{suffix}.txt"));
            let text = help(command, flag);
            if update {
                std::fs::write(&path, &text).expect("tests/help is writable");
                continue;
            }
            let snapshot = std::fs::read_to_string(&path).unwrap_or_default().replace("\r\n", "\n");
            assert!(
                text == snapshot,
                "the output of serverd {command} {flag} differs from {}. If this is intended, run:\n\
                 {UPDATE}=1 cargo test --test it help::\n\n{text}",
                path.display()
            );
        }
    }
}

#[test]
fn short_help_fits_on_a_small_terminal() {
    for command in COMMANDS {
        let text = help(command, "-h");
        assert!(text.lines().count() <= SHORT_HELP_LINES_MAX, "serverd {command} -h is too long:\n{text}");
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "serverd {command} -h is too wide:\n{text}");
    }
}

#[test]
fn help_does_not_depend_on_the_environment() {
    let variables = [("SERVERD_PORT", "80"), ("SERVERD_QUIET", "wrong"), ("SERVERD_SPREAD", "kernel")];
    assert_eq!(help_with("files", "--help", &variables), help("files", "--help"));
}

//! Passes the input of the cases in tests/conformance to `http1` without sockets: all at once, byte by byte, and split
//! at random. The events must not depend on how the input is split, and must agree with the outcomes the case accepts.
//! Also checks that the clause table in docs/CONFORMANCE.md is complete and refers to existing tests.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serverd::http1::{Framing, Limits};

use crate::feed_input::{feed, random_splits};

#[derive(Deserialize)]
struct Cases {
    case: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    id: String,
    send: Send,
    accept: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Send {
    Text(String),
    Steps(Vec<Step>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Step {
    Text(String),
    Repeat {
        repeat: String,
        times: usize,
    },
    /// A pause or another step that has no meaning without a socket.
    Other(#[allow(dead_code)] toml::Table),
}

/// Decodes a string of a case: one character is one byte.
fn decode(text: &str) -> Vec<u8> {
    text.chars().map(|character| u8::try_from(u32::from(character)).expect("one byte")).collect()
}

impl Case {
    fn input(&self) -> Vec<u8> {
        match &self.send {
            Send::Text(text) => decode(text),
            Send::Steps(steps) => steps
                .iter()
                .flat_map(|step| match step {
                    Step::Text(text) => decode(text),
                    Step::Repeat { repeat, times } => decode(repeat).repeat(*times),
                    Step::Other(_) => Vec::new(),
                })
                .collect(),
        }
    }
}

fn cases() -> Vec<Case> {
    let files = [include_str!("../conformance/cases.toml"), include_str!("../conformance/clauses.toml")];
    files.iter().flat_map(|text| toml::from_str::<Cases>(text).expect("a case file").case).collect()
}

#[test]
fn the_same_bytes_give_the_same_events_however_they_are_split() {
    let limits = Limits::default();
    for case in cases() {
        let input = case.input();
        let unsplit = feed(&input, &limits, false, &mut || usize::MAX >> 1);
        // Long inputs only test limits: random splits suffice, and one call per byte would be slow.
        if input.len() < 20_000 {
            assert_eq!(feed(&input, &limits, true, &mut || 1), unsplit, "{}: byte by byte", case.id);
        }
        for seed in 1..=20 {
            assert_eq!(
                feed(&input, &limits, seed % 2 == 0, &mut random_splits(seed)),
                unsplit,
                "{}: seed {seed}",
                case.id
            );
        }
    }
}

/// Every error the parser reports must be an outcome the case accepts. Cases without a parse error are skipped: those
/// that expect an error status are rejected by the HTTP server, not the parser.
#[test]
fn parse_errors_match_the_expected_outcomes() {
    let last_statuses = |accept: &str| -> Vec<String> {
        let tokens: Vec<&str> = accept.split(' ').collect();
        let last = tokens[..tokens.len() - 1].last().copied().unwrap_or("");
        last.split('|').map(str::to_owned).collect()
    };
    let mut errors = 0;
    for case in cases() {
        let seen = feed(&case.input(), &Limits::default(), false, &mut || usize::MAX >> 1);
        let Some(error) = seen.error else { continue };
        errors += 1;
        // A server ignores the input after a request with `Connection: close`, but `feed` passes it to the parser.
        let with_body = seen.heads.iter().filter(|(_, head)| head.framing() != Framing::None).count();
        if seen.ends == with_body && seen.heads.last().is_some_and(|(_, head)| !head.is_persistent()) {
            continue;
        }
        let status = error.status().as_u16().to_string();
        let matches = |accepted: &str| accepted == status || (accepted == "4xx" && status.starts_with('4'));
        let is_accepted = case.accept.iter().any(|accept| {
            accept.split(' ').next() == Some("close") || last_statuses(accept).iter().any(|last| matches(last))
        });
        assert!(is_accepted, "{}: {error:?} is not among {:?}", case.id, case.accept);
    }
    assert!(errors > 400, "only {errors} errors found; were the cases loaded?");
}

/// Returns the names in the last column of the clause table.
fn names_in_the_table() -> Vec<&'static str> {
    let rows = include_str!("../../docs/CONFORMANCE.md").lines().filter(|line| line.starts_with("| "));
    let last = rows.filter_map(|row| row.trim_end_matches([' ', '|']).rsplit_once(" | "));
    // Every second part is a name enclosed in backticks.
    last.flat_map(|(_, names)| names.split('`').skip(1).step_by(2)).collect()
}

/// Appends the paths of all files with this name below a directory to `found`.
fn files_named(directory: &Path, name: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory of the project") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files_named(&path, name, found);
        } else if path.file_name().is_some_and(|file_name| file_name == name) {
            found.push(path);
        }
    }
}

fn test_exists(module: &str, test: &str) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for directory in ["src", "tests/it"] {
        files_named(&root.join(directory), &format!("{module}.rs"), &mut files);
    }
    let signatures = [format!("fn {test}("), format!("fn {test}<")];
    files.iter().any(|file| {
        let source = std::fs::read_to_string(file).expect("a source file");
        signatures.iter().any(|signature| source.contains(signature))
    })
}

#[test]
fn the_clause_table_names_existing_tests_and_every_case() {
    let cases = cases();
    let mut covered = HashSet::new();
    let names = names_in_the_table();
    assert!(names.len() > 200, "only {} names found; was the table parsed?", names.len());
    for name in names {
        if let Some((module, test)) = name.split_once("::") {
            assert!(test_exists(module, test), "no test {name}");
            continue;
        }
        let is_match = |id: &str| name.strip_suffix('*').map_or(id == name, |prefix| id.starts_with(prefix));
        let matching: Vec<_> = cases.iter().map(|case| &case.id).filter(|id| is_match(id)).collect();
        assert!(!matching.is_empty(), "no case {name}");
        covered.extend(matching);
    }
    let uncovered: Vec<_> = cases.iter().map(|case| &case.id).filter(|id| !covered.contains(id)).collect();
    assert!(uncovered.is_empty(), "cases without a clause: {uncovered:?}");
}

//! The cases of tests/conformance, run through `http1` without sockets: whole, octet by octet and at random cuts. The
//! same octets give the same events however they are cut, and the answer a case wants. And docs/CONFORMANCE.md, the
//! table of clauses, is held to its word.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serverd::http1::{Framing, Limits};

use crate::feed::{feed, random_cuts};

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
    /// Pauses and the like mean nothing without a socket.
    Other(#[allow(dead_code)] toml::Table),
}

/// In a case one character is one octet.
fn octets(text: &str) -> Vec<u8> {
    text.chars().map(|character| u8::try_from(u32::from(character)).expect("one octet")).collect()
}

impl Case {
    fn input(&self) -> Vec<u8> {
        match &self.send {
            Send::Text(text) => octets(text),
            Send::Steps(steps) => steps
                .iter()
                .flat_map(|step| match step {
                    Step::Text(text) => octets(text),
                    Step::Repeat { repeat, times } => octets(repeat).repeat(*times),
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
fn the_same_octets_give_the_same_events_however_they_are_cut() {
    let limits = Limits::default();
    for case in cases() {
        let input = case.input();
        let whole = feed(&input, &limits, false, &mut || usize::MAX >> 1);
        // Octet by octet costs a call each; the long ones are long for their limits' sake, and random cuts do.
        if input.len() < 20_000 {
            assert_eq!(feed(&input, &limits, true, &mut || 1), whole, "{}: octet by octet", case.id);
        }
        for seed in 1..=20 {
            assert_eq!(feed(&input, &limits, seed % 2 == 0, &mut random_cuts(seed)), whole, "{}: seed {seed}", case.id);
        }
    }
}

/// A fault the core finds is one the case allows, and a case that allows only faults gets one: from the core, or from
/// the rules of the application, which this does not run.
#[test]
fn faults_are_found_where_the_cases_want_them() {
    let statuses = |accept: &str| -> Vec<String> {
        let words: Vec<&str> = accept.split(' ').collect();
        let last = words[..words.len() - 1].last().copied().unwrap_or("");
        last.split('|').map(str::to_owned).collect()
    };
    let mut faults = 0;
    for case in cases() {
        let seen = feed(&case.input(), &Limits::default(), false, &mut || usize::MAX >> 1);
        let Some(error) = seen.error else { continue };
        faults += 1;
        // What stands behind a request that said close is not read by servers; the core reads on as long as it is fed.
        let with_body = seen.heads.iter().filter(|(_, head)| head.framing() != Framing::None).count();
        if seen.ends == with_body && seen.heads.last().is_some_and(|(_, head)| !head.is_persistent()) {
            continue;
        }
        let status = error.status().as_u16().to_string();
        let fits = |allowed: &str| allowed == status || (allowed == "4xx" && status.starts_with('4'));
        let allowed = case.accept.iter().any(|accept| {
            accept.split(' ').next() == Some("close") || statuses(accept).iter().any(|allowed| fits(allowed))
        });
        assert!(allowed, "{}: {error:?} is not among {:?}", case.id, case.accept);
    }
    assert!(faults > 400, "only {faults} faults found: are the cases read?");
}

/// The names in the last column of the table of clauses.
fn names_in_the_table() -> Vec<&'static str> {
    let rows = include_str!("../../docs/CONFORMANCE.md").lines().filter(|line| line.starts_with("| "));
    let last = rows.filter_map(|row| row.trim_end_matches([' ', '|']).rsplit_once(" | "));
    // What stands between backticks is every second part.
    last.flat_map(|(_, names)| names.split('`').skip(1).step_by(2)).collect()
}

/// The files of this name below a directory.
fn files_named(directory: &Path, name: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory of the project") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files_named(&path, name, found);
        } else if path.file_name().is_some_and(|own| own == name) {
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
    let head = [format!("fn {test}("), format!("fn {test}<")];
    files.iter().any(|file| {
        let source = std::fs::read_to_string(file).expect("a source file");
        head.iter().any(|head| source.contains(head))
    })
}

#[test]
fn the_table_of_clauses_names_tests_that_exist_and_every_case() {
    let cases = cases();
    let mut told = HashSet::new();
    let names = names_in_the_table();
    assert!(names.len() > 200, "only {} names found: is the table read?", names.len());
    for name in names {
        if let Some((module, test)) = name.split_once("::") {
            assert!(test_exists(module, test), "no test {name}");
            continue;
        }
        let fits = |id: &str| name.strip_suffix('*').map_or(id == name, |prefix| id.starts_with(prefix));
        let fitting: Vec<_> = cases.iter().map(|case| &case.id).filter(|id| fits(id)).collect();
        assert!(!fitting.is_empty(), "no case {name}");
        told.extend(fitting);
    }
    let untold: Vec<_> = cases.iter().map(|case| &case.id).filter(|id| !told.contains(id)).collect();
    assert!(untold.is_empty(), "cases without a clause: {untold:?}");
}

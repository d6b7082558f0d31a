//! Style rules that the compiler does not check: plain English, imports only from lower layers, short functions, and a
//! page on the architecture that names existing files.
//!
//! The limit for each phrasing is 1.3 times the highest rate in eight well-written codebases (redis, mio, polling,
//! hyper, quinn-proto, fd, h11, tornado), but at least two per 1,000 comment lines.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Maximum number of lines of a function, from its signature to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;

/// Maximum number of lines with a discouraged word in a page of user documentation.
const PAGE_LINES_MAX: usize = 2;

/// A discouraged phrasing, and the maximum number of comment lines per 1,000 that may contain it.
struct Habit {
    name: &'static str,
    per_mille_max: usize,
    matches: fn(&Line<'_>) -> bool,
}

const HABITS: &[Habit] = &[
    Habit { name: "told, tells", per_mille_max: 4, matches: |line| line.has(&["told", "tell", "tells", "telling"]) },
    Habit { name: "octets for bytes", per_mille_max: 4, matches: |line| line.has(&["octet", "octets"]) },
    Habit { name: "stands for is", per_mille_max: 2, matches: |line| line.has(&["stand", "stands", "stood"]) },
    Habit {
        name: "people for things",
        per_mille_max: 3,
        matches: |line| line.has(&["nobody", "somebody", "everybody", "whoever", "whom"]),
    },
    Habit {
        name: "a clause in place of a noun",
        per_mille_max: 37,
        matches: |line| line.starts_with(&["What", "Who", "Where", "How", "Whether"]) && !line.text.contains('?'),
    },
    Habit { name: "so many, so much", per_mille_max: 2, matches: |line| line.has_unnamed_amount() },
    Habit {
        name: "anew, for ever, meanwhile",
        per_mille_max: 2,
        matches: |line| line.has(&["anew", "meanwhile"]) || line.has_pair("for", &["ever"]),
    },
    Habit {
        name: "The same ...",
        per_mille_max: 2,
        matches: |line| line.starts_with(&["The"]) && line.words.get(1) == Some(&"same"),
    },
];

/// Technical terms that readers search for. Each must occur in a comment in `src` or in the documentation.
const TERMS: &[&[&str]] = &[
    &["back-pressure", "backpressure"],
    &["in-flight"],
    &["fast path"],
    &["file descriptor"],
    &["thread pool"],
    &["page cache"],
    &["watermark"],
    &["least-connections", "least connections"],
    &["rate limit"],
    &["half-close", "half close"],
    &["graceful"],
    &["state machine"],
    &["zero-copy", "zero copy"],
    &["middleware"],
];

/// The top-level modules that each top-level module may import, besides itself. In particular, `http1` and `loop` are
/// independent of each other.
const LAYERS: &[(&str, &[&str])] = &[
    ("http1", &[]),
    ("multipart", &[]),
    ("tls", &[]),
    ("loop", &["tls"]),
    ("httpserver", &["http1", "loop", "multipart", "tls"]),
    ("httpclient", &["http1", "httpserver", "loop", "tls"]),
    ("apps", &["http1", "httpserver", "loop", "tls"]),
    ("server", &["apps", "http1", "httpserver", "loop", "tls"]),
    ("client", &["http1", "tls"]),
    ("cli", &["apps", "client", "http1", "httpserver", "loop", "server", "tls"]),
];

/// A line of a comment or a page.
struct Line<'a> {
    text: &'a str,
    /// The words outside double quotes.
    words: Vec<&'a str>,
}

impl<'a> Line<'a> {
    /// Splits a line into words. Ignores text in double quotes, which mostly comes from an RFC.
    fn new(text: &'a str) -> Self {
        let unquoted = text.split('"').step_by(2);
        let words = unquoted.flat_map(|part| part.split(|letter: char| !letter.is_alphanumeric() && letter != '_'));
        Line { text, words: words.filter(|word| !word.is_empty()).collect() }
    }

    fn has(&self, words: &[&str]) -> bool {
        self.words.iter().any(|word| words.contains(word))
    }

    fn has_pair(&self, first: &str, seconds: &[&str]) -> bool {
        self.words.windows(2).any(|pair| pair[0] == first && seconds.contains(&pair[1]))
    }

    /// Returns whether the line contains "so many" or "so much", unless "that" follows.
    fn has_unnamed_amount(&self) -> bool {
        let that_follows = |at: usize| self.words.get(at + 2).is_some_and(|word| *word == "that");
        self.words
            .windows(2)
            .enumerate()
            .any(|(at, pair)| pair[0] == "so" && matches!(pair[1], "many" | "much") && !that_follows(at))
    }

    fn starts_with(&self, words: &[&str]) -> bool {
        self.words.first().is_some_and(|word| words.contains(word))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the paths of all files below `directory` with this extension, sorted.
fn files(directory: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![root().join(directory)];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).expect("a directory of the project");
            pending.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the path relative to the project directory, with forward slashes on every platform.
fn name(path: &Path) -> String {
    path.strip_prefix(root()).expect("a file of the project").to_string_lossy().replace('\\', "/")
}

/// Returns the text of the comment if the line contains nothing else.
fn comment(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix("//").map(|rest| rest.trim_start_matches(['/', '!']))
}

/// Checks the comments of the given files against all [`HABITS`]. The error lists every offending line of each habit
/// that exceeds its limit.
fn check_habits(sources: &[PathBuf]) -> Result<(), String> {
    let texts: Vec<_> = sources.iter().map(|path| (name(path), read(path))).collect();
    let comments: Vec<_> = texts
        .iter()
        .flat_map(|(name, text)| text.lines().enumerate().map(move |(at, line)| (name, at + 1, line)))
        .filter_map(|(name, at, line)| comment(line).map(|text| (name, at, Line::new(text))))
        .collect();
    assert!(comments.len() > 100, "found only {} comment lines", comments.len());
    let mut report = String::new();
    for habit in HABITS {
        let found: Vec<_> = comments.iter().filter(|(_, _, line)| (habit.matches)(line)).collect();
        if found.len() * 1000 > habit.per_mille_max * comments.len() {
            let (count, max) = (found.len(), habit.per_mille_max * comments.len() / 1000);
            let _ = writeln!(report, "{}: {count} lines, maximum {max}", habit.name);
            for (name, at, line) in found {
                let _ = writeln!(report, "  {name}:{at}:{}", line.text);
            }
        }
    }
    if report.is_empty() { Ok(()) } else { Err(report) }
}

#[test]
fn comments_are_in_plain_english() {
    let mut reports = String::new();
    for group in [&["src"][..], &["tests", "benches", "examples", "fuzz/fuzz_targets"]] {
        let sources: Vec<_> = group.iter().flat_map(|directory| files(directory, "rs")).collect();
        if let Err(report) = check_habits(&sources) {
            reports.push_str(&report);
        }
    }
    assert!(reports.is_empty(), "\n{reports}");
}

#[test]
fn pages_and_help_are_in_plain_english() {
    let pages = files("docs", "md").into_iter().chain(files("tests/help", "txt"));
    for path in pages.chain([root().join("README.md"), root().join("CHANGELOG.md")]) {
        let text = read(&path);
        let words = ["told", "tell", "tells", "octet", "octets", "whoever", "anew"];
        let found: Vec<_> = text.lines().filter(|line| Line::new(line).has(&words)).collect();
        assert!(found.len() <= PAGE_LINES_MAX, "{}:\n{}", name(&path), found.join("\n"));
    }
}

#[test]
fn technical_terms_can_be_found() {
    let sources = files("src", "rs").into_iter().flat_map(|path| {
        let text = read(&path);
        text.lines().filter_map(|line| comment(line).map(str::to_lowercase)).collect::<Vec<_>>()
    });
    let pages = files("docs", "md").into_iter().chain([root().join("README.md")]);
    let all: Vec<_> = sources.chain(pages.map(|path| read(&path).to_lowercase())).collect();
    for spellings in TERMS {
        let found = all.iter().any(|text| spellings.iter().any(|term| text.contains(term)));
        assert!(found, "{} is not mentioned anywhere", spellings[0]);
    }
}

/// Returns the top-level modules that a line refers to through `crate::`.
fn named_modules(line: &str) -> impl Iterator<Item = &str> {
    line.split("crate::").skip(1).map(|rest| {
        let rest = rest.strip_prefix("r#").unwrap_or(rest);
        rest.split(|letter: char| !letter.is_alphanumeric() && letter != '_').next().unwrap_or_default()
    })
}

#[test]
fn modules_import_only_lower_layers() {
    let mut seen = 0;
    for path in files("src", "rs") {
        let name = name(&path);
        let own = name.trim_start_matches("src/").split(['/', '.']).next().unwrap_or_default();
        if matches!(own, "lib" | "main") {
            continue;
        }
        let (_, below) = LAYERS
            .iter()
            .find(|(module, _)| *module == own)
            .unwrap_or_else(|| panic!("{name}: module {own} has no row in LAYERS"));
        let text = read(&path);
        for (at, line) in text.lines().enumerate().filter(|(_, line)| comment(line).is_none()) {
            for module in named_modules(line).filter(|module| LAYERS.iter().any(|(known, _)| known == module)) {
                seen += 1;
                let allowed = module == own || below.contains(&module);
                assert!(allowed, "{name}:{}: {own} may not import {module}", at + 1);
            }
        }
    }
    assert!(seen > 50, "found only {seen} imports");
}

/// Returns the paths that a line of code names through `super::`, `self::` or `crate::`, as module paths of the crate.
/// `module` is the path of the file's own module; groups in braces are expanded one level.
fn imported_paths(code: &str, module: &[&str]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("super::").chain(code.match_indices("crate::")) {
        let before = code[..at].chars().next_back().unwrap_or(' ');
        if before.is_alphanumeric() || matches!(before, '_' | ':' | '/') {
            continue;
        }
        let (mut base, mut rest) = (module.to_vec(), &code[at..]);
        if let Some(absolute) = rest.strip_prefix("crate::") {
            (base, rest) = (Vec::new(), absolute);
        }
        while let Some(relative) = rest.strip_prefix("super::") {
            base.pop();
            rest = relative;
        }
        let base: Vec<String> = base.into_iter().map(String::from).collect();
        let groups: Vec<&str> = match rest.strip_prefix('{') {
            Some(group) => group.split('}').next().unwrap_or_default().split(',').map(str::trim).collect(),
            None => vec![rest],
        };
        for path in groups {
            let segments = path.split("::").map_while(|segment| {
                let segment = segment.strip_prefix("r#").unwrap_or(segment);
                let end = segment.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
                Some(&segment[..end.unwrap_or(segment.len())]).filter(|segment| !segment.is_empty())
            });
            found.push(base.iter().cloned().chain(segments.map(String::from)).collect());
        }
    }
    found
}

/// Returns the module path of a file, such as `["loop", "event_loop"]`.
fn module_path(name: &str) -> Vec<&str> {
    let path = name.trim_start_matches("src/").trim_end_matches(".rs");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    path.split('/').filter(|segment| !matches!(*segment, "lib" | "main")).collect()
}

/// Returns the non-test code of a file without comments.
fn code_of(text: &str) -> String {
    let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    code.lines().filter(|line| comment(line).is_none()).fold(String::new(), |all, line| all + line.trim() + "\n")
}

/// Returns the imports between the files below `src/`, as pairs of module paths. A `mod.rs` or `lib.rs` is a table of
/// contents: a path through it leads to the file that it names, or nowhere.
fn imports() -> Vec<(String, String)> {
    let sources: Vec<_> = files("src", "rs").iter().map(|path| (name(path), code_of(&read(path)))).collect();
    let modules: Vec<String> = sources.iter().map(|(name, _)| module_path(name).join("::")).collect();
    let is_table = |module: &str| {
        let path = format!("src/{}/mod.rs", module.replace("::", "/"));
        module.is_empty() || sources.iter().any(|(name, _)| *name == path)
    };
    let mut found = Vec::new();
    for ((name, code), module) in sources.iter().zip(&modules) {
        if is_table(module) {
            continue;
        }
        let declared = code.replace(",\n", ", ").replace("{\n", "{");
        for path in imported_paths(&declared, &module_path(name)) {
            let longest = (1..=path.len()).rev().map(|len| path[..len].join("::")).find(|at| modules.contains(at));
            if let Some(target) = longest.filter(|target| target != module && !is_table(target)) {
                found.push((module.clone(), target));
            }
        }
    }
    found
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let mut edges = imports();
    edges.sort();
    edges.dedup();
    assert!(edges.len() > 100, "found only {} imports", edges.len());
    // Remove files that import nothing that is left, until only circles and their importers remain.
    loop {
        let before = edges.len();
        let importers: Vec<String> = edges.iter().map(|(from, _)| from.clone()).collect();
        edges.retain(|(_, to)| importers.contains(to));
        let imported: Vec<String> = edges.iter().map(|(_, to)| to.clone()).collect();
        edges.retain(|(from, _)| imported.contains(from));
        if edges.len() == before {
            break;
        }
    }
    let lines: Vec<_> = edges.iter().map(|(from, to)| format!("{from} -> {to}")).collect();
    assert!(lines.is_empty(), "imports in a circle:\n{}", lines.join("\n"));
}

/// Returns whether a line of code contains the name of a command-line flag, such as `--port`.
fn names_flag(code: &str) -> bool {
    let is_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
    let follows_boundary = |at: usize| !code[..at].ends_with(is_word);
    code.match_indices("--")
        .any(|(at, _)| follows_boundary(at) && code[at + 2..].starts_with(|l: char| l.is_ascii_lowercase()))
}

#[test]
fn libraries_do_not_name_flags() {
    let mut seen = 0;
    for path in ["src/http1", "src/httpserver", "src/loop"].iter().flat_map(|directory| files(directory, "rs")) {
        let code = code_of(&read(&path));
        seen += code.lines().count();
        let found: Vec<_> = code.lines().filter(|line| names_flag(line)).collect();
        assert!(found.is_empty(), "{} names flags of the command:\n{}", name(&path), found.join("\n"));
    }
    assert!(seen > 5000, "found only {seen} lines");
}

/// Checks that a `mod.rs` only declares, exports and describes the modules of its directory.
#[test]
fn a_mod_rs_is_a_table_of_contents() {
    let tables: Vec<_> = files("src", "rs").into_iter().filter(|path| path.ends_with("mod.rs")).collect();
    assert!(tables.len() > 4, "found only {} tables", tables.len());
    for path in tables {
        let found = read(&path).lines().any(begins_function);
        assert!(!found || name(&path).starts_with("src/apps/files/listing/"), "{} has functions", name(&path));
    }
}

/// Returns the words of a page that are paths below `src` or `tests`, or names of Rust files.
fn named_files(page: &str) -> impl Iterator<Item = &str> {
    let words = page.split(|letter: char| !letter.is_ascii_alphanumeric() && !"_-./".contains(letter));
    let words = words.map(|word| word.trim_start_matches("../").trim_end_matches('.'));
    let is_source = |word: &str| Path::new(word).extension().is_some_and(|extension| extension == "rs");
    words.filter(move |word| word.starts_with("src/") || word.starts_with("tests/") || is_source(word))
}

#[test]
fn the_architecture_page_names_existing_files() {
    let page = read(&root().join("docs/ARCHITECTURE.md"));
    let sources: Vec<_> = ["src", "tests"].iter().flat_map(|directory| files(directory, "rs")).collect();
    // A path without its beginning, such as `connection/close.rs`, is compared by whole names.
    let exists = |name: &str| root().join(name).exists() || sources.iter().any(|source| source.ends_with(name));
    let named: Vec<_> = named_files(&page).collect();
    let missing: Vec<_> = named.iter().filter(|name| !exists(name)).collect();
    assert!(named.len() > 50, "found only {} names of files", named.len());
    assert!(missing.is_empty(), "docs/ARCHITECTURE.md names files that do not exist: {missing:?}");
    for source in files("src", "rs").iter().filter(|source| read(source).contains("allow(unsafe_code")) {
        let name = name(source);
        assert!(named.contains(&name.as_str()), "docs/ARCHITECTURE.md omits unsafe code: {name}");
    }
}

/// Returns whether a function begins on this line, which must be formatted by rustfmt.
fn begins_function(line: &str) -> bool {
    let code = line.trim_start();
    let before = code.split("fn ").next().unwrap_or_default();
    let qualifiers = ["pub", "pub(crate)", "pub(super)", "const", "async", "unsafe", "extern", "\"C\"", "\"system\""];
    code.contains("fn ") && before.split_whitespace().all(|word| qualifiers.contains(&word))
}

#[test]
fn functions_are_short() {
    let mut seen = 0;
    let directories = ["src", "tests", "benches", "examples", "fuzz/fuzz_targets"];
    for path in directories.iter().flat_map(|directory| files(directory, "rs")) {
        let text = read(&path);
        let lines: Vec<_> = text.lines().collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| begins_function(line)) {
            let indent = &line[..line.len() - line.trim_start().len()];
            let is_end = |line: &&str| line.strip_prefix(indent).is_some_and(|rest| rest == "}");
            let one_line = line.ends_with('}') || line.ends_with(';');
            let length = if one_line { 1 } else { lines[at..].iter().position(is_end).unwrap_or(0) + 1 };
            seen += 1;
            let name = name(&path);
            assert!(length <= FUNCTION_LINES_MAX, "{name}:{}: {length} lines, maximum {FUNCTION_LINES_MAX}", at + 1);
        }
    }
    assert!(seen > 500, "found only {seen} functions");
}

#[test]
fn the_rules_detect_violations() {
    let habits =
        |text| HABITS.iter().filter(|habit| (habit.matches)(&Line::new(text))).map(|habit| habit.name).collect();
    let none: Vec<&str> = Vec::new();
    let found: Vec<&str> = habits(" The same for whoever was told of it.");
    assert_eq!(found, ["told, tells", "people for things", "The same ..."]);
    let found: Vec<&str> = habits(" What becomes of so many octets");
    assert_eq!(found, ["octets for bytes", "a clause in place of a noun", "so many, so much"]);
    assert_eq!(habits(" \"an octet\" is quoted, and so many that it works"), none);
    assert!(begins_function("    pub(crate) const fn length() -> usize {"));
    assert!(!begins_function("    let make = fn_of(1);"));
    assert!(names_flag("\"(see --port)\"") && !names_flag("a -- b") && !names_flag("\"---a\", x--y"));
    let page = "See `a/b.rs`, [c](../src/c.rs) and src/d/, but not docs/E.md or x.rst.";
    assert_eq!(named_files(page).collect::<Vec<_>>(), ["a/b.rs", "src/c.rs", "src/d/"]);
    assert_eq!(
        named_modules("use crate::{a}; crate::r#loop::App, crate::http1::Head").collect::<Vec<_>>(),
        ["", "loop", "http1"]
    );
}

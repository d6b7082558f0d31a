#!/usr/bin/env python3
"""Shows that the simulation finds faults that were fixed: puts them back into a copy of the sources, and prints the seeds
of the simulation that fail.

    sim_faults.py [--seeds N] [--only NAME,...]

Fails if a fault is not found, or if the sources have changed so that it cannot be put back. All faults are compiled at
once; an environment variable selects one. Compiling takes a few minutes.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOOP = "src/loop/"

FAULT = """
/// Returns whether this fault is selected.
pub(crate) fn fault(name: &str) -> bool {
    static FAULT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    FAULT.get_or_init(|| std::env::var("SIM_FAULT").unwrap_or_default()) == name
}
"""

# Each replacement has the file, the text, and the text with the fault; FAULT is replaced with a test for the fault.
FAULTS = {
    "write": ("the write timeout counts successful writes, not acknowledgements", [
        ("event_loop/expire.rs", "Phase::Writing if !connection.write_has", "Phase::Writing if !FAULT && !connection.write_has"),
        ("limits.rs", "self.write.map(|limit| limit / 4)", "self.write.map(|limit| if FAULT { limit } else { limit / 4 })"),
    ]),
    "burst": ("a client that has taken much may pause no longer than others", [
        ("connection/progress.rs", "now_ms >= silent_until_ms ||", "FAULT || now_ms >= silent_until_ms ||"),
    ]),
    "vanished": ("a client of a stream that has vanished with unacknowledged output is not noticed", [
        ("connection/progress.rs", "if self.stream.unacknowledged_bytes().is_none_or", "if FAULT || self.stream.unacknowledged_bytes().is_none_or"),
    ]),
    "presence": ("a reset of a client that waits for a response is not noticed", [
        ("event_loop/expire.rs", "Phase::Handling => connection", "Phase::Handling if FAULT => Outcome::Open,\nPhase::Handling => connection"),
        ("connection.rs", "if self.hangup {", "if self.hangup && !FAULT {"),
    ]),
    "linger": ("the lingering close takes 5 s in all", [
        ("event_loop/expire.rs", "Phase::LingeringBriefly if connection.is_rec", "Phase::LingeringBriefly if !FAULT && connection.is_rec"),
        ("connection/close.rs", "count > 0 && is_in_time;", "count > 0 && is_in_time && !FAULT;"),
    ]),
    "close": ("the connection is closed although the client has not received everything", [
        ("connection/close.rs", "self.sent_much && self.stream.unacknowledged_bytes().is_none_or",
         "!FAULT && self.sent_much && self.stream.unacknowledged_bytes().is_none_or"),
    ]),
    "body": ("a body must arrive at the minimum rate in each period of 5 s", [
        ("limits.rs", "Phase::Body => self", "Phase::Body if FAULT => Some(BODY_START),\nPhase::Body => self"),
        ("connection/progress.rs", "        let max_ms = timeouts.body.map_or", """        if FAULT {
            let slow = self.progress.as_ref().is_none_or(|body| body.received < 5 * u64::from(timeouts.body_rate));
            self.progress.get_or_insert_default().received = 0;
            return slow;
        }
        let max_ms = timeouts.body.map_or"""),
    ]),
    "totals": ("the buffers of all connections together are not limited", [
        ("connection_limit.rs", "self.unreserved() > self.bytes_max - ", "!FAULT && self.unreserved() > self.bytes_max - "),
    ]),
    "wake-up": ("a loop wakes up for the timer of a connection that is closed", [
        ("timers.rs", "        self.wake_ms = u64::MAX;\n    }", "        if !FAULT {\n            self.wake_ms = u64::MAX;\n        }\n    }"),
    ]),
    "taken": ("ciphertext that a slow client takes from the server's buffer is not progress", [
        ("connection/progress.rs", "self.stream.unsent_bytes() as u64", "if FAULT { 0 } else { self.stream.unsent_bytes() as u64 }"),
    ]),
    "notify": ("a TLS connection ends without close_notify", [
        ("tls_stream.rs", "if !open.session.is_handshaking() {", "if !FAULT && !open.session.is_handshaking() {"),
    ]),
    "held": ("ciphertext for whose plaintext there was no room is dropped", [
        ("tls_stream.rs", "        self.held.extend_from_slice(ciphertext);",
         "        if !FAULT {\n            self.held.extend_from_slice(ciphertext);\n        }"),
    ]),
    "handshake": ("each byte renews the time limit of a TLS handshake", [
        ("connection/transfer.rs", "            Ok(progress) => {", "            Ok(progress) => {\n                self.restart |= FAULT && progress == Handshake::Progress;"),
    ]),
    "alert": ("a failed TLS handshake is closed at once, so that the alert is lost", [
        ("connection/transfer.rs", "self.ended = error.kind() != io::ErrorKind::InvalidData;", "self.ended = FAULT || error.kind() != io::ErrorKind::InvalidData;"),
    ]),
}


def copy_with_faults(copy):
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    archive = subprocess.run(["tar", "cf", "-", "--null", "-T", "-"], cwd=ROOT, input=files, check=True, capture_output=True)
    subprocess.run(["tar", "xf", "-"], cwd=copy, input=archive.stdout, check=True)
    with open(copy / LOOP / "mod.rs", "a") as file:
        file.write(FAULT)
    for name, (_, replacements) in FAULTS.items():
        for path, old, new in replacements:
            path = copy / LOOP / path
            text = path.read_text()
            if text.count(old) != 1:
                sys.exit(f"{name}: {path.relative_to(copy)} has the text {text.count(old)} times: {old}")
            path.write_text(text.replace(old, new.replace("FAULT", f'crate::r#loop::fault("{name}")')))


def build(copy):
    command = ["cargo", "test", "--locked", "--profile", "sim", "--test", "sim", "--no-run", "--target-dir", ROOT / "target"]
    output = subprocess.run(command, cwd=copy, check=True, stderr=subprocess.PIPE, text=True).stderr
    return ROOT / re.search(r"Executable .*\((.*)\)", output).group(1)


def run(program, fault, seed):
    """Runs all tests of the loop with a seed. Returns the first reason of a failure, or None."""
    variables = {"SIM_FAULT": fault, "SERVERD_SIM_FIRST": str(seed), "SERVERD_SIM_SEEDS": "1"}
    command = [program, "--skip", "chat::"]
    try:
        tests = subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return "does not end"
    if tests.returncode == 0:
        return None
    reason = re.search(r"panicked at .*\n(.*)", tests.stdout + tests.stderr)
    return reason.group(1)[:150] if reason else f"exit status {tests.returncode}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only")
    options = parser.parse_args()
    unexpected = []
    with tempfile.TemporaryDirectory() as copy:
        copy_with_faults(Path(copy))
        program = build(copy)
        for name, (description, _) in {"": ("no fault", []), **FAULTS}.items():
            if options.only and name not in options.only.split(","):
                continue
            reasons = {seed: reason for seed in range(1, options.seeds + 1) if (reason := run(program, name, seed))}
            print(f"{description}: {len(reasons)} of {options.seeds} seeds fail: {', '.join(map(str, reasons)) or '-'}")
            for reason in list(reasons.values())[:1]:
                print(f"    {reason}", flush=True)
            if bool(reasons) != bool(name):
                unexpected.append(description)
    if unexpected:
        sys.exit(f"unexpected: {', '.join(unexpected)}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Counts user-space instructions per request with callgrind. The counts are reproducible, so any increase is real.

    benches/instructions.py             print the counts and the difference to benches/instructions.json
    benches/instructions.py --check     fail if a count rose by more than 1 % (file-1k: 2 %), unless CHANGELOG.md
                                        explains it, under Unreleased, in a line with the word "instructions" and the
                                        name of the case
    benches/instructions.py --update    write the counts to benches/instructions.json
    benches/instructions.py --arguments="--access-log FILE" [CASE ...]
                                        print the counts of cases without and with further arguments of the server

Each case is run with few and with many requests; taking the difference excludes start-up and shutdown. The counts
depend on the compiler version: with a different version, the check is skipped with a message. Needs valgrind.
"""
import argparse
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASELINE = ROOT / "benches/instructions.json"
REQUESTS = ROOT / "benches/requests"
RISE_MAX = 0.01
# Once per second, the file is compared with the directory, on another thread. On a busy machine a request takes a larger
# part of a second.
RISES_MAX = {"file-1k": 0.02}
# Noise only increases a count, so a count that is too high is measured again, and the minimum is used.
TRIES = 4
# name: backend, request, pipeline depth, whether each request has its own connection, content served
CYCLES = {
    "keep-alive": ("epoll", "plain", 1, False, "text"),
    "keep-alive-select": ("select", "plain", 1, False, "text"),
    "keep-alive-browser": ("epoll", "browser", 1, False, "text"),
    "pipelined-16": ("epoll", "plain", 16, False, "text"),
    "one-shot": ("epoll", "close", 1, True, "text"),
    "file-1k": ("epoll", "plain", 1, False, "file"),
}
ISOLATED = ("parse-plain", "parse-browser", "response-head")


def parse_count(log: Path) -> int:
    return int(re.findall(r"Collected : (\d+)", log.read_text(errors="replace"))[-1])


def callgrind(log: Path, command: list[str]) -> list[str]:
    return ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", f"--log-file={log}", *command]


def built(name: str, *arguments: str) -> Path:
    """Run a cargo command and return the path of the executable with this name."""
    output = subprocess.run(["cargo", *arguments, "--locked", "-q", "--message-format=json"], cwd=ROOT, check=True,
                            stdout=subprocess.PIPE, text=True).stdout
    executables = [message for message in map(json.loads, output.splitlines()) if message.get("executable")]
    return next(Path(message["executable"]) for message in executables if message["target"]["name"] == name)


def connect(port: int) -> socket.socket:
    stream = socket.socket()
    stream.settimeout(60)
    # Delays the last packet of the handshake until the request is sent with it (tcp(7)). The server thus always finds the
    # request when it accepts the connection; otherwise some connections would take one more poll and one more read.
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.connect(("127.0.0.1", port))
    return stream


def send_requests(port: int, request: bytes, depth: int, closes: bool, count: int) -> None:
    """Send `count` requests, `depth` at a time, and read the responses."""
    stream = None
    for _ in range(count // depth):
        if stream is None:
            stream = connect(port)
        stream.sendall(request * depth)
        got = b""
        while got.count(b"this is response from server") < depth:
            piece = stream.recv(65536)
            if not piece:
                raise SystemExit("instructions.py: the server closed early")
            got += piece
        if closes:
            assert stream.recv(1) == b"", "the server must close"
            stream.close()
            stream = None


def count_cycle(server: Path, backend: str, name: str, depth: int, closes: bool, served: str, more_arguments=()) -> float:
    request, totals, few = (REQUESTS / f"{name}.http").read_bytes(), [], depth * 16
    more = 1000 if closes else 16000 if served == "file" else 4000
    site = tempfile.TemporaryDirectory()
    (Path(site.name) / "index.html").write_text("this is response from server".ljust(1024))
    for count in (few, few + more):
        log = Path(tempfile.mkstemp()[1])
        command = [str(server), "--port", "0", "--workers", "1", "--backend", backend, *more_arguments]
        if served == "file":
            command += ["files", site.name]
        process = subprocess.Popen(callgrind(log, command), stdout=subprocess.PIPE, text=True)
        port = int(re.search(r":(\d+) ", process.stdout.readline())[1])
        if served == "file":
            # The first comparison with the directory is the most expensive; it must be in both runs or in none.
            send_requests(port, request, 1, False, 1)
            time.sleep(1.1)
        send_requests(port, request, depth, closes, count)
        process.terminate()
        process.wait(60)
        totals.append(parse_count(log))
        log.unlink()
    return (totals[1] - totals[0]) / more


def count_isolated(program: Path, name: str) -> float:
    totals = []
    for count in (1000, 6000):
        log = Path(tempfile.mkstemp()[1])
        subprocess.run(callgrind(log, [str(program), name, str(count)]), check=True)
        totals.append(parse_count(log))
        log.unlink()
    return (totals[1] - totals[0]) / 5000


def minimum(before: float | None, count) -> int:
    """Return the count of a case. Repeat the measurement while the count is too high."""
    best = count()
    for _ in range(TRIES - 1):
        if not before or best <= before * (1 + RISE_MAX / 2):
            break
        best = min(best, count())
    return round(best)


def is_explained(name: str) -> bool:
    unreleased = (ROOT / "CHANGELOG.md").read_text().split("## Unreleased", 1)[-1].split("\n## ", 1)[0]
    return any("instructions" in line and re.search(rf"\b{name}\b(?!-)", line) for line in unreleased.splitlines())


def compare(server: Path, options: argparse.Namespace) -> int:
    """Print the counts of cases without and with further arguments."""
    for name in options.cases:
        plain, more = (count_cycle(server, *CYCLES[name], arguments) for arguments in ((), options.arguments.split()))
        print(f"{name:20} {plain:7,.0f} {more:7,.0f} {more - plain:+7,.0f}", flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--arguments", default="")
    parser.add_argument("cases", nargs="*", default=list(CYCLES))
    options = parser.parse_args()
    if options.arguments:
        return compare(built("serverd", "build", "--release", "--bin", "serverd"), options)
    compiler = subprocess.run(["rustc", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    program = built("instructions", "bench", "--no-run", "--bench", "instructions")
    server = built("serverd", "build", "--release", "--bin", "serverd")
    baseline, failed = json.loads(BASELINE.read_text()), []
    known = baseline["counts"]
    counts = {name: round(count_isolated(program, name)) for name in ISOLATED}
    counts |= {name: minimum(known.get(name), lambda: count_cycle(server, *case)) for name, case in CYCLES.items()}
    if options.update:
        baseline = {"compiler": compiler, "counts": counts}
        BASELINE.write_text(json.dumps(baseline, indent=2) + "\n")
    for name, count in counts.items():
        before = baseline["counts"].get(name)
        rise = count / before - 1 if before else 0.0
        print(f"{name:20} {count:7,} {rise:+7.1%}")
        if rise > RISES_MAX.get(name, RISE_MAX) and not is_explained(name):
            failed.append(name)
    if baseline["compiler"] != compiler:
        print(f"check skipped: the baseline is for {baseline['compiler']}, this is {compiler}")
        return 0
    if options.check and failed:
        print(f"instruction counts too far above the baseline: {', '.join(failed)}; fix it or explain it in CHANGELOG.md")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

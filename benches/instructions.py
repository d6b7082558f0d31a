#!/usr/bin/env python3
"""Instructions of user space per request, counted by callgrind: they repeat, so a rise is a rise.

    benches/instructions.py             counts, and shows the difference to benches/instructions.json
    benches/instructions.py --check     fails when a count rose by more than 5 % (one-shot: 15 %), unless CHANGELOG.md,
                                        under Unreleased, says why in a line with the words "instructions" and the name
                                        of the case
    benches/instructions.py --update    counts, and writes benches/instructions.json

Each case is run with some and with many requests; the difference leaves out start and end. The counts belong to
one compiler: with another one nothing is checked, and that is said. Needs valgrind.
"""
import argparse
import json
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASELINE = ROOT / "benches/instructions.json"
REQUESTS = ROOT / "benches/requests"
RISE_MAX = 0.05
# Whether a request has come when its connection is accepted is up to the client, and so to whatever else the machine does:
# where it has not, there is one more wait and one more read. On a busy machine that was up to 14 %.
RISES_MAX = {"one-shot": 0.15}
# What disturbs a count adds to it, so a count that is too high is taken again, and the least is believed.
TRIES = 4
# name: backend, request, requests sent at once, whether each has a connection of its own, what is served
CYCLES = {
    "keep-alive": ("epoll", "plain", 1, False, "text"),
    "keep-alive-select": ("select", "plain", 1, False, "text"),
    "keep-alive-browser": ("epoll", "browser", 1, False, "text"),
    "pipelined-16": ("epoll", "plain", 16, False, "text"),
    "one-shot": ("epoll", "close", 1, True, "text"),
    "file-1k": ("epoll", "plain", 1, False, "file"),
}
ALONE = ("parse-plain", "parse-browser", "response-head")


def collected(log: Path) -> int:
    return int(re.findall(r"Collected : (\d+)", log.read_text(errors="replace"))[-1])


def callgrind(log: Path, command: list[str]) -> list[str]:
    return ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", f"--log-file={log}", *command]


def built(name: str, *arguments: str) -> Path:
    """The program of this name that a cargo command builds."""
    output = subprocess.run(["cargo", *arguments, "--locked", "-q", "--message-format=json"], cwd=ROOT, check=True,
                            stdout=subprocess.PIPE, text=True).stdout
    made = [message for message in map(json.loads, output.splitlines()) if message.get("executable")]
    return next(Path(message["executable"]) for message in made if message["target"]["name"] == name)


def answers(port: int, request: bytes, depth: int, closes: bool, count: int) -> None:
    """Sends `count` requests, `depth` at once, and reads their answers."""
    stream = None
    for _ in range(count // depth):
        if stream is None:
            stream = socket.create_connection(("127.0.0.1", port), 60)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.sendall(request * depth)
        got = b""
        while got.count(b"this is response from server") < depth:
            piece = stream.recv(65536)
            if not piece:
                raise SystemExit("instructions.py: the server closed early")
            got += piece
        if closes:
            assert stream.recv(1) == b"", "the server closes"
            stream.close()
            stream = None


def cycle(server: Path, backend: str, name: str, depth: int, closes: bool, served: str) -> float:
    request, totals, few, more = (REQUESTS / f"{name}.http").read_bytes(), [], depth * 16, 1000 if closes else 4000
    site = tempfile.TemporaryDirectory()
    (Path(site.name) / "index.html").write_text("this is response from server".ljust(1024))
    for count in (few, few + more):
        log = Path(tempfile.mkstemp()[1])
        command = [str(server), "--port", "0", "--workers", "1", "--backend", backend]
        if served == "file":
            command += ["files", site.name]
        process = subprocess.Popen(callgrind(log, command), stdout=subprocess.PIPE, text=True)
        port = int(re.search(r":(\d+) ", process.stdout.readline())[1])
        answers(port, request, depth, closes, count)
        process.terminate()
        process.wait(60)
        totals.append(collected(log))
        log.unlink()
    return (totals[1] - totals[0]) / more


def alone(program: Path, name: str) -> float:
    totals = []
    for count in (1000, 6000):
        log = Path(tempfile.mkstemp()[1])
        subprocess.run(callgrind(log, [str(program), name, str(count)]), check=True)
        totals.append(collected(log))
        log.unlink()
    return (totals[1] - totals[0]) / 5000


def least(before: float | None, count) -> int:
    """The count of a case, taken again while it is too high."""
    best = count()
    for _ in range(TRIES - 1):
        if not before or best <= before * (1 + RISE_MAX):
            break
        best = min(best, count())
    return round(best)


def excused(name: str) -> bool:
    unreleased = (ROOT / "CHANGELOG.md").read_text().split("## Unreleased", 1)[-1].split("\n## ", 1)[0]
    return any("instructions" in line and re.search(rf"\b{name}\b(?!-)", line) for line in unreleased.splitlines())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--update", action="store_true")
    options = parser.parse_args()
    compiler = subprocess.run(["rustc", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    program = built("instructions", "bench", "--no-run", "--bench", "instructions")
    server = built("serverd", "build", "--release", "--bin", "serverd")
    baseline, failed = json.loads(BASELINE.read_text()), []
    known = baseline["counts"]
    counts = {name: round(alone(program, name)) for name in ALONE}
    counts |= {name: least(known.get(name), lambda: cycle(server, *how)) for name, how in CYCLES.items()}
    if options.update:
        baseline = {"compiler": compiler, "counts": counts}
        BASELINE.write_text(json.dumps(baseline, indent=2) + "\n")
    for name, count in counts.items():
        before = baseline["counts"].get(name)
        rise = count / before - 1 if before else 0.0
        print(f"{name:20} {count:7,} {rise:+7.1%}")
        if rise > RISES_MAX.get(name, RISE_MAX) and not excused(name):
            failed.append(name)
    if baseline["compiler"] != compiler:
        print(f"not checked: the baseline was counted with {baseline['compiler']}, this is {compiler}")
        return 0
    if options.check and failed:
        print(f"too far above the baseline: {', '.join(failed)}; say why in CHANGELOG.md, or mend it")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

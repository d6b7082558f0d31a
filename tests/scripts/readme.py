#!/usr/bin/env python3
"""Runs every shell command of README.md as written, in the checkout, and checks that it works.

A server keeps running until the next one is started; then it gets SIGTERM and must exit with 0. Every other command
must exit with 0 within its time limit, and must not print an error response. The port is replaced by a free one. `cargo
test` is skipped, because it is a stage of .ci/run.
"""
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
TIME_LIMIT_S = 900  # a command may compile
CREATED = ["site", "chat", "access.log"]
SERVER = re.compile(r"^(serverd|cargo run --release --)(?! (check|connect|hash|-h|--help)\b)")
OTHER_STAGE = re.compile(r"^cargo test\b")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Runner:
    """Runs commands one after another, with at most one server in the background."""

    def __init__(self, scratch):
        home = os.path.expanduser("~")
        self.port = str(free_port())
        self.server = None
        self.environment = {
            **os.environ,
            "CARGO_HOME": os.environ.get("CARGO_HOME", f"{home}/.cargo"),
            "RUSTUP_HOME": os.environ.get("RUSTUP_HOME", f"{home}/.rustup"),
            "CARGO_INSTALL_ROOT": scratch,
            "HOME": scratch,
            "PATH": f"{scratch}/bin:{os.environ['PATH']}",
            "SERVERD_PORT": self.port,
        }

    def run_line(self, line):
        command = line.replace("8888", self.port)
        if OTHER_STAGE.match(command):
            print(f"skipped: {line.split('#')[0].strip()}: a separate stage runs it")
        elif SERVER.match(command):
            self.stop()
            self.start(command)
        else:
            self.run(command)

    def start(self, command):
        print(f"$ {command} &", flush=True)
        self.server = subprocess.Popen(
            ["bash", "-c", "exec " + command], cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, text=True
        )
        line = self.server.stdout.readline()
        assert f":{self.port}" in line, f"no start line: {line!r}"

    def stop(self):
        if self.server:
            self.server.send_signal(signal.SIGTERM)
            self.server.communicate(timeout=60)
            assert self.server.returncode == 0, f"the server exited with {self.server.returncode}"
            self.server = None

    def run(self, command):
        print(f"$ {command}", flush=True)
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=ROOT,
            env=self.environment,
            input=b"a password\n",
            stdout=subprocess.PIPE,
            timeout=TIME_LIMIT_S if command.startswith("cargo") else 30,
        )
        assert done.returncode == 0, f"exit code {done.returncode}: {command}"
        if re.match(r"(curl|printf)", command):
            assert done.stdout, f"no output: {command}"
            status = re.match(rb"HTTP/1\.1 (\d+)", done.stdout)
            assert not status or int(status[1]) < 400, done.stdout


def main():
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert len(lines) > 15, f"found only {len(lines)} commands"
    existing = [name for name in CREATED if (ROOT / name).exists()]
    assert not existing, f"{existing} would be overwritten"
    with tempfile.TemporaryDirectory() as scratch:
        runner = Runner(scratch)
        try:
            for line in lines:
                runner.run_line(line)
            runner.stop()
        finally:
            if runner.server:
                runner.server.kill()
            for folder in ("site", "chat"):
                shutil.rmtree(ROOT / folder, ignore_errors=True)
            (ROOT / "access.log").unlink(missing_ok=True)
    print(f"README: {len(lines)} commands work as written")


if __name__ == "__main__":
    sys.exit(main())

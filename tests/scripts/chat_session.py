#!/usr/bin/env python3
"""Tests `serverd chat` with real clients and a real shell on pseudo-terminals.

    chat_session.py BINARY BACKEND WORKERS

Plays the two-terminal session of README.md word for word, with nc and with telnet; presses Ctrl-C in telnet and switches
it to character mode; types at the console of the server, in the foreground and in the background of a shell. A client
that is not installed is reported and skipped, unless CI_REQUIRE_CLIENTS is set.
"""
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
WAIT_MAX_S = 20
SERVERD, BACKEND, WORKERS = sys.argv[1:]
SERVE = [os.path.abspath(SERVERD), "chat", "--port", "0", "--backend", BACKEND, "--workers", WORKERS]


class Terminal:
    """A program on a pseudo-terminal, which is its controlling terminal."""

    def __init__(self, command):
        self.screen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(PS1="$ ", TERM="dumb")
            os.execvp(command[0], command)

    def type(self, text):
        os.write(self.fd, text.encode())

    def read(self, seconds):
        """Add to the screen what arrives within this time; return whether anything did."""
        if not select.select([self.fd], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # the program has ended
            data = b""
        self.screen += data.decode("utf-8", "replace").replace("\r\n", "\n")
        return bool(data)

    def wait_for(self, text, start=0):
        """Wait until the screen contains `text` after position `start`; return the position after it."""
        end = time.monotonic() + WAIT_MAX_S
        while (at := self.screen.find(text, start)) < 0:
            assert time.monotonic() < end, f"{text!r} is not on the screen:\n{self.screen}"
            self.read(0.2) or time.sleep(0.01)
        return at + len(text)

    def close(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


class Server:
    def __init__(self):
        self.process = subprocess.Popen(SERVE, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self.port = re.search(r":(\d+) ", self.process.stdout.readline()).group(1)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=WAIT_MAX_S) == 0

    def connect(self, program):
        return Terminal([program, "127.0.0.1", self.port])


def has(program):
    if shutil.which(program):
        return True
    assert not os.environ.get("CI_REQUIRE_CLIENTS"), f"{program} is missing"
    print(f"skipped: {program} is not installed")
    return False


def is_output(line):
    return line.startswith(("* ", "[", "- "))


def play(transcripts, programs):
    """Type the input of both transcripts, each line once everything before it is on the screen."""
    server = Server()
    terminals, positions, starts, lines = [], [0, 0], [], [list(transcript) for transcript in transcripts]
    end = time.monotonic() + WAIT_MAX_S
    while lines[0] or lines[1]:
        assert time.monotonic() < end, "\n".join(["not shown: ", *sum(lines, [])] + [t.screen for t in terminals])
        is_stuck = True
        for index, terminal in enumerate(terminals):
            terminal.read(0.02)
            while lines[index]:
                line = lines[index][0]
                at = terminal.screen.find(line + "\n", positions[index])
                if at < 0 and not is_output(line):
                    terminal.type(line + "\n")
                    at = terminal.wait_for(line + "\n", positions[index]) - len(line) - 1
                if at < 0:
                    break
                if not starts[index]:
                    starts[index] = at + 1
                positions[index] = at + len(line) + 1
                lines[index].pop(0)
                is_stuck = False
        if len(terminals) < 2 and is_stuck and (not terminals or lines[0][0].endswith(" joined")):
            terminals.append(server.connect(programs[len(terminals)]))
            starts.append(0)
        if lines[0] and "shutting down" in lines[0][0] and not lines[1] and server.process.poll() is None:
            server.stop()
    for terminal, transcript, start in zip(terminals, transcripts, starts):
        shown = terminal.screen[start - 1 :].splitlines()[: len(transcript)]
        assert shown == transcript, f"{shown} differs from {transcript}"
        terminal.close()
    print(f"chat: the session of README.md, {' and '.join(programs)}: ok")


def readme_session():
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## Chat") :]
    blocks = re.findall(r"^```text\n\$ nc [^\n]*\n(.*?)^```$", section, re.M | re.S)[:2]
    transcripts = [block.splitlines() for block in blocks]
    assert len(transcripts) == 2 and min(map(len, transcripts)) > 5, transcripts
    for programs in (("nc", "nc"), ("nc", "telnet"), ("telnet", "nc")):
        if all(has(program) for program in programs):
            play(transcripts, programs)


def telnet_keys():
    """Ctrl-C must not silence telnet, and a line typed in character mode must arrive."""
    if not (has("telnet") and has("nc")):
        return
    server = Server()
    anna, bert = server.connect("nc"), server.connect("telnet")
    bert.wait_for("* Welcome, ")
    bert.type("/nick Bert\n")
    bert.wait_for("* You are now Bert.")
    for number in range(3):
        # A client that waits for an answer to its TIMING-MARK discards output; give it the time to ask.
        bert.type("\x03")
        time.sleep(0.3)
        anna.type(f"after Ctrl-C {number}\n")
        bert.wait_for(f"] after Ctrl-C {number}\n")
    bert.type("\x1d")
    bert.wait_for("telnet> ")
    bert.type("mode character\n")
    time.sleep(0.3)
    bert.type("typed key by key\r")
    anna.wait_for("[Bert] typed key by key\n")
    bert.type("again\r")
    anna.wait_for("[Bert] again\n")
    anna.close()
    bert.close()
    server.stop()
    print("chat: Ctrl-C and character mode of telnet: ok")


def console():
    """Lines typed at the server's terminal are notices and commands while it is in the foreground."""
    shell = Terminal(["bash", "--norc", "--noprofile", "-i"])
    shell.wait_for("$ ")
    shell.type(" ".join(SERVE) + " &\n")
    at = shell.wait_for("chat on tcp://127.0.0.1:")
    port = re.match(r"\d+", shell.screen[at:] + " ").group()
    client = Terminal([os.path.abspath(SERVERD), "connect", f"127.0.0.1:{port}"])
    client.wait_for("* Welcome, guest1!")
    # In the background the server neither takes the shell's input nor is stopped for trying to.
    shell.type("echo in the $((1 + 1))nd line\n")
    at = shell.wait_for("in the 2nd line\n", at)
    shell.type("jobs\n")
    at = shell.wait_for("Running", at)
    shell.type("fg\n")
    time.sleep(1.2)
    shell.type("closing at ten\n")
    client.wait_for("* Server: closing at ten\n")
    shell.type("/who\n")
    at = shell.wait_for("guest1 in lobby from 127.0.0.1:", at)
    shell.type("/kick guest1\n")
    client.wait_for("* You were removed by the server.\n")
    shell.wait_for("disconnected guest1\n", at)
    shell.type("\x03")
    shell.wait_for("$ ", at)
    client.close()
    shell.close()
    print("chat: the console in the foreground and in the background: ok")


if __name__ == "__main__":
    readme_session()
    telnet_keys()
    console()

#!/usr/bin/env python3
"""Tests serverd.exe on a console, which Wine emulates on a pseudo-terminal: UTF-8 text, colors and keys.

    console.py PATH/TO/serverd.exe

Prints a line for each test, and exits with 1 if one failed. On such a console, Wine supports neither Ctrl-Break nor
Ctrl-Z, and does not notify a program when the console is closed.
"""
import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import socket
import struct
import sys
import tempfile
import termios
import threading
import time

RUN = [os.path.join(os.path.dirname(os.path.abspath(__file__)), "wine-run"), os.path.abspath(sys.argv[1])]
SECONDS = 60
ROWS, COLUMNS = 60, 200
PIECE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07]*\x07|\x1b.|([\s\S])")


class Screen:
    """The visible characters, each with its colors."""

    def __init__(self):
        self.cells, self.row, self.column, self.colors = {}, 0, 0, ""
        self.used = set()

    def draw(self, text):
        for numbers, verb, char in (match.groups() for match in PIECE.finditer(text)):
            if verb:
                self.sequence(numbers, verb)
            elif char == "\r":
                self.column = 0
            elif char == "\n":
                self.row += 1
            elif char == "\b":
                self.column = max(0, self.column - 1)
            elif char and char >= " ":
                self.cells[self.row, self.column] = (char, self.colors)
                self.used.add(self.colors)
                self.column += 1

    def sequence(self, numbers, verb):
        if numbers.startswith("?"):
            return
        counts = [int(number or 0) for number in numbers.split(";")]
        count = counts[0] or 1
        if verb == "m":
            self.colors = "" if counts[0] == 0 else f"{self.colors};{numbers}"
        elif verb == "H":
            self.row, self.column = count - 1, (counts[1:] or [1])[0] - 1
        elif verb == "K":
            self.cells = {at: cell for at, cell in self.cells.items() if at[0] != self.row or at[1] < self.column}
        elif verb in "ABCD":
            rows, columns = {"A": (-1, 0), "B": (1, 0), "C": (0, 1), "D": (0, -1)}[verb]
            self.row, self.column = self.row + count * rows, self.column + count * columns
        elif verb == "J":
            self.cells = {}
        else:
            raise ValueError(f"unknown escape sequence ESC [ {numbers} {verb}")

    def text(self):
        rows = [[""] for _ in range(1 + max((row for row, _ in self.cells), default=0))]
        for (row, column), (char, _) in sorted(self.cells.items()):
            rows[row] += [" "] * (column + 1 - len(rows[row])) + [char]
        return "\n".join("".join(row) for row in rows)

    def colors_of(self, word):
        """The colors of the first occurrence of a word."""
        for row, line in enumerate(self.text().split("\n")):
            if word in line:
                return self.cells[row, line.index(word)][1]
        raise AssertionError(f"{word!r} is not on the screen")


class Program:
    """A serverd.exe process on its own console."""

    def __init__(self, *words, **variables):
        # Removes variables that affect colors; CI enables them regardless of TERM.
        inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "CI", "CLICOLOR_FORCE")}
        environment = {**inherited, "TERM": "xterm", "LC_ALL": "C.UTF-8", **variables}
        self.screen, self.bytes, self.code = Screen(), b"", None
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
            os.execve(RUN[0], [*RUN, *words], environment)

    def type(self, keys):
        os.write(self.terminal, keys.encode())

    def read(self, seconds):
        """Draws output that arrives within `seconds`. Returns False at the end of the output."""
        if not select.select([self.terminal], [], [], seconds)[0]:
            return True
        try:
            piece = os.read(self.terminal, 65536)
        except OSError:
            return False
        self.bytes += piece
        # A character may be split across reads.
        for cut in range(len(self.bytes), max(-1, len(self.bytes) - 4), -1):
            with contextlib.suppress(UnicodeDecodeError):
                self.screen.draw(self.bytes[:cut].decode())
                self.bytes = self.bytes[cut:]
                break
        return bool(piece)

    def until(self, condition):
        end = time.monotonic() + SECONDS
        while not condition(self.screen.text()):
            alive = self.read(0.5)
            if time.monotonic() > end or not alive and not condition(self.screen.text()):
                raise AssertionError(f"expected text is missing:\n{self.screen.text()}")

    def sees(self, *words):
        self.until(lambda text: all(word in text for word in words))

    def exits_with(self, code):
        end = time.monotonic() + SECONDS
        while self.read(0.5) and time.monotonic() < end:
            pass
        self.close()
        assert self.code == code, f"exit code {self.code}, not {code}:\n{self.screen.text()}"

    def close(self):
        if self.code is not None:
            return
        end = time.monotonic() + SECONDS
        done, status = os.waitpid(self.pid, os.WNOHANG)
        while not done and time.monotonic() < end:
            time.sleep(0.05)
            done, status = os.waitpid(self.pid, os.WNOHANG)
        if not done:
            os.kill(self.pid, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
        self.code = os.waitstatus_to_exitcode(status)
        os.close(self.terminal)

    def address(self):
        self.sees("select, 1 worker)")
        return ("127.0.0.1", int(re.search(r"127\.0\.0\.1:(\d+) ", self.screen.text()).group(1)))


@contextlib.contextmanager
def program(*words, **variables):
    started = Program(*words, **variables)
    try:
        yield started
    finally:
        if started.code is None:
            os.kill(started.pid, signal.SIGKILL)
            started.close()


def send(address, request):
    with socket.create_connection(address, SECONDS) as client:
        client.sendall(request)
        response = b""
        while piece := client.recv(65536):
            response += piece
    return response


def start_request(address):
    """Starts a request and leaves the server waiting for its body."""
    client = socket.create_connection(address, SECONDS)
    client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert client.recv(1000).startswith(b"HTTP/1.1 100"), "no 100 Continue"
    return client


@contextlib.contextmanager
def peer(talk):
    """Runs a server that calls `talk` with one client and collects the result."""
    listener = socket.create_server(("127.0.0.1", 0))
    results = []

    def serve():
        client, _ = listener.accept()
        client.settimeout(SECONDS)
        with client:
            results.append(talk(client))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}", results
    thread.join(SECONDS)
    listener.close()


GET = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
GREEN, RED = "32", "31"


def start_line_and_colors():
    with tempfile.TemporaryDirectory() as directory:
        site = os.path.join(directory, "\u00fc\u6f22\u5b57")
        os.mkdir(site)
        with program("files", f"Z:{site}", "-v", "--port", "0") as server:
            send(server.address(), GET)
            send(server.address(), GET.replace(b"/ ", b"/none "))
            server.sees("serverd: serving Z:", "\u00fc\u6f22\u5b57 on http://127.0.0.1:", "GET / 200", "GET /none 404")
            assert GREEN in server.screen.colors_of("200"), server.screen.colors_of("200")
            assert GREEN not in server.screen.colors_of("404"), server.screen.colors_of("404")
            server.type("\x03")
            server.sees("shutting down gracefully")
            assert GREEN in server.screen.colors_of("INFO"), "the log has no colors"
            server.exits_with(0)


def no_colors_if_disabled():
    for words, variables in [([], {"NO_COLOR": "1"}), (["--color", "never"], {}), ([], {"TERM": "dumb"})]:
        with program("-v", "--port", "0", *words, **variables) as server:
            send(server.address(), GET)
            server.sees("GET / 200")
            server.type("\x03")
            server.sees("shutting down gracefully")
            server.exits_with(0)
            assert server.screen.used == {""}, (words, variables, server.screen.used)


def a_usage_error_in_colors():
    with program("--prt", "1") as wrong:
        wrong.exits_with(2)
        assert "unexpected argument '--prt'" in wrong.screen.text(), wrong.screen.text()
        assert RED in wrong.screen.colors_of("error:"), wrong.screen.colors_of("error:")


def ctrl_c_finishes_requests():
    with program("-v", "--port", "0") as server:
        with start_request(server.address()) as client:
            server.type("\x03")
            server.sees("shutting down gracefully; press Ctrl-C again to exit immediately")
            client.sendall(b"ab")
            response = client.recv(1000)
            assert response.startswith(b"HTTP/1.1 200"), response
        server.exits_with(0)


def a_second_ctrl_c_exits_at_once():
    with program("-v", "--port", "0") as server, start_request(server.address()):
        server.type("\x03")
        server.sees("shutting down gracefully")
        server.type("\x03")
        server.exits_with(130)


def connect_dialogue():
    """Tests characters split across writes, invalid UTF-8, and typed input, which is sent as UTF-8."""

    def talk(client):
        typed = b""
        client.sendall(b"umlaut \xc3\xbc, cut \xe6\xbc")
        time.sleep(0.3)
        client.sendall(b"\xa2, not text \xff\xe6\xbc. Go on")
        while not typed.endswith(b"\n"):
            typed += client.recv(1000)
        client.sendall(b"\r\nbye\xe6")
        return typed

    with peer(talk) as (address, results), program("connect", address) as client:
        client.sees("umlaut \u00fc, cut \u6f22, not text \ufffd\ufffd. Go on")
        client.type("caf\u00e9 \u6f22\r")
        client.sees("bye\ufffd")
        client.exits_with(0)
    assert results == ["caf\u00e9 \u6f22\r\n".encode()], results


def check_of_invalid_utf8():
    def talk(client):
        client.recv(1000)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n\xc3\xbc \xff ok")

    with peer(talk) as (address, _), program("check", f"http://{address}/", "--print", "body") as check:
        check.sees("\u00fc \ufffd ok")
        check.exits_with(0)


failed = False
for name, test in [
    ("start line, access log and log, in UTF-8 and colors", start_line_and_colors),
    ("no colors with NO_COLOR, --color never, TERM=dumb", no_colors_if_disabled),
    ("a usage error is shown in colors", a_usage_error_in_colors),
    ("Ctrl-C finishes in-flight requests and exits with 0", ctrl_c_finishes_requests),
    ("a second Ctrl-C exits at once with 130", a_second_ctrl_c_exits_at_once),
    ("connect displays and sends UTF-8, and replaces invalid UTF-8", connect_dialogue),
    ("check replaces invalid UTF-8", check_of_invalid_utf8),
]:
    start = time.monotonic()
    try:
        test()
        print(f"ok console: {name} ({time.monotonic() - start:.0f} s)", flush=True)
    except (AssertionError, OSError, ValueError) as error:
        print(f"not ok console: {name}: {error}", flush=True)
        failed = True
sys.exit(failed)

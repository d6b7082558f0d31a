#!/usr/bin/env python3
"""Many clients at once: each connects and stays, then all ask at the same moment, twice, then some ask one by one.

    crowd.py HOST:PORT CLIENTS SECONDS

Exit 0 when every client got every answer and none waited longer than SECONDS for a connection or for an answer.
"""
import errno
import resource
import selectors
import socket
import sys
import time

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
# So many connect at the same time; more would wait for the listen queue of the system, not for the server.
CONNECTING = 256
ONE_BY_ONE = 50


class Client:
    def __init__(self, address):
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.start = time.monotonic()
        self.seen = b""
        code = self.socket.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, "connect")

    def connected(self):
        code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, "connect")
        return time.monotonic() - self.start

    def ask(self):
        self.seen = b""
        self.start = time.monotonic()
        if self.socket.send(REQUEST) != len(REQUEST):
            raise OSError("a request was not taken")

    def answered(self):
        """Reads; the time that was waited once the answer is whole, or else None."""
        piece = self.socket.recv(65536)
        if not piece:
            raise OSError("closed instead of an answer")
        self.seen += piece
        head, end, body = self.seen.partition(b"\r\n\r\n")
        if not end:
            return None
        if not head.startswith(b"HTTP/1.1 200 "):
            raise OSError(f"not an answer: {head[:60]!r}")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        if len(body) > length:
            raise OSError("more than one answer")
        return time.monotonic() - self.start if len(body) == length else None


class Crowd:
    def __init__(self, address, limit):
        self.address, self.limit = address, limit
        self.selector = selectors.DefaultSelector()
        self.clients, self.errors, self.worst = [], [], 0.0

    def until(self, waiting, event, step):
        """Lets those who wait take steps until all are through, or the time is over."""
        end = time.monotonic() + self.limit
        for client in waiting:
            self.selector.modify(client.socket, event, client)
        while waiting and time.monotonic() < end:
            for key, _ in self.selector.select(0.5):
                client = key.data
                if client not in waiting:
                    continue
                try:
                    took = step(client)
                except OSError as error:
                    self.errors.append(error)
                    took = 0.0
                if took is not None:
                    waiting.discard(client)
                    self.worst = max(self.worst, took)
                    self.selector.modify(client.socket, selectors.EVENT_READ, client)
        self.errors += [f"nothing within {self.limit} s"] * len(waiting)

    def come(self, count):
        while len(self.clients) < count:
            group = [Client(self.address) for _ in range(min(CONNECTING, count - len(self.clients)))]
            for client in group:
                self.selector.register(client.socket, selectors.EVENT_WRITE, client)
            self.until(set(group), selectors.EVENT_WRITE, Client.connected)
            self.clients += group

    def ask(self, clients):
        for client in clients:
            client.ask()
        self.until(set(clients), selectors.EVENT_READ, Client.answered)

    def report(self, what, start):
        took = time.monotonic() - start
        print(f"crowd: {what}: {took:.2f} s, longest wait {self.worst:.3f} s, {len(self.errors)} errors", flush=True)
        if self.errors or self.worst > self.limit:
            sys.exit(f"crowd: failed: {self.errors[:3]}")
        self.worst = 0.0


def main():
    host, _, port = sys.argv[1].rpartition(":")
    count, limit = int(sys.argv[2]), float(sys.argv[3])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    crowd = Crowd((host, int(port)), limit)
    start = time.monotonic()
    crowd.come(count)
    crowd.report(f"{count} clients connected", start)
    for _ in range(2):
        start = time.monotonic()
        crowd.ask(crowd.clients)
        crowd.report(f"{count} clients asked at once", start)
    start = time.monotonic()
    for client in crowd.clients[:: max(1, count // ONE_BY_ONE)]:
        crowd.ask([client])
    crowd.report("some asked one by one", start)


main()

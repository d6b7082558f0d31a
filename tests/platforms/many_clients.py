#!/usr/bin/env python3
"""Runs many clients at once: all connect and stay connected, all send a request at the same time, twice, and then some
send one after another.

    many_clients.py HOST:PORT CLIENTS SECONDS

Exits with 0 if every client got every response, and none waited longer than SECONDS for a connection or a response.
"""
import errno
import resource
import selectors
import socket
import sys
import time

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
# Number of simultaneous connection attempts. With more, clients would wait for space in the listen queue rather than
# for the server.
CONNECTING = 256
ONE_BY_ONE = 50


class Client:
    def __init__(self, address):
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.start = time.monotonic()
        self.received = b""
        code = self.socket.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, "connect")

    def connected(self):
        code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, "connect")
        return time.monotonic() - self.start

    def request(self):
        self.received = b""
        self.start = time.monotonic()
        if self.socket.send(REQUEST) != len(REQUEST):
            raise OSError("the request was not sent")

    def responded(self):
        """Reads input. Returns the response time if the response is complete, else None."""
        piece = self.socket.recv(65536)
        if not piece:
            raise OSError("closed before the response")
        self.received += piece
        head, end, body = self.received.partition(b"\r\n\r\n")
        if not end:
            return None
        if not head.startswith(b"HTTP/1.1 200 "):
            raise OSError(f"unexpected response: {head[:60]!r}")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        if len(body) > length:
            raise OSError("more than one response")
        return time.monotonic() - self.start if len(body) == length else None


class Group:
    def __init__(self, address, limit):
        self.address, self.limit = address, limit
        self.selector = selectors.DefaultSelector()
        self.clients, self.errors, self.worst = [], [], 0.0

    def until(self, waiting, event, step):
        """Calls step for each waiting client on each event, until all are done or time is up."""
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
        self.errors += [f"no event within {self.limit} s"] * len(waiting)

    def connect(self, count):
        while len(self.clients) < count:
            batch = [Client(self.address) for _ in range(min(CONNECTING, count - len(self.clients)))]
            for client in batch:
                self.selector.register(client.socket, selectors.EVENT_WRITE, client)
            self.until(set(batch), selectors.EVENT_WRITE, Client.connected)
            self.clients += batch

    def request(self, clients):
        for client in clients:
            client.request()
        self.until(set(clients), selectors.EVENT_READ, Client.responded)

    def report(self, phase, start):
        took = time.monotonic() - start
        print(f"{phase}: {took:.2f} s, longest wait {self.worst:.3f} s, {len(self.errors)} errors", flush=True)
        if self.errors or self.worst > self.limit:
            sys.exit(f"failed: {self.errors[:3]}")
        self.worst = 0.0


def main():
    host, _, port = sys.argv[1].rpartition(":")
    count, limit = int(sys.argv[2]), float(sys.argv[3])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    group = Group((host, int(port)), limit)
    start = time.monotonic()
    group.connect(count)
    group.report(f"{count} clients connected", start)
    for _ in range(2):
        start = time.monotonic()
        group.request(group.clients)
        group.report(f"{count} requests at once", start)
    start = time.monotonic()
    for client in group.clients[:: max(1, count // ONE_BY_ONE)]:
        group.request([client])
    group.report("some requests one by one", start)


main()

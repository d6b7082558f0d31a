#!/usr/bin/env python3
"""Measures limits, memory, fairness and idle cost of serverd on both backends, and prints a table.

    bounds.py PATH-OF-SERVERD [--example PATH-OF-SHARED_BODY] [--only NAME] [--strict]

Needs Linux. Times depend on the machine, so they do not cause a failure unless --strict is given.
"""
import argparse
import errno
import multiprocessing
import os
import re
import resource
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
TICK = os.sysconf("SC_CLK_TCK")
rows = []


class Server:
    def __init__(self, command, preexec=None, stderr=subprocess.DEVNULL):
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, preexec_fn=preexec
        )
        line = self.process.stdout.readline()
        host, port = re.search(r"http://([0-9.]+):(\d+)", line).groups()
        self.address = (host, int(port))
        self.pid = self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def read(self, name):
        with open(f"/proc/{self.pid}/{name}") as file:
            return file.read()

    def private_bytes(self):
        """Private memory of the process."""
        total = 0
        for line in self.read("smaps_rollup").splitlines():
            if line.startswith(("Private_Clean", "Private_Dirty")):
                total += int(line.split()[1]) * 1024
        return total

    def cpu_seconds(self):
        """CPU time of all threads."""
        total = 0
        for task in os.listdir(f"/proc/{self.pid}/task"):
            total += int(self.read(f"task/{task}/schedstat").split()[0])
        return total / 1e9

    def wakeups(self):
        """Voluntary context switches of all threads: one per wake-up."""
        total = 0
        for task in os.listdir(f"/proc/{self.pid}/task"):
            status = self.read(f"task/{task}/status")
            total += int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status, re.M).group(1))
        return total

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def connect(self, source=None):
        return socket.create_connection(self.address, 20, source)


def row(name, backend, figure, value, bound, strict=True):
    ok = value <= bound
    rows.append((name, backend, figure, ok, strict))
    print(f"{name:54} {backend:7} {figure:42} {'ok' if ok else 'OVER'}", flush=True)


def request(sock):
    sock.sendall(GET)
    read_response(sock)


def read_response(sock):
    received = b""
    while b"\r\n\r\n" not in received:
        piece = sock.recv(65536)
        if not piece:
            raise ConnectionError("closed")
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head, re.I).group(1))
    while len(body) < length:
        piece = sock.recv(65536)
        if not piece:
            raise ConnectionError("closed")
        body += piece
    return int(head.split()[1])


def idle_server(backend, serverd):
    with Server([serverd, "--port", "0", "--backend", backend]) as server:
        with server.connect() as sock:
            request(sock)
        time.sleep(2)
        before = server.wakeups()
        time.sleep(10)
        count = server.wakeups() - before
        row("wake-ups of an idle server", backend, f"{count} wake-ups in 10 s", count, 0)


def idle_connections(backend, serverd):
    count = 10_000
    with Server([serverd, "--port", "0", "--backend", backend, "--idle-timeout", "10m"]) as server:
        warm = [server.connect() for _ in range(64)]
        for sock in warm:
            request(sock)
        before = server.private_bytes()
        socks = []
        for _ in range(count):
            sock = server.connect()
            request(sock)
            socks.append(sock)
        each = (server.private_bytes() - before) / count
        row("memory of an idle connection, of 10,000", backend, f"{each:.0f} bytes", each, 1024)
        time.sleep(2)
        wakeups, cpu, start = server.wakeups(), server.cpu_seconds(), time.time()
        time.sleep(20)
        seconds = time.time() - start
        share = 100 * (server.cpu_seconds() - cpu) / seconds
        rate = (server.wakeups() - wakeups) / seconds
        bound = 0.2 if backend == "epoll" else 1.0
        row("CPU use of 10,000 idle connections", backend, f"{share:.3f} % of a core", share, bound, False)
        row("wake-ups of 10,000 idle connections", backend, f"{rate:.2f} per second", rate, 2)
        for sock in socks + warm:
            sock.close()


def expiry(backend, serverd):
    """Checks that expiries of connections with many different deadlines are batched."""
    with Server([serverd, "--port", "0", "--backend", backend, "--idle-timeout", "20s"]) as server:
        descriptors, socks = server.descriptors(), []
        start = time.time()
        while time.time() - start < 15:
            sock = server.connect()
            request(sock)
            socks.append(sock)
            time.sleep(0.005)
        time.sleep(max(0.0, 21 - (time.time() - start)))
        wakeups, counted_from = server.wakeups(), time.time()
        time.sleep(12)
        rate = (server.wakeups() - wakeups) / (time.time() - counted_from)
        figure = f"{rate:.2f} per second for {len(socks) // 15} expiries per second"
        row("wake-ups while idle connections expire", backend, figure, rate, 2.2)
        time.sleep(5)
        left = server.descriptors() - descriptors
        row("descriptors left after all have expired", backend, f"{left:+}", left, 0)
        for sock in socks:
            sock.close()


def non_reading_client(backend, serverd):
    body = "x" * 100_000
    with Server([serverd, "--port", "0", "--backend", backend, "--body", body]) as server:
        with server.connect() as sock:
            request(sock)
        before = server.private_bytes()
        sock = server.connect()
        sock.settimeout(0.5)
        sent = 0
        try:
            while sent < 1 << 26:
                sent += sock.send(GET * 1000)
        except TimeoutError:
            pass
        grown = (server.private_bytes() - before) / 2**20
        row("memory of a client that sends and never reads", backend, f"+{grown:.2f} MiB", grown, 1)
        sock.close()


def stalled_readers(backend, example):
    with Server([example, "127.0.0.1:0", backend]) as server:
        with server.connect() as sock:
            request(sock)
        before = server.private_bytes()
        socks = []
        for _ in range(50):
            sock = server.connect()
            sock.sendall(GET)
            sock.recv(1000)
            socks.append(sock)
        time.sleep(1)
        grown = (server.private_bytes() - before) / 2**20
        row("memory of 50 stalled responses of 64 MiB", backend, f"+{grown:.2f} MiB", grown, 16)
        for sock in socks:
            sock.close()


def many_connections(backend, serverd, count=200_000):
    with Server([serverd, "--port", "0", "--backend", backend]) as server:

        def connect_once(number):
            # Uses many source addresses and closes with a reset, so that the client does not run out of ports.
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            sock.bind((f"127.0.{1 + number % 20}.1", 0))
            sock.connect(server.address)
            request(sock)
            sock.close()

        for number in range(2000):
            connect_once(number)
        time.sleep(0.5)
        before, descriptors, start = server.private_bytes(), server.descriptors(), time.time()
        for number in range(count):
            connect_once(number)
        seconds = time.time() - start
        time.sleep(0.5)
        grown = (server.private_bytes() - before) / 2**20
        left = server.descriptors() - descriptors
        figure = f"{grown:+.2f} MiB, {left:+} descriptors, {seconds:.0f} s"
        row(f"leaks after {count:,} connections", backend, figure, max(grown, left), 1)


def flood(address, stop):
    sock = socket.create_connection(address)
    sock.setblocking(False)
    batch = GET * 500
    view = memoryview(batch)
    offset = 0
    selector = selectors.DefaultSelector()
    selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
    while not stop.is_set():
        for _, events in selector.select(1):
            if events & selectors.EVENT_READ:
                try:
                    sock.recv(1 << 18)
                except BlockingIOError:
                    pass
            if events & selectors.EVENT_WRITE:
                try:
                    offset = (offset + sock.send(view[offset:])) % len(batch)
                except BlockingIOError:
                    pass


def fairness(backend, serverd):
    with Server([serverd, "--port", "0", "--backend", backend]) as server:
        stop = multiprocessing.Event()
        flooder = multiprocessing.Process(target=flood, args=(server.address, stop))
        flooder.start()
        time.sleep(0.5)
        times = []
        with server.connect() as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(1000):
                start = time.perf_counter()
                request(sock)
                times.append(time.perf_counter() - start)
                time.sleep(0.002)
        stop.set()
        flooder.join()
        times.sort()
        p50, p99, worst = times[500] * 1000, times[989] * 1000, times[-1] * 1000
        figure = f"p50 {p50:.2f}, p99 {p99:.2f}, max {worst:.2f} ms"
        row("latency of one client while another floods", backend, figure, p99, 40, False)


def burst(backend, serverd):
    with Server([serverd, "--port", "0", "--backend", backend]) as server:
        best = 9.0
        for _ in range(5):
            selector = selectors.DefaultSelector()
            start = time.perf_counter()
            for _ in range(500):
                sock = socket.socket()
                sock.setblocking(False)
                if sock.connect_ex(server.address) not in (0, errno.EINPROGRESS):
                    raise OSError("cannot connect")
                selector.register(sock, selectors.EVENT_WRITE)
            left = 500
            while left:
                for key, events in selector.select(20):
                    if events & selectors.EVENT_WRITE:
                        key.fileobj.send(GET)
                        selector.modify(key.fileobj, selectors.EVENT_READ)
                    elif key.fileobj.recv(4096):
                        selector.unregister(key.fileobj)
                        key.fileobj.close()
                        left -= 1
            best = min(best, time.perf_counter() - start)
        row("500 clients at once, all served", backend, f"{best * 1000:.0f} ms (best of 5)", best, 0.2, False)


def out_of_descriptors(backend, serverd):
    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    command = [serverd, "--port", "0", "--backend", backend, "--max-connections", "1000", "--head-timeout", "60s"]
    with Server(command, limit, subprocess.PIPE) as server:
        # Idle connections would be closed for new ones, so each has an unfinished request.
        part = GET[:-2]
        open_socks = [server.connect() for _ in range(40)]
        for sock in open_socks:
            request(sock)
            sock.sendall(part)
        waiting = [server.connect() for _ in range(100)]
        for sock in waiting:
            sock.sendall(part)
        time.sleep(1)
        cpu, start, count = server.cpu_seconds(), time.time(), 0
        while time.time() - start < 10:
            open_socks[count % 40].sendall(b"\r\n" + part)
            read_response(open_socks[count % 40])
            count += 1
            time.sleep(0.1)
        share = 100 * (server.cpu_seconds() - cpu) / (time.time() - start)
        row("CPU use when out of file descriptors", backend, f"{share:.2f} %, open connections served", share, 1, False)
        for sock in open_socks:
            sock.close()
        start = time.perf_counter()
        last = waiting[20]
        last.sendall(b"\r\n")
        read_response(last)
        after = time.perf_counter() - start
        row("accept once descriptors are available again", backend, f"after {after * 1000:.1f} ms", after, 0.5, False)
        os.kill(server.pid, signal.SIGTERM)
        for sock in waiting:
            sock.close()
        lines = server.process.stderr.read().count("cannot accept")
        row("log lines in about 11 s", backend, f"{lines}", lines, 13)


def idle_gives_way(backend, serverd):
    """Checks that new clients are served at the connection limit, while all connections are idle."""
    with Server([serverd, "--port", "0", "--backend", backend, "--max-connections", "100"]) as server:
        socks = [server.connect() for _ in range(100)]
        for sock in socks:
            request(sock)
        worst = 0.0
        for _ in range(1000):
            start = time.perf_counter()
            socks.append(server.connect())
            request(socks[-1])
            worst = max(worst, time.perf_counter() - start)
        figure = f"1,000 new clients, at most {worst * 1000:.1f} ms"
        row("connect at the limit, all connections idle", backend, figure, worst, 0.5, False)
        for sock in socks:
            sock.close()


def unwanted_bodies(backend, serverd):
    """Measures request bodies that no handler wants; they are discarded as they arrive."""
    with Server([serverd, "--port", "0", "--backend", backend]) as server:
        before, socks = server.private_bytes(), []
        for _ in range(300):
            sock = server.connect()
            sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1048576\r\n\r\n" + bytes(1048575))
            socks.append(sock)
        time.sleep(1)
        grown = (server.private_bytes() - before) / 2**20
        row("memory of 300 unwanted bodies of 1 MiB", backend, f"+{grown:.2f} MiB", grown, 32)
        for sock in socks:
            sock.close()


def slow_reader(server, head):
    """Sends a request and reads a little. The segments and the window are small, as is then the kernel's buffer."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    sock.settimeout(20)
    sock.connect(server.address)
    sock.sendall(head)
    return sock, sock.recv(400)


def compressed_responses(backend, serverd):
    with tempfile.TemporaryDirectory() as site:
        with open(f"{site}/text.txt", "wb") as file:
            file.write(b"".join(os.urandom(30).hex().encode() + b"\n" for _ in range(100_000)))
        with Server([serverd, "files", site, "--compress", "--port", "0", "--backend", backend]) as server:
            get = b"GET /text.txt HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n"
            before, readers = server.private_bytes(), []
            for _ in range(300):
                readers.append(slow_reader(server, get))
                time.sleep(0.03)
            time.sleep(1)
            grown = (server.private_bytes() - before) / 2**20
            encoded = sum(b"ncoding: gzip" in received for _, received in readers)
            figure = f"+{grown:.0f} MiB, {encoded} of 300 compressed"
            row("memory of compressed responses, of slow readers", backend, figure, grown, 128)
            for sock, _ in readers:
                sock.close()


def load(server):
    """Makes 6,500 clients wait for more responses than fit in the buffers. Returns their sockets."""
    with server.connect() as sock:
        request(sock)
    before = server.private_bytes()
    socks = [slow_reader(server, GET * 40)[0] for _ in range(6500)]
    time.sleep(1)
    return before, socks


def unread_output(backend, serverd):
    with Server([serverd, "--port", "0", "--backend", backend, "--body", "x" * 16_000]) as server:
        before, socks = load(server)
        grown = (server.private_bytes() - before) / 2**20
        row("memory of 6,500 clients that read almost nothing", backend, f"+{grown:.0f} MiB", grown, 300)
        for sock in socks:
            sock.close()


def memory_after_load(backend, serverd):
    """Measures the memory that is not returned to the system within 30 s after 500 MB of responses were queued."""
    command = [serverd, "--port", "0", "--backend", backend, "--body", "x" * 16_000, "--max-buffered", "1GiB"]
    with Server(command) as server:
        before, socks = load(server)
        peak = (server.private_bytes() - before) / 1e6
        # The last connection stays.
        for sock in socks[:-1]:
            sock.close()
        end, grown = time.time(), peak
        while grown > 8 and time.time() - end < 30:
            time.sleep(0.5)
            grown = (server.private_bytes() - before) / 1e6
        figure = f"+{peak:.0f} MB under load, +{grown:.1f} MB {time.time() - end:.0f} s later"
        row("memory after load", backend, figure, grown if peak > 450 else 1000, 32)


def slow_heads(backend, serverd):
    with Server([serverd, "--port", "0", "--backend", backend]) as server:
        selector = selectors.DefaultSelector()
        start = time.time()
        for _ in range(1000):
            sock = server.connect()
            sock.setblocking(False)
            sock.send(b"GET / HTTP/1.1\r\nHost: x\r\nA: ")
            selector.register(sock, selectors.EVENT_READ, [b"", time.time()])
        other = server.connect()
        timed_out, ends, worst, dripped = 0, 0, 0.0, time.time()
        while ends < 1000 and time.time() - start < 40:
            before = time.perf_counter()
            request(other)
            worst = max(worst, time.perf_counter() - before)
            drip = time.time() - dripped > 1
            dripped = time.time() if drip else dripped
            for key, _ in selector.select(0.05):
                piece = key.fileobj.recv(4096)
                if not piece:
                    took = time.time() - key.data[1]
                    timed_out += key.data[0].startswith(b"HTTP/1.1 408 ") and 10 <= took < 12
                    ends += 1
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
                else:
                    key.data[0] += piece
            if drip:
                for key in list(selector.get_map().values()):
                    if not key.data[0]:
                        key.fileobj.send(b"a")
        figure = f"{timed_out} got 408 in 10 to 12 s; others {worst * 1000:.0f} ms at most"
        row("1,000 slow request heads", backend, figure, 1000 - timed_out, 0)
        other.close()


def early_errors(backend, serverd):
    """Checks that clients that send 32 MiB receive an early error response and a clean end of the stream."""
    clean = 0
    with Server([serverd, "--port", "0", "--backend", backend]) as server:
        for _ in range(20):
            sock = server.connect()
            sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 33554432\r\n\r\n")
            try:
                for _ in range(32):
                    sock.sendall(b"x" * (1 << 20))
                received = b""
                while piece := sock.recv(65536):
                    received += piece
                clean += received.startswith(b"HTTP/1.1 413 ")
            except OSError as error:
                print(f"client with an early error: {error}")
            sock.close()
    row("error responses received, of 20, while sending 32 MiB", backend, f"{clean}", 20 - clean, 0)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("serverd")
    parser.add_argument("--example")
    parser.add_argument("--only")
    parser.add_argument("--strict", action="store_true")
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    measures = [
        idle_server, early_errors, burst, fairness, non_reading_client, out_of_descriptors, idle_gives_way, slow_heads,
        unwanted_bodies, compressed_responses, unread_output, stalled_readers, memory_after_load,
        many_connections, expiry, idle_connections,
    ]
    for measure in measures:
        if options.only and measure.__name__ not in options.only.split(","):
            continue
        program = options.serverd
        if measure is stalled_readers:
            if not options.example:
                print("SKIPPED: stalled_readers needs --example target/release/examples/shared_body")
                continue
            program = options.example
        for backend in ("epoll", "select"):
            measure(backend, program)
    return any(not ok and (strict or options.strict) for *_, ok, strict in rows)


if __name__ == "__main__":
    sys.exit(main())

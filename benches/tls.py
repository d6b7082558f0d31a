#!/usr/bin/env python3
"""Compares serverd over TLS with nginx: the CPU time of handshakes, requests and downloads, and the memory of idle
connections. Both use one worker, TLS 1.3, X25519 and the same P-256 certificate, and the rounds of the two alternate.

    benches/tls.py [BINARY]                    print the medians; BINARY is target/release/serverd by default
    benches/tls.py --latency [BINARY]          response times beside silent clients and many handshakes
    benches/tls.py --instructions [BINARY]     instructions per keep-alive request, counted by valgrind: for the fixed
                                               response of `serverd http`, and for a file of 100 bytes beside nginx

By default, only CPU time of the servers is measured, so the load of the machine matters little. Response times need an
idle machine with two cores: one for the server, and one for all clients. Linux only.
"""
import contextlib
import multiprocessing
import os
import resource
import selectors
import socket
import ssl
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path

import measure
from measure import NGINX_PATHS, free_port

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 5
HANDSHAKES = 500
IDLE = 1000
REQUESTS = 10_000
DOWNLOADS = 3
SILENT = 1000
HANDSHAKING = 200
ESTABLISHED = 20
LATENCY_SECONDS = 5
COUNTED = (200, 1200)
FILE_BYTES = 100 << 20
REQUEST = b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n"
NGINX = """daemon off; pid %(dir)s/pid; error_log %(dir)s/error.log; worker_processes 1; user root;
events { worker_connections 8192; }
http {
    access_log off; sendfile on; keepalive_requests 1000000; keepalive_timeout 600;
    """ + NGINX_PATHS + """
    server {
        listen 127.0.0.1:%(port)d ssl; root %(root)s;
        ssl_certificate %(tls)s/a.pem; ssl_certificate_key %(tls)s/a.key; ssl_protocols TLSv1.3; ssl_ecdh_curve X25519;
    }
}
"""


class Server(measure.Listening):
    """A running server."""

    def memory(self) -> int:
        fields = Path(f"/proc/{self.pid}/smaps_rollup").read_text().split("Private_Dirty:")
        return int(fields[1].split()[0]) * 1024

    def connect(self) -> ssl.SSLSocket:
        stream = socket.create_connection(("127.0.0.1", self.port))
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return CONTEXT.wrap_socket(stream, server_hostname="localhost")


CONTEXT = ssl.create_default_context(cafile=ROOT / "tests/tls/a.pem")
CONTEXT.minimum_version = ssl.TLSVersion.TLSv1_3


def get(stream: ssl.SSLSocket, name: bytes) -> None:
    """Request a file and read the response, whose length must be announced."""
    stream.sendall(REQUEST % name)
    got = b""
    while b"\r\n\r\n" not in got:
        piece = stream.recv(65536)
        if not piece:
            raise SystemExit("tls.py: the server closed early")
        got += piece
    head, _, body = got.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise SystemExit(f"tls.py: unexpected response {head!r}")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    rest = int(lengths[0]) - len(body)
    while rest > 0:
        piece = stream.recv(min(rest, 1 << 20))
        if not piece:
            raise SystemExit("tls.py: the server closed early")
        rest -= len(piece)


def cpu_ns(server: Server, name: bytes, count: int) -> float:
    """CPU time per response on one connection, after a first response that is not counted."""
    with server.connect() as stream:
        get(stream, name)
        start = server.cpu_ns()
        for _ in range(count):
            get(stream, name)
        return (server.cpu_ns() - start) / count


def handshake_us(server: Server) -> float:
    start = server.cpu_ns()
    for _ in range(HANDSHAKES):
        with server.connect() as stream:
            get(stream, b"small")
    return (server.cpu_ns() - start) / HANDSHAKES / 1000


def request_us(server: Server) -> float:
    return cpu_ns(server, b"small", REQUESTS) / 1000


def download_mb_per_s(server: Server) -> float:
    return FILE_BYTES / 1e6 / (cpu_ns(server, b"large", DOWNLOADS) / 1e9)


def idle_bytes(server: Server) -> float:
    """Memory per connection that made one request. Must be measured first: freed memory is used again."""
    with contextlib.ExitStack() as streams:
        # The first connections also allocate what the server needs once.
        for _ in range(50):
            get(streams.enter_context(server.connect()), b"small")
        start = server.memory()
        for _ in range(IDLE):
            get(streams.enter_context(server.connect()), b"small")
        return (server.memory() - start) / IDLE


def client_hello() -> bytes:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(received, sent, server_hostname="localhost").do_handshake()
    return sent.read()


def flood(port: int, stop: multiprocessing.Event, count: multiprocessing.Value) -> None:
    """Runs clients that send a recorded ClientHello, read the first bytes of the answer and start again. This costs the
    server a key exchange and a signature, and the client next to nothing."""
    os.nice(5)
    hello, selector = client_hello(), selectors.DefaultSelector()

    def connect() -> None:
        stream = socket.socket()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.setblocking(False)
        stream.connect_ex(("127.0.0.1", port))
        selector.register(stream, selectors.EVENT_WRITE)

    for _ in range(HANDSHAKING):
        connect()
    while not stop.is_set():
        for key, events in selector.select(0.1):
            try:
                if events & selectors.EVENT_WRITE:
                    key.fileobj.send(hello)
                    selector.modify(key.fileobj, selectors.EVENT_READ)
                    continue
                count.value += key.fileobj.recv(4096) != b""
            except OSError:
                pass
            selector.unregister(key.fileobj)
            key.fileobj.close()
            connect()


def latencies_ms(server: Server) -> list[float]:
    """Response times of established connections, sorted, and the handshakes per second beside them at the end."""
    for task in Path(f"/proc/{server.pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {0})
    os.sched_setaffinity(0, {1})
    times: list[float] = []
    with contextlib.ExitStack() as streams:
        established = [streams.enter_context(server.connect()) for _ in range(ESTABLISHED)]
        for _ in range(SILENT):
            streams.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        stop, count = multiprocessing.Event(), multiprocessing.Value("i", 0)
        load = multiprocessing.Process(target=flood, args=(server.port, stop, count))
        load.start()
        time.sleep(0.5)
        first, start = count.value, time.monotonic()
        while time.monotonic() < start + LATENCY_SECONDS:
            for stream in established:
                sent = time.monotonic()
                get(stream, b"small")
                times.append((time.monotonic() - sent) * 1000)
                time.sleep(0.0005)
        rate = (count.value - first) / (time.monotonic() - start)
        stop.set()
        load.join()
    return [*sorted(times), rate]


def print_latencies(binary: str, directory: Path) -> None:
    results: dict[str, list[list[float]]] = {}
    for _ in range(ROUNDS):
        for peer in ("serverd", "nginx"):
            with started(peer, binary, directory) as server:
                results.setdefault(peer, []).append(latencies_ms(server))
    print(f"{'ms, medians of the rounds':26} {'p50':>8} {'p99':>8} {'max':>8} {'handshakes/s':>13}")
    for peer, rounds in results.items():
        def at(share: float) -> float:
            return statistics.median(times[int(share * (len(times) - 2))] for times in rounds)
        rate = statistics.median(times[-1] for times in rounds)
        print(f"{peer:26} {at(0.5):8.2f} {at(0.99):8.2f} {at(1):8.2f} {rate:13,.0f}")


def print_instructions(binary: str, directory: Path) -> None:
    for peer, title, name in (("http", "serverd, fixed response", b""), ("serverd", "serverd, file of 100 bytes", b"small"),
                              ("nginx", "nginx, file of 100 bytes", b"small")):
        totals = []
        for count in COUNTED:
            output = directory / "callgrind"
            with started(peer, binary, directory, measure.callgrind(output)) as server, server.connect() as stream:
                for _ in range(count):
                    get(stream, name)
                suite = stream.cipher()[0]
            totals.append(measure.instructions(output))
        mean = (totals[1] - totals[0]) / (COUNTED[1] - COUNTED[0])
        print(f"{title:26} {mean:10,.0f} instructions per request ({suite})")


@contextlib.contextmanager
def started(name: str, binary: str, directory: Path, wrapper: list[str] | None = None):
    server = start(name, binary, directory, wrapper or [])
    try:
        yield server
    finally:
        server.stop()


def start(name: str, binary: str, directory: Path, wrapper: list[str]) -> Server:
    port, root, tls = free_port(), directory / "root", ROOT / "tests/tls"
    if name == "nginx":
        config = directory / "nginx.conf"
        # Valgrind counts the instructions of one process.
        text = ("master_process off; " if wrapper else "") + NGINX
        config.write_text(text % {"dir": directory, "root": root, "tls": tls, "port": port})
        command = ["nginx", "-c", str(config), "-e", str(directory / "error.log")]
    else:
        served = ["http"] if name == "http" else ["files", str(root)]
        command = [binary, *served, "--port", str(port), "--tls-cert", f"{tls}/a.pem", "--tls-key", f"{tls}/a.key",
                   "--access-log", "off", "--idle-timeout", "10m"]
    return Server(wrapper + command, port)


def main() -> None:
    modes = {"--latency": print_latencies, "--instructions": print_instructions}
    mode = modes.get(sys.argv[1]) if len(sys.argv) > 1 else None
    arguments = sys.argv[2:] if mode else sys.argv[1:]
    binary = arguments[0] if arguments else str(ROOT / "target/release/serverd")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    measures = {"memory of an idle connection, bytes": idle_bytes, "handshake and request, us": handshake_us,
                "keep-alive request, us": request_us, "download, MB per CPU second": download_mb_per_s}
    results: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "root").mkdir()
        (directory / "root/small").write_bytes(b"x" * 100)
        (directory / "root/large").write_bytes(b"x" * FILE_BYTES)
        if mode:
            mode(binary, directory)
            return
        for _ in range(ROUNDS):
            for peer in ("serverd", "nginx"):
                with started(peer, binary, directory) as server:
                    for title, measure in measures.items():
                        results.setdefault((title, peer), []).append(measure(server))
    print(f"{'':36} {'serverd':>10} {'nginx':>10} {'ratio':>6}")
    for title in measures:
        ours, theirs = (statistics.median(results[title, peer]) for peer in ("serverd", "nginx"))
        print(f"{title:36} {ours:10,.1f} {theirs:10,.1f} {ours / theirs:6.2f}")


if __name__ == "__main__":
    main()

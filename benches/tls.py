#!/usr/bin/env python3
"""Compares serverd over TLS with nginx: the CPU time of handshakes, requests and downloads, and the memory of idle
connections. Both use one worker, TLS 1.3, X25519 and the same P-256 certificate, and the rounds of the two alternate.

    benches/tls.py [BINARY]             print the medians; BINARY is target/release/serverd by default

Only CPU time of the servers is measured, so the load of the machine matters little. Linux only.
"""
import contextlib
import resource
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 5
HANDSHAKES = 500
IDLE = 1000
REQUESTS = 10_000
DOWNLOADS = 3
FILE_BYTES = 100 << 20
REQUEST = b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n"
NGINX = """daemon off; pid %(dir)s/pid; error_log %(dir)s/error.log; worker_processes 1; user root;
events { worker_connections 8192; }
http {
    access_log off; sendfile on; keepalive_requests 1000000; keepalive_timeout 600;
    client_body_temp_path %(dir)s/b; proxy_temp_path %(dir)s/p; fastcgi_temp_path %(dir)s/f; uwsgi_temp_path %(dir)s/u;
    scgi_temp_path %(dir)s/s;
    server {
        listen 127.0.0.1:%(port)d ssl; root %(root)s;
        ssl_certificate %(tls)s/a.pem; ssl_certificate_key %(tls)s/a.key; ssl_protocols TLSv1.3; ssl_ecdh_curve X25519;
    }
}
"""


class Server:
    """A running server, and the process that serves."""

    def __init__(self, name: str, process: subprocess.Popen, port: int):
        self.name, self.process, self.port = name, process, port
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            if time.monotonic() > deadline:
                raise SystemExit(f"tls.py: {name} does not listen")
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        self.pid = int(children[0]) if children else process.pid

    def cpu_ns(self) -> int:
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)

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


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(name: str, binary: str, directory: Path) -> Server:
    port, root, tls = free_port(), directory / "root", ROOT / "tests/tls"
    if name == "nginx":
        config = directory / "nginx.conf"
        config.write_text(NGINX % {"dir": directory, "root": root, "tls": tls, "port": port})
        command = ["nginx", "-c", str(config), "-e", str(directory / "error.log")]
    else:
        command = [binary, "files", str(root), "--port", str(port), "--tls-cert", f"{tls}/a.pem", "--tls-key",
                   f"{tls}/a.key", "--access-log", "off", "--idle-timeout", "10m"]
    return Server(name, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), port)


def main() -> None:
    binary = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "target/release/serverd")
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
        for _ in range(ROUNDS):
            for peer in ("serverd", "nginx"):
                server = start(peer, binary, directory)
                try:
                    for title, measure in measures.items():
                        results.setdefault((title, peer), []).append(measure(server))
                finally:
                    server.process.send_signal(signal.SIGTERM)
                    server.process.wait()
    print(f"{'':36} {'serverd':>10} {'nginx':>10} {'ratio':>6}")
    for title in measures:
        ours, theirs = (statistics.median(results[title, peer]) for peer in ("serverd", "nginx"))
        print(f"{title:36} {ours:10,.1f} {theirs:10,.1f} {ours / theirs:6.2f}")


if __name__ == "__main__":
    main()

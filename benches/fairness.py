#!/usr/bin/env python3
"""Measures the response times of one keep-alive client, alone and beside clients that keep the server busy, for serverd on
both backends and for nginx, each with one worker. The rounds of the servers alternate.

    benches/fairness.py [BINARY]     print the medians of the rounds; BINARY is target/release/serverd by default

The server runs on one core, and all clients on another. Needs Linux with two idle cores, wrk, curl and nginx.
"""
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import LUA, NGINX_PATHS, TEXT, free_port

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 3
SAMPLES = 400
INTERVAL_SECONDS = 0.005
FILE_BYTES = 100 << 20
REQUEST = b"GET /small.txt HTTP/1.1\r\nHost: localhost\r\n\r\n"
NGINX = """daemon off; pid %(dir)s/pid; error_log %(dir)s/error.log; worker_processes 1; user root;
events { worker_connections 8192; }
http {
    access_log off; sendfile on; keepalive_requests 1000000000; open_file_cache max=100;
    """ + NGINX_PATHS + """
    server { listen 127.0.0.1:%(port)d backlog=4096; root %(dir)s/root; }
}
"""


def wrk(connections: int, depth: int, closes: bool):
    def command(folder: Path, port: int) -> list[list[str]]:
        head = REQUEST[:-2] + (b"Connection: close\r\n\r\n" if closes else b"\r\n")
        (folder / "request").write_bytes(head)
        return [["env", f"REQUEST={folder / 'request'}", f"DEPTH={depth}", "wrk", "-t1", f"-c{connections}", "-d60s", "-s",
                 str(folder / "load.lua"), f"http://127.0.0.1:{port}/"]]
    return command


def downloads(count: int):
    def command(_: Path, port: int) -> list[list[str]]:
        urls = [f"http://127.0.0.1:{port}/large.bin"] * 1000
        return [["curl", "-s", *(word for url in urls for word in ("-o", "/dev/null", url))]] * count
    return command


# name: the commands of the other clients
LOADS = {
    "alone": lambda _folder, _port: [],
    "64 keep-alive clients": wrk(64, 1, False),
    "64 clients that pipeline 16 requests": wrk(64, 16, False),
    "64 clients that reconnect for each request": wrk(64, 1, True),
    "8 downloads of 100 MiB": downloads(8),
}


@contextlib.contextmanager
def running(commands: list[list[str]], core: str):
    processes = [subprocess.Popen(["taskset", "-c", core, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                 for command in commands]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def connect(port: int) -> socket.socket:
    for _ in range(200):
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", port), 60)
        time.sleep(0.02)
    raise SystemExit("the server does not start")


def sample(port: int) -> list[float]:
    """Return response times in milliseconds."""
    times = []
    with connect(port) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(SAMPLES):
            time.sleep(INTERVAL_SECONDS)
            start = time.perf_counter()
            stream.sendall(REQUEST)
            response = b""
            while not response.endswith(TEXT):
                piece = stream.recv(4096)
                assert piece, f"closed after {response}"
                response += piece
            times.append((time.perf_counter() - start) * 1000)
    return times


def measure(server: list[str], folder: Path, port: int, load) -> tuple[float, float]:
    """Return the median and the 99th percentile of the response times."""
    with running([server], "0"):
        connect(port).close()
        with running(load(folder, port), "1") as clients:
            if clients:
                time.sleep(0.5)
            times = statistics.quantiles(sample(port), n=100)
            assert all(client.poll() is None for client in clients), "a client has ended"
    return times[49], times[98]


def main() -> None:
    binary = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "target/release/serverd")
    os.sched_setaffinity(0, {1})
    with tempfile.TemporaryDirectory(prefix="serverd-bench-") as name:
        folder = Path(name)
        (folder / "load.lua").write_text(LUA)
        (folder / "root").mkdir()
        (folder / "root/small.txt").write_bytes(TEXT)
        with open(folder / "root/large.bin", "wb") as file:
            file.truncate(FILE_BYTES)
        folder.chmod(0o755)

        def commands(port: int) -> dict[str, list[str]]:
            (folder / "nginx.conf").write_text(NGINX % {"dir": name, "port": port})
            serverd = [binary, "files", f"{name}/root", "--port", str(port), "--workers", "1", "--backend"]
            return {"epoll": [*serverd, "epoll"], "select": [*serverd, "select"],
                    "nginx": ["nginx", "-c", f"{name}/nginx.conf"]}

        print("| p50 / p99 in ms, beside | epoll | select | nginx |\n|---|---|---|---|")
        for label, load in LOADS.items():
            results: dict[str, list[tuple[float, float]]] = {}
            for _ in range(ROUNDS):
                port = free_port()
                for server, command in commands(port).items():
                    results.setdefault(server, []).append(measure(command, folder, port, load))
            cells = [" / ".join(f"{statistics.median(values):.2f}" for values in zip(*rounds)) for rounds in results.values()]
            print(f"| {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

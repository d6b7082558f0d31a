#!/usr/bin/env python3
"""Compares examples/reverse_proxy with nginx as a reverse proxy: CPU time per request, for responses of 1 KiB, 64 client
connections, and keep-alive connections to an upstream nginx. Both use one worker, and their rounds alternate.

`null-proxy` (benches/null) is the lower bound: a C program that only forwards the bytes, with two reads and two writes per
request.

    benches/proxy.py [BINARY]                   BINARY is target/release/examples/reverse_proxy by default
    benches/proxy.py --instructions [BINARY]    user-space instructions per request, counted by valgrind

Only the CPU time of the proxies is measured, so that other load affects the result less. Linux only; needs cc,
nginx and wrk.
"""
import contextlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import measure
from measure import NGINX_PATHS, Listening, free_port

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 11
SECONDS = 3
CONNECTIONS = 64
COUNTED = (200, 1200)
BODY_BYTES = 1024
NGINX = """daemon off; pid %(dir)s/%(port)d.pid; error_log %(dir)s/error.log crit; worker_processes 1; user root;
events { worker_connections 1024; }
http {
    access_log off; keepalive_requests 1000000000; keepalive_timeout 600;
    """ + NGINX_PATHS + """
    %(body)s
}
"""
UPSTREAM = "server { listen 127.0.0.1:%(port)d; root %(dir)s/root; open_file_cache max=10; }"
PROXY = """
    upstream up { server 127.0.0.1:%(upstream)d; keepalive 64; keepalive_requests 1000000000; }
    server {
        listen 127.0.0.1:%(port)d;
        location / {
            proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
            proxy_set_header Forwarded "for=$remote_addr;proto=$scheme;host=\\"$http_host\\"";
            proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Host $http_host; proxy_set_header Via "1.1 nginx"; proxy_set_header X-Real-IP "";
        }
    }
"""


def nginx(directory: Path, port: int, body: str, one_process: bool = False) -> list[str]:
    config = directory / f"{port}.conf"
    text = ("master_process off; " if one_process else "") + NGINX
    config.write_text(text % {"dir": directory, "port": port, "body": body})
    return ["nginx", "-c", str(config), "-e", str(directory / "error.log")]


@contextlib.contextmanager
def proxy(name: str, binary: str, directory: Path, upstream: int, wrapper: list[str] = ()):
    port = free_port()
    if name == "nginx":
        body = PROXY % {"port": port, "upstream": upstream}
        command = nginx(directory, port, body, bool(wrapper))
    elif name == "null-proxy":
        command = [str(directory / name), str(port), str(upstream)]
    else:
        command = [binary, f"127.0.0.1:{port}", f"http://127.0.0.1:{upstream}"]
    server = Listening([*wrapper, *command], port)
    try:
        yield server
    finally:
        server.stop()


def cpu_us(server: Listening) -> float:
    """CPU time per request."""
    load = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", f"http://127.0.0.1:{server.port}/file"]
    subprocess.run([*load[:3], "-d1s", load[4]], check=True, stdout=subprocess.DEVNULL)
    start = server.cpu_ns()
    output = subprocess.run(load, check=True, capture_output=True, text=True).stdout
    used = server.cpu_ns() - start
    if "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(f"proxy.py: some requests failed:\n{output}")
    return used / 1000 / int(re.search(r"(\d+) requests in", output).group(1))


def instructions(name: str, binary: str, directory: Path, upstream: int) -> float:
    """Instructions per request on one connection."""
    totals = []
    for count in COUNTED:
        output = directory / "callgrind"
        wrapper = measure.callgrind(output)
        with proxy(name, binary, directory, upstream, wrapper) as server:
            with socket.create_connection(("127.0.0.1", server.port)) as stream:
                for _ in range(count):
                    stream.sendall(b"GET /file HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    got = b""
                    while len(got.partition(b"\r\n\r\n")[2]) < BODY_BYTES:
                        if not (piece := stream.recv(65536)):
                            raise SystemExit(f"{name} has closed the connection")
                        got += piece
        totals.append(measure.instructions(output))
    return (totals[1] - totals[0]) / (COUNTED[1] - COUNTED[0])


def main() -> None:
    arguments = sys.argv[1:]
    counts = "--instructions" in arguments
    binaries = [argument for argument in arguments if not argument.startswith("--")]
    binary = binaries[0] if binaries else str(ROOT / "target/release/examples/reverse_proxy")
    rounds, count, unit = (1, instructions, "instructions") if counts else (ROUNDS, None, "us of CPU")
    results: dict[str, list[float]] = {"serverd": [], "nginx": [], "null-proxy": []}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "root").mkdir()
        subprocess.run(["cc", "-O2", "-o", directory / "null-proxy", ROOT / "benches/null/null-proxy.c"], check=True)
        (directory / "root/file").write_bytes(b"x" * BODY_BYTES)
        port = free_port()
        upstream = Listening(nginx(directory, port, UPSTREAM % {"port": port, "dir": directory}), port)
        try:
            for _ in range(rounds):
                for peer, values in results.items():
                    if count:
                        values.append(count(peer, binary, directory, port))
                        continue
                    with proxy(peer, binary, directory, port) as server:
                        values.append(cpu_us(server))
        finally:
            upstream.stop()
    base = statistics.median(results["nginx"])
    for peer, values in results.items():
        median = statistics.median(values)
        print(f"{peer:10} {median:10,.1f} {unit} per request ({min(values):,.1f} to {max(values):,.1f})"
              f", {median / base:.2f} x nginx")


if __name__ == "__main__":
    main()

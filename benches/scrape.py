#!/usr/bin/env python3
"""Measures the time of a scrape of /metrics beside idle connections, which has a limit of 2 ms.

    cargo build --release && benches/scrape.py [--serverd target/release/serverd] [--connections 10000] [--scrapes 200]

Each scrape has a connection of its own, as after a restart of Prometheus, and is measured from connect to the last byte.
Prints the median, the 99th percentile and the size, without and with the idle connections. Linux only; 10,000 connections
need as many file descriptors (ulimit -Hn).
"""
import argparse
import http.client
import time

import measure


def scrape(port: int) -> tuple[float, int]:
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics", headers={"Connection": "close"})
    response = connection.getresponse()
    text = response.read()
    assert response.status == 200 and text.endswith(b"\n"), response.status
    return (time.perf_counter() - start) * 1000, len(text)


def report(what: str, port: int, count: int) -> None:
    # The first one may read the binary from disk.
    scrape(port)
    times = sorted(scrape(port)[0] for _ in range(count))
    size = scrape(port)[1]
    print(f"{what}: median {measure.median(times):.2f} ms, 99 % {times[count * 99 // 100 - 1]:.2f} ms, {size:,} bytes", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serverd", default="target/release/serverd")
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--scrapes", type=int, default=200)
    options = parser.parse_args()
    measure.raise_limits()
    workspace = measure.Workspace()
    admin = measure.free_port()
    command = f"{options.serverd} --host 127.0.0.1 --port {{port}} --workers 2 --idle-timeout 10m --admin 127.0.0.1:{admin} "
    command += f"--max-connections {options.connections + 100}"
    try:
        with measure.Server(workspace, command, measure.Scenario()) as server:
            report("no other connections", admin, options.scrapes)
            held = server.hold(options.connections)
            report(f"{len(held):,} connections", admin, options.scrapes)
    finally:
        workspace.close()


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Requests files of a server whose look-ups take 50 ms and more, and checks that no look-up is made by its loop.

    slow_files.py PORT NAME TRACE

TRACE is the output of `strace -f -e trace=openat2` for the server.
"""
import http.client
import sys
import threading
import time
from collections import Counter

PORT, NAME, TRACE = int(sys.argv[1]), sys.argv[2], sys.argv[3]


def request(method, path):
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
    connection.request(method, path)
    response = connection.getresponse()
    status, body = response.status, response.read().decode()
    connection.close()
    return status, body


def look_ups():
    """Return the number of files looked up so far by each thread."""
    with open(TRACE) as trace:
        return Counter(line.split()[0] for line in trace if " openat2(" in line)


# Two slow look-ups, after which other threads make them.
for _ in range(2):
    assert request("GET", "/none")[0] == 404
by_loop = look_ups()
assert by_loop, "nothing was traced"

failures = []


def check(path, expected):
    found = request("GET", path)
    if found[0] != expected[0] or (expected[1] is not None and found[1] != expected[1]):
        failures.append((path, found, expected))


expected = [(f"/{number}.txt", (200, f"{number}\n")) for number in range(1, 41)]
expected += [("/missing", (404, None)), ("/sub", (301, None)), ("/sub/", (200, None)), ("/", (200, None))]
start = time.monotonic()
threads = [threading.Thread(target=check, args=pair) for pair in expected]
for thread in threads:
    thread.start()
latencies = []
while any(thread.is_alive() for thread in threads):
    sent = time.monotonic()
    assert request("POST", "/")[0] == 405  # answered without a look-up
    latencies.append(time.monotonic() - sent)
seconds = time.monotonic() - start
for thread in threads:
    thread.join()
assert not failures, failures
after = look_ups()
blocked = {thread: after[thread] - count for thread, count in by_loop.items() if after[thread] != count}
assert not blocked, f"look-ups by the loop: {blocked}"
assert after.total() >= by_loop.total() + len(expected), (by_loop, after)
latencies.sort()
middle, longest = latencies[len(latencies) // 2], latencies[-1]
print(f"{NAME}: {len(expected)} look-ups in {seconds:.1f} s; others in {1000 * middle:.1f} ms, at most {1000 * longest:.0f} ms")

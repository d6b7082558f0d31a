#!/usr/bin/env python3
"""Writes seed inputs for the fuzz targets: fuzz_seeds.py DIRECTORY

Requests are taken from the conformance cases. Each seed begins with a byte that selects the limits and the way the
input is split (see fuzz/fuzz_targets).
"""

import pathlib
import sys
import tomllib

root = pathlib.Path(__file__).resolve().parent.parent
files = sorted((root / "conformance").glob("*.toml"))
cases = [case for file in files for case in tomllib.loads(file.read_text())["case"]]
OK = "HTTP/1.1 200 OK\r\n"
RESPONSES = [
    OK + "Content-Length: 2\r\n\r\nhi",
    OK + "Content-Length: 2\r\ncontent-length:2\r\n\r\nhi",
    OK + "Transfer-Encoding: chunked\r\nTrailer: a\r\n\r\n2;x=\"y\"\r\nhi\r\n1\r\n!\r\n0\r\na: b\r\n\r\n",
    OK + "Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    OK + "Transfer-Encoding: gzip\r\n\r\nhi",
    OK + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    OK + "a: b\r\n folded\r\n\r\n",
    "HTTP/1.0 200 OK\r\nServer: \xfc\r\n\r\nuntil the end",
    "HTTP/1.1 200\n\nhi",
    "HTTP/1.1 204 No Content\r\n\r\n",
    "HTTP/1.1 304 \r\nContent-Length: 9\r\nETag: \"x\"\r\n\r\n",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    "HTTP/2.0 200 OK\r\n\r\n",
    "SSH-2.0-OpenSSH_9.9\r\n",
]
out = pathlib.Path(sys.argv[1])
for target in ("head", "chunked", "connection", "response"):
    (out / target).mkdir(parents=True, exist_ok=True)
for case in cases:
    steps = case["send"] if isinstance(case["send"], list) else [case["send"]]
    data = b""
    for step in steps:
        if isinstance(step, str):
            data += step.encode("latin-1")
        elif "repeat" in step:
            data += step["repeat"].encode("latin-1") * min(step["times"], 50)
    data = data[:4000]
    for target in ("head", "connection"):
        for limits in (0, 1):
            (out / target / f"{case['id']}-{limits}").write_bytes(bytes([limits]) + data)
    _, found, body = data.partition(b"\r\n\r\n")
    if b"chunked" in data and found:
        for limits in (0, 1):
            (out / "chunked" / f"{case['id']}-{limits}").write_bytes(bytes([limits]) + body)
for number, response in enumerate(RESPONSES):
    for limits in (0, 1):
        (out / "response" / f"{number}-{limits}").write_bytes(bytes([limits]) + response.encode("latin-1"))

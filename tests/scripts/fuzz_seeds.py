#!/usr/bin/env python3
"""Writes seed inputs for the fuzz targets: fuzz_seeds.py DIRECTORY

Requests are taken from the conformance cases. Each seed begins with a byte that selects the limits and the way the
input is split (see fuzz/fuzz_targets), or for TLS the flights that precede it.
"""

import pathlib
import ssl
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
for target in ("head", "chunked", "connection", "response", "tls"):
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


def client_hello(version: ssl.TLSVersion) -> bytes:
    context = ssl.create_default_context()
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["http/1.1"])
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        context.wrap_bio(received, sent, server_hostname="localhost").do_handshake()
    except ssl.SSLWantReadError:
        pass
    return sent.read()


def record(kind: int, content: bytes) -> bytes:
    return bytes([kind, 3, 3]) + len(content).to_bytes(2, "big") + content


HELLO = client_hello(ssl.TLSVersion.TLSv1_3)
TLS = [
    HELLO,
    client_hello(ssl.TLSVersion.TLSv1_2),
    # The hello in two records, and an older version.
    record(22, HELLO[5:60]) + record(22, HELLO[60:]),
    HELLO[:9] + b"\x03\x01" + HELLO[11:],
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x80\x2e\x01\x00\x02" + bytes(41),
    record(21, b"\x01\x00"),
    record(20, b"\x01") * 40,
    record(23, bytes(64)),
    record(22, b"\x01\xff\xff\xff" + bytes(16000)) * 4 + record(22, bytes(1900)),
    record(22, b"\x18\x00\x00\x01\x01"),
]
for number, data in enumerate(TLS):
    for flights in (0, 1, 2, 4, 5) if len(data) < 10_000 else (0,):
        (out / "tls" / f"{number}-{flights}").write_bytes(bytes([flights]) + data)

#!/usr/bin/env python3
"""Writes the inputs of the conformance cases as seeds for the fuzz targets: fuzz_seeds.py DIRECTORY.

Each seed begins with the octet that chooses limits and cuts (see fuzz/fuzz_targets)."""

import pathlib
import sys
import tomllib

root = pathlib.Path(__file__).resolve().parent.parent
files = sorted((root / "conformance").glob("*.toml"))
cases = [case for file in files for case in tomllib.loads(file.read_text())["case"]]
out = pathlib.Path(sys.argv[1])
for target in ("head", "chunked", "connection"):
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

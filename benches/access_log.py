#!/usr/bin/env python3
"""Compares the CPU time per request with the access log, and with metrics, to that without either.

    cargo build --release
    benches/access_log.py [--rounds 9] [--seconds 1] [--serverd target/release/serverd] [plain pipeline16 ...]

In each round all variants run one after the other, so that a change of the machine's speed affects all of them. Prints
the medians of the CPU time of all threads, and of its ratio to `off` in the same round. The log is a file in a temporary
directory. Linux only; needs wrk.
"""
import argparse
import tempfile
from pathlib import Path

import measure

VARIANTS = {
    "off": "--access-log off",
    "combined": "--access-log {folder}/log --log-format combined",
    "json": "--access-log {folder}/log --log-format json",
    "metrics": "--access-log off --admin unix:{folder}/admin",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serverd", default="target/release/serverd")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=int, default=1)
    parser.add_argument("scenarios", nargs="*", default=["plain", "full-browser", "pipeline16"])
    options = parser.parse_args()
    measure.raise_limits()
    workspace = measure.Workspace()
    try:
        for name in options.scenarios:
            compare(workspace, name, options)
    finally:
        workspace.close()


def compare(workspace: measure.Workspace, name: str, options: argparse.Namespace) -> None:
    costs, ratios = {}, {}
    for _ in range(options.rounds):
        for variant, arguments in VARIANTS.items():
            with tempfile.TemporaryDirectory() as folder:
                command = f"{options.serverd} --host 127.0.0.1 --port {{port}} --workers 1 --backend epoll "
                command += arguments.replace("{folder}", folder)
                cost = measure.run_round(workspace, command, measure.SCENARIOS[name], options.seconds)
                log = Path(folder) / "log"
                assert ("/log" in arguments) == (log.exists() and log.stat().st_size > 0), f"{variant}: no line was logged"
            costs.setdefault(variant, []).append(cost)
            ratios.setdefault(variant, []).append(cost / costs["off"][-1])
    print(f"\n| {name} | CPU per request, us | x off |\n|:--|--:|--:|")
    for variant, values in costs.items():
        print(f"| {variant} | {measure.median(values):.2f} | {measure.median(ratios[variant]):.2f} |", flush=True)


if __name__ == "__main__":
    main()

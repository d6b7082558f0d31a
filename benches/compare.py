#!/usr/bin/env python3
"""Compares the CPU time per request of several servers, relative to a baseline server that does not parse.

    cargo build --release
    cargo build --release --manifest-path benches/peers/Cargo.toml      # hyper and may_minihttp
    benches/compare.py [--rounds 7] [--seconds 1] [--peer NAME='COMMAND {port}'] [full churn ...]

The baseline is `null-epoll` (benches/null): a C program that makes only the system calls a readiness loop cannot avoid,
and only searches for the end of a head. For each server, prints the median ratio of its CPU time to that of null-epoll
in the same round: on a noisy machine the ratio is stable, while the microseconds are not. Server and load generator
(wrk) run on separate cores; in the `full` scenarios they share one, so that the server always finds a full batch of
events. nginx is included if installed. As root, prefix the command with `nice -n -10` to reduce noise. Linux only.
"""
import argparse

import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serverd", default="target/release/serverd")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=1)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("scenarios", nargs="*", default=list(measure.SCENARIOS))
    options = parser.parse_args()
    measure.raise_limits()
    workspace = measure.Workspace()
    commands = workspace.commands(options.serverd, options.peer)
    try:
        for name in options.scenarios:
            compare(workspace, commands, name, options)
    finally:
        workspace.close()


def compare(workspace: measure.Workspace, commands: dict[str, str], name: str, options: argparse.Namespace) -> None:
    scenario, costs, ratios = measure.SCENARIOS[name], {}, {}
    for _ in range(options.rounds):
        null = 0.0
        for server, command in commands.items():
            # may_minihttp ignores Connection: close, select does not scale to many idle connections, and the accept strategy
            # only matters for new connections.
            excluded = {"may_minihttp": name == "churn", "serverd-select": scenario.idle, "null-at-once": name != "churn"}
            if excluded.get(server):
                continue
            cost = measure.run_round(workspace, command, scenario, options.seconds)
            null = null or cost
            costs.setdefault(server, []).append(cost)
            ratios.setdefault(server, []).append(cost / null)
    print(f"\n| {name} | CPU per request, us | x null |\n|:--|--:|--:|")
    for server in sorted(ratios, key=lambda server: measure.median(ratios[server])):
        print(f"| {server} | {measure.median(costs[server]):.2f} | {measure.median(ratios[server]):.2f} |", flush=True)


if __name__ == "__main__":
    main()

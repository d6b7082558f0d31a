#!/usr/bin/env python3
"""CPU time of a server per request beside other servers, in turns, as a multiple of a server that parses nothing.

    cargo build --release
    cargo build --release --manifest-path benches/peers/Cargo.toml      # hyper and may_minihttp
    benches/compare.py [--rounds 7] [--seconds 1] [--peer NAME='COMMAND {port}'] [full churn ...]

The measure is `null-epoll` (benches/null): a C program that makes the system calls a readiness loop cannot avoid, and
looks for nothing but the end of a head. Of every server the median over the rounds of its cost divided by that of
null-epoll in the same round is shown: it holds on a noisy machine, where the microseconds do not. Server and load (wrk) have
a core each; in the scenarios `full` they take turns on one, so that the server always finds a full batch. nginx takes part
where it is installed. As root, `nice -n -10` before the command puts all of it ahead of other work. Linux.
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
    places = measure.Places()
    commands = places.commands(options.serverd, options.peer)
    try:
        for name in options.scenarios:
            compare(places, commands, name, options)
    finally:
        places.close()


def compare(places: measure.Places, commands: dict[str, str], name: str, options: argparse.Namespace) -> None:
    scenario, costs, ratios = measure.SCENARIOS[name], {}, {}
    for _ in range(options.rounds):
        null = 0.0
        for server, command in commands.items():
            # may_minihttp does not close when asked to, select is not made for many idle connections, and when to
            # accept matters to new ones alone.
            unfit = {"may_minihttp": name == "churn", "serverd-select": scenario.idle, "null-at-once": name != "churn"}
            if unfit.get(server):
                continue
            cost = measure.round_of(places, command, scenario, options.seconds)
            null = null or cost
            costs.setdefault(server, []).append(cost)
            ratios.setdefault(server, []).append(cost / null)
    print(f"\n| {name} | CPU, us a request | x null |\n|:--|--:|--:|")
    for server in sorted(ratios, key=lambda server: measure.median(ratios[server])):
        print(f"| {server} | {measure.median(costs[server]):.2f} | {measure.median(ratios[server]):.2f} |", flush=True)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""How the cost of a request grows with the connections that are held: a plot in SVG, both backends.

    cargo build --release && benches/connections.py --out docs/connections.svg

1 or 64 connections are busy beside so many idle ones; the median of the rounds is drawn. Also prints what an idle
connection costs in memory. Linux, wrk; 10,000 connections need as many descriptors (ulimit -Hn).
"""
import argparse
import math

import measure
from measure import Scenario

HELD = (1, 100, 1_000, 10_000)
CURVES = [("epoll", 1, "#1f6fb2", ""), ("epoll", 64, "#1f6fb2", "6 4"), ("select", 1, "#c2571a", ""),
          ("select", 64, "#c2571a", "6 4")]
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 680, 400, 70, 30, 150, 60


def place(held: float, cost: float, low: float, high: float) -> tuple[float, float]:
    across = math.log10(held) / math.log10(HELD[-1])
    up = (math.log10(cost) - math.log10(low)) / (math.log10(high) - math.log10(low))
    return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" {more}>{words}</text>'


def draw(found: dict[tuple[str, int], list[float]]) -> str:
    highest = max(max(costs) for costs in found.values())
    low, high = 1.0, 10 ** math.ceil(math.log10(highest))
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
             f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>']
    for held in HELD:
        (x, bottom), (_, top) = place(held, low, low, high), place(held, high, low, high)
        parts += [f'<path d="M{x:.0f} {bottom:.0f}V{top:.0f}" stroke="#ddd"/>',
                  text(x, bottom + 20, f"{held:,}", 'text-anchor="middle"')]
    cost = low
    while cost <= high:
        (left, y), (right, _) = place(1, cost, low, high), place(HELD[-1], cost, low, high)
        parts += [f'<path d="M{left:.0f} {y:.0f}H{right:.0f}" stroke="#ddd"/>',
                  text(left - 8, y + 4, f"{cost:,.0f}", 'text-anchor="end"')]
        cost *= 10
    for backend, busy, colour, dashes in CURVES:
        costs = found[backend, busy]
        points = [place(held, cost, low, high) for held, cost in zip(HELD, costs)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts += [f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>']
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
    # One label for each curve, moved apart where the ends are close.
    ends = sorted((place(HELD[-1], found[backend, busy][-1], low, high)[1], f"{backend}, {busy} busy", colour)
                  for backend, busy, colour, _ in CURVES)
    below = 0.0
    for y, words, colour in ends:
        below = max(y + 4, below + 16)
        parts.append(text(WIDTH - RIGHT + 10, below, words, f'fill="{colour}"'))
    parts += [text(LEFT, 18, "CPU of the server per request, microseconds"),
              text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, "idle connections beside the busy ones", 'text-anchor="middle"'),
              "</svg>"]
    return "\n".join(parts) + "\n"


def memory(places: measure.Places, command: str) -> float:
    """Octets of Pss for each idle connection between 1,000 and 10,000."""
    with measure.Server(places, command, Scenario()) as server:
        held = server.hold(1_000)
        before = server.pss()
        held += server.hold(9_000)
        return (server.pss() - before) / 9_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serverd", default="target/release/serverd")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="docs/connections.svg")
    options = parser.parse_args()
    measure.raise_limits()
    places = measure.Places()
    commands, found = places.commands(options.serverd, []), {}
    print("| backend | busy | " + " | ".join(f"{held:,}" for held in HELD) + " |\n|:--|--:|" + "--:|" * len(HELD))
    try:
        for backend, busy, *_ in CURVES:
            command = commands[f"serverd-{backend}"]
            rounds = [[measure.round_of(places, command, Scenario(connections=busy, idle=held), 1) for held in HELD]
                      for _ in range(options.rounds)]
            found[backend, busy] = [measure.median(list(costs)) for costs in zip(*rounds)]
            print(f"| {backend} | {busy} | " + " | ".join(f"{cost:.2f}" for cost in found[backend, busy]) + " |", flush=True)
        for backend in ("epoll", "select"):
            print(f"{backend}: {memory(places, commands[f'serverd-{backend}']):.0f} octets of Pss for an idle connection")
    finally:
        places.close()
    with open(options.out, "w") as file:
        file.write(draw(found))


if __name__ == "__main__":
    main()

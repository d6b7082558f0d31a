#!/usr/bin/env python3
"""Plots the CPU time per request against the number of idle connections, for both backends, as SVG.

    cargo build --release && benches/connections.py --out docs/connections.svg

1 or 64 connections are busy while the others are idle; the median of the rounds is plotted. Also prints the memory per
idle connection. Needs Linux and wrk; 10,000 connections need as many file descriptors (ulimit -Hn).
"""
import argparse
import math

import measure
from measure import Scenario

IDLE_COUNTS = (1, 100, 1_000, 10_000)
CURVES = [("epoll", 1, "#1f6fb2", ""), ("epoll", 64, "#1f6fb2", "6 4"), ("select", 1, "#c2571a", ""),
          ("select", 64, "#c2571a", "6 4")]
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 680, 400, 70, 30, 150, 60


def point(idle: float, cost: float, low: float, high: float) -> tuple[float, float]:
    x_fraction = math.log10(idle) / math.log10(IDLE_COUNTS[-1])
    y_fraction = (math.log10(cost) - math.log10(low)) / (math.log10(high) - math.log10(low))
    return LEFT + x_fraction * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y_fraction * (HEIGHT - TOP - BOTTOM)


def text(x: float, y: float, label: str, attributes: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" {attributes}>{label}</text>'


def draw(results: dict[tuple[str, int], list[float]]) -> str:
    highest = max(max(costs) for costs in results.values())
    low, high = 1.0, 10 ** math.ceil(math.log10(highest))
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
             f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>']
    for idle in IDLE_COUNTS:
        (x, bottom), (_, top) = point(idle, low, low, high), point(idle, high, low, high)
        parts += [f'<path d="M{x:.0f} {bottom:.0f}V{top:.0f}" stroke="#ddd"/>',
                  text(x, bottom + 20, f"{idle:,}", 'text-anchor="middle"')]
    cost = low
    while cost <= high:
        (left, y), (right, _) = point(1, cost, low, high), point(IDLE_COUNTS[-1], cost, low, high)
        parts += [f'<path d="M{left:.0f} {y:.0f}H{right:.0f}" stroke="#ddd"/>',
                  text(left - 8, y + 4, f"{cost:,.0f}", 'text-anchor="end"')]
        cost *= 10
    for backend, busy, color, dashes in CURVES:
        costs = results[backend, busy]
        points = [point(idle, cost, low, high) for idle, cost in zip(IDLE_COUNTS, costs)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts += [f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2" stroke-dasharray="{dashes}"/>']
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in points]
    # One label per curve; labels that would overlap are moved apart.
    ends = sorted((point(IDLE_COUNTS[-1], results[backend, busy][-1], low, high)[1], f"{backend}, {busy} busy", color)
                  for backend, busy, color, _ in CURVES)
    below = 0.0
    for y, label, color in ends:
        below = max(y + 4, below + 16)
        parts.append(text(WIDTH - RIGHT + 10, below, label, f'fill="{color}"'))
    parts += [text(LEFT, 18, "Server CPU time per request, microseconds"),
              text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, "idle connections in addition to the busy ones", 'text-anchor="middle"'),
              "</svg>"]
    return "\n".join(parts) + "\n"


def memory(workspace: measure.Workspace, command: str) -> float:
    """Return the memory per idle connection in bytes (PSS), from the difference between 1,000 and 10,000."""
    with measure.Server(workspace, command, Scenario()) as server:
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
    workspace = measure.Workspace()
    commands, results = workspace.commands(options.serverd, []), {}
    print("| backend | busy | " + " | ".join(f"{idle:,}" for idle in IDLE_COUNTS) + " |\n|:--|--:|" + "--:|" * len(IDLE_COUNTS))
    try:
        for backend, busy, *_ in CURVES:
            command = commands[f"serverd-{backend}"]
            rounds = [[measure.run_round(workspace, command, Scenario(connections=busy, idle=idle), 1) for idle in IDLE_COUNTS]
                      for _ in range(options.rounds)]
            results[backend, busy] = [measure.median(list(costs)) for costs in zip(*rounds)]
            print(f"| {backend} | {busy} | " + " | ".join(f"{cost:.2f}" for cost in results[backend, busy]) + " |", flush=True)
        for backend in ("epoll", "select"):
            print(f"{backend}: {memory(workspace, commands[f'serverd-{backend}']):.0f} bytes (PSS) per idle connection")
    finally:
        workspace.close()
    with open(options.out, "w") as file:
        file.write(draw(results))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Measures the CPU time of `serverd echo` per message and of `serverd chat` per delivered line.

    cargo build --release && benches/tcp/measure.py [--serverd target/release/serverd] [echo] [chat]

The CPU time is the difference of the first field of /proc/PID/schedstat, so it excludes waiting and the clients. Rounds
of the compared servers alternate, and the median is printed; server and clients run on separate cores. Needs Linux and cc.
"""

import argparse
import os
import re
import resource
import shutil
import socket
import statistics
import subprocess
import tempfile
import time

BUDGETS_OFF = ["--byte-rate", "0", "--line-rate", "0"]
HERE = os.path.dirname(os.path.abspath(__file__))


def build(folder, name):
    binary = os.path.join(folder, name)
    subprocess.run(["cc", "-O2", "-w", "-o", binary, os.path.join(HERE, name + ".c")], check=True)
    return binary


class Server:
    def __init__(self, command, port=None):
        pipe = None if port else subprocess.PIPE
        self.process = subprocess.Popen(["taskset", "-c", "0"] + command, stdout=pipe, text=True)
        self.port = port or re.search(r"(?:127\.0\.0\.1:)?(\d+)", self.process.stdout.readline()).group(1)

    def cpu(self):
        """Return the CPU time of all threads so far in nanoseconds."""
        total = 0
        for thread in os.listdir(f"/proc/{self.process.pid}/task"):
            with open(f"/proc/{self.process.pid}/task/{thread}/schedstat") as file:
                total += int(file.read().split()[0])
        return total

    def stop(self):
        self.process.kill()
        self.process.wait()


def run(load, server, *args):
    """Return the CPU time in microseconds per message or line, and the number received per second."""
    last = len(os.sched_getaffinity(0)) - 1
    command = ["taskset", "-c", str(last), load, args[0], server.port, *map(str, args[1:])]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdout.readline() == "ready\n"
        before = server.cpu()
        client.stdin.write("\n")
        client.stdin.close()
        count, seconds = client.stdout.readline().split()
        spent = server.cpu() - before
    assert client.returncode == 0
    return spent / int(count) / 1000, int(count) / float(seconds)


def echo(serverd, folder, load, rounds):
    print("| echo | connections | C epoll | serverd epoll | ratio | serverd select |")
    print("|---|---|---|---|---|---|")
    plain = build(folder, "epoll_echo")
    options = ["echo", "--port", "0", "--backend"]
    for size, messages in ((1024, 100_000), (64 * 1024, 20_000)):
        for connections in (1, 64):
            commands = [[plain], [serverd, *options, "epoll"], [serverd, *options, "select"]]
            costs = [[] for _ in commands]
            for _ in range(rounds):
                for command, cost in zip(commands, costs):
                    server = Server(command)
                    run(load, server, "echo", connections, size, messages // 10)
                    cost.append(run(load, server, "echo", connections, size, messages)[0])
                    server.stop()
            c, epoll, select = (statistics.median(cost) for cost in costs)
            ratio = statistics.median(own / other for own, other in zip(costs[1], costs[0]))
            print(f"| {size // 1024} KiB | {connections} | {c:.2f} us | {epoll:.2f} us | {ratio:.2f} | {select:.2f} us |", flush=True)


def ncat():
    """Start ncat as a chat server. It prints neither its port nor that it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(["ncat", "-l", "--chat", "-m", "2000", "127.0.0.1", str(port)], str(port))
    # Probing with a connection would end it: ncat exits if a client disconnects before it is accepted.
    time.sleep(1)
    return server


def chat(serverd, load, rounds):
    print("| chat, members | server | lines sent at once | lines delivered per second | CPU per delivered line |")
    print("|---|---|---|---|---|")
    start = {
        # Without the budgets, which slow a member down that sends this much.
        name: lambda name=name: Server([serverd, "chat", *BUDGETS_OFF, "--port", "0", "--backend", name])
        for name in ("epoll", "select")
    }
    if shutil.which("ncat"):
        start["ncat"] = ncat
    for members in (100, 1000, 5000):
        for name in start:
            for burst in (1, 20):
                # ncat uses select(2), which is limited to 1,024 file descriptors.
                if name == "ncat" and members >= 1000:
                    continue
                costs, rates = [], []
                for _ in range(rounds):
                    server = start[name]()
                    cost, rate = run(load, server, "chat", members, 500_000 // members // burst * burst, burst)
                    server.stop()
                    costs.append(cost)
                    rates.append(rate)
                cost, rate = statistics.median(costs), statistics.median(rates)
                print(f"| {members} | {name} | {burst} | {rate:,.0f} | {cost:.2f} us |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serverd", default="target/release/serverd")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("what", nargs="*", default=["echo", "chat"])
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    with tempfile.TemporaryDirectory() as folder:
        load = build(folder, "load")
        if "echo" in options.what:
            echo(options.serverd, folder, load, options.rounds)
        if "chat" in options.what:
            chat(options.serverd, load, options.rounds)


if __name__ == "__main__":
    main()

"""Runs a server and a load generator on separate cores (or on one), and measures the CPU time per request."""
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TEXT = b"this is response from server"
LUA = """
local file = assert(io.open(os.getenv("REQUEST"), "rb"))
local batch = string.rep(file:read("*a"), tonumber(os.getenv("DEPTH")))
function init() wrk.format = function() return batch end end
function done(summary)
   local e = summary.errors
   io.write(string.format('{"requests": %d, "errors": %d}\\n', summary.requests, e.status + e.connect + e.read + e.write + e.timeout))
end
"""
# Directories for the temporary files of nginx, below that of the measurement.
NGINX_PATHS = """client_body_temp_path %(dir)s/b; proxy_temp_path %(dir)s/p; fastcgi_temp_path %(dir)s/f;
    uwsgi_temp_path %(dir)s/u; scgi_temp_path %(dir)s/s;"""
NGINX = """
daemon off; master_process off; worker_processes 1; pid FOLDER/nginx.pid; error_log /dev/null crit;
events { worker_connections 16000; }
http {
    access_log off; default_type text/plain; keepalive_timeout 300s; keepalive_requests 100000000;
    client_body_temp_path FOLDER; proxy_temp_path FOLDER; fastcgi_temp_path FOLDER; uwsgi_temp_path FOLDER; scgi_temp_path FOLDER;
    server { listen 127.0.0.1:PORT backlog=4096; location / { return 200 "this is response from server"; } }
}
"""


@dataclass(frozen=True)
class Scenario:
    """A load: `connections` connections that each pipeline `depth` requests, while `idle` others are open but idle."""

    request: str = "plain"
    connections: int = 64
    depth: int = 1
    one_core: bool = False
    idle: int = 0


SCENARIOS = {
    "full": Scenario(one_core=True),
    "full-browser": Scenario("browser", one_core=True),
    "plain": Scenario(),
    "pipeline16": Scenario(depth=16),
    "churn": Scenario("close"),
    "idle10k": Scenario(idle=10_000),
}


class Workspace:
    """Temporary directory for the programs and files of a measurement."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="serverd-bench-"))
        (self.folder / "load.lua").write_text(LUA)
        for name in ("null-epoll", "null-select"):
            subprocess.run(["cc", "-O2", "-o", self.folder / name, HERE / f"null/{name}.c"], check=True)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def commands(self, serverd: str, peers: list[str]) -> dict[str, str]:
        """Return the commands of the available servers, with placeholders {port} and {mode}."""
        common = f"{serverd} --host 127.0.0.1 --port {{port}} --workers 1 --backend"
        known = {"null-epoll": f"{self.folder}/null-epoll {{port}} {{mode}}",
                 "null-at-once": f"env NULL_AT_ONCE=1 {self.folder}/null-epoll {{port}} {{mode}}", "serverd-epoll": f"{common} epoll",
                 "serverd-select": f"{common} select"}
        if shutil.which("nginx"):
            known["nginx"] = "nginx -c {nginx}"
        for name in ("hyper", "may_minihttp"):
            if (path := HERE / f"peers/target/release/peer-{name}").exists():
                known[name] = f"{path} {{port}}"
        return known | dict(peer.split("=", 1) for peer in peers)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Listening:
    """A running server that listens on a port, on any core."""

    def __init__(self, command: list[str], port: int) -> None:
        self.port = port
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            if time.monotonic() > deadline:
                raise SystemExit(f"server does not listen: {' '.join(command)}")
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        """The process that serves. A master process listens before it starts its child."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else self.process.pid

    def cpu_ns(self) -> int:
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)

    def stop(self) -> None:
        # nginx without a master process does not notice a signal that arrives just before it waits for events.
        while self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)


def callgrind(output: Path) -> list[str]:
    """Return the beginning of a command whose instructions are counted."""
    return ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={output}"]


def instructions(output: Path) -> int:
    """Return the number of instructions of a command that has ended."""
    lines = output.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(("summary:", "totals:")))


class Server(Listening):
    """A running server on core 0."""

    def __init__(self, workspace: Workspace, command: str, scenario: Scenario) -> None:
        port, nginx = free_port(), workspace.folder / "nginx.conf"
        nginx.write_text(NGINX.replace("PORT", str(port)).replace("FOLDER", str(workspace.folder)))
        mode = "close" if scenario.request == "close" else "keep"
        args = command.format(port=port, mode=mode, nginx=nginx).split()
        batch = ["chrt", "--batch", "0"] if scenario.one_core else []
        super().__init__(["taskset", "-c", "0", *batch, *args], port)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def cpu(self) -> float:
        """Return the CPU time of all threads so far in seconds, with nanosecond resolution."""
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def pss(self) -> int:
        """Return the proportional set size (PSS) in bytes."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return int(re.search(r"^Pss: +(\d+)", text, re.M)[1]) * 1024

    def hold(self, count: int) -> list[socket.socket]:
        """Open `count` keep-alive connections with one request each, 1,000 per source address."""
        request, held = (HERE / "requests/plain.http").read_bytes(), []
        for number in range(count):
            client = socket.socket()
            client.settimeout(10)
            client.bind((f"127.0.0.{2 + number // 1000}", 0))
            client.connect(("127.0.0.1", self.port))
            client.sendall(request)
            assert TEXT in client.recv(4096), "no response"
            held.append(client)
        return held


def raise_limits() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run_round(workspace: Workspace, command: str, scenario: Scenario, seconds: int) -> float:
    """Run one round. Return the server's CPU time per request in microseconds."""
    with Server(workspace, command, scenario) as server:
        held = server.hold(scenario.idle)
        core = ["taskset", "-c", "0", "chrt", "--batch", "0"] if scenario.one_core else ["taskset", "-c", "1"]
        load = [*core, "wrk", "-t1", f"-c{scenario.connections}", f"-d{seconds}s", "-s", str(workspace.folder / "load.lua"),
                f"http://127.0.0.1:{server.port}/"]
        environment = os.environ | {"REQUEST": str(HERE / f"requests/{scenario.request}.http"), "DEPTH": str(scenario.depth)}
        before = server.cpu()
        output = subprocess.run(load, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        spent = server.cpu() - before
        for client in held:
            client.close()
    result = json.loads(re.search(r"^\{.*\}$", output, re.M)[0])
    if not result["requests"] or result["errors"] > result["requests"] / 100:
        raise RuntimeError(f"{result} from {command}")
    return spent / result["requests"] * 1e6


def median(values: list[float]) -> float:
    return statistics.median(values) if values else float("nan")

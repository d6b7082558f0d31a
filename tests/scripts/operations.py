#!/usr/bin/env python3
"""Tries the examples of docs/OPERATIONS.md as written, with HAProxy, nginx, Caddy, Prometheus and curl.

    tests/scripts/operations.py target/release/serverd

Only addresses and paths are replaced. Behind each proxy, `serverd whoami` must report the client, and the access log in
both formats must name it, although the client forges every header; without a proxy, the forged headers must have no
effect. Prometheus must scrape the metrics and load the alert rules, and promtool must find nothing to criticize; the alert
about certificates must begin two weeks before one expires. A worker that is stopped, by ptrace (Linux), must turn /livez to 503 within 6 s while /metrics still answers.
"""
import contextlib
import ctypes
import http.client
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs/OPERATIONS.md").read_text()
WAIT_MAX_S = 60
CLIENT = "127.0.0.2"
FORGED = {"X-Forwarded-For": "192.0.2.66", "Forwarded": "for=192.0.2.66;proto=https", "X-Real-IP": "192.0.2.66",
          "X-Forwarded-Proto": "https", "Accept": "application/json"}
HAPROXY = """
defaults
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend test
    bind 127.0.0.1:{port}
    mode {mode}
    default_backend serverd
"""
NGINX = """
daemon off; pid {folder}/nginx.pid; error_log stderr warn;
events {{ }}
http {{
    access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    server {{ listen 127.0.0.1:{port}; {snippet} }}
}}
"""


def snippet(heading: str) -> str:
    """Return the first fenced block after a line that begins with `heading`."""
    after = DOCUMENT[re.search(rf"^{re.escape(heading)}", DOCUMENT, re.M).end():]
    return re.search(r"^```\w*\n(.*?)^```", after, re.M | re.S)[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(what: str, condition):
    """Wait until the condition holds, and return its value."""
    end = time.monotonic() + WAIT_MAX_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError, http.client.HTTPException, KeyError, ValueError):
            if value := condition():
                return value
        time.sleep(0.05)
    raise SystemExit(f"operations.py: {what}")


@contextlib.contextmanager
def running(*command: object):
    """Run a program, and end it."""
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=None, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(WAIT_MAX_S)


@contextlib.contextmanager
def serverd(*arguments: object):
    """Run serverd on a free port, and return the port."""
    with running(sys.argv[1], "--quiet", "--port", "0", "--host", "127.0.0.1", *arguments) as process:
        yield int(re.search(r":(\d+) ", process.stdout.readline())[1])


@contextlib.contextmanager
def stopped(thread: int):
    """Stop one thread of a process. Signals cannot do that: they stop the whole process."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    seize, interrupt, detach, wait_all_threads = 0x4206, 0x4207, 17, 0x40000000
    for request in (seize, interrupt):
        if ptrace(request, thread, None, None) != 0:
            raise SystemExit(f"operations.py: ptrace: {os.strerror(ctypes.get_errno())}")
    os.waitpid(thread, wait_all_threads)
    try:
        yield
    finally:
        ptrace(detach, thread, None, None)


def get(port: int) -> dict:
    """Ask `serverd whoami` on this port, with forged headers, from the address of the client."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10, source_address=(CLIENT, 0))
    connection.request("GET", "/", headers=FORGED)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return json.loads(text) if response.status == 200 else {}


def behind(proxy: str, start, arguments: tuple, scheme: str = "http") -> None:
    """Check that the client is reported and logged behind a proxy. `start` is called with the ports of both."""
    for log_format in ("combined", "json"):
        with tempfile.TemporaryDirectory() as folder:
            log = pathlib.Path(folder) / "log"
            with serverd("whoami", "--access-log", log, "--log-format", log_format, *arguments) as server:
                port = free_port()
                with start(port, server, folder):
                    report = wait_for(f"no response through {proxy}", lambda: get(port))
                direct = get(server) if "required" not in arguments else None
            lines = [line for line in log.read_text().splitlines() if '"GET / HTTP' in line or '"target":"/"' in line]
        assert report["client"].split(":")[0] == CLIENT and report["scheme"] == scheme, f"{proxy}: {report}"
        assert direct is None or (direct["client"].split(":")[0], direct["scheme"]) == (CLIENT, "http"), direct
        for line in lines:
            client = json.loads(line)["client"] if log_format == "json" else line.split(" ")[0]
            assert client == CLIENT, f"{proxy}: {line}"
        assert lines, f"{proxy}: no line was logged"
    print(f"{proxy}: the client is reported and logged")


def haproxy(heading: str, mode: str):
    def start(port: int, server: int, folder: str):
        configuration = pathlib.Path(folder) / "haproxy.cfg"
        text = snippet(heading).replace("127.0.0.1:8888", f"127.0.0.1:{server}")
        configuration.write_text(HAPROXY.format(port=port, mode=mode) + text)
        return running("haproxy", "-db", "-q", "-f", configuration)
    return start


def nginx(port: int, server: int, folder: str):
    configuration = pathlib.Path(folder) / "nginx.conf"
    text = snippet("nginx, ").replace("127.0.0.1:8888", f"127.0.0.1:{server}")
    configuration.write_text(NGINX.format(port=port, folder=folder, snippet=text))
    return running("nginx", "-c", configuration, "-p", folder)


def caddy(with_forwarded: bool):
    def start(port: int, server: int, folder: str):
        configuration = pathlib.Path(folder) / "Caddyfile"
        text = snippet("Caddy sets").replace("127.0.0.1:8888", f"127.0.0.1:{server}")
        text = text.replace("example.org", f"http://:{port}")
        if with_forwarded:
            target = f"reverse_proxy 127.0.0.1:{server}"
            text = text.replace(target, f"{target} {{\n{snippet('For Forwarded')}\n}}")
        options = f"admin off\n storage file_system {folder}\n log {{\n level ERROR\n }}\n"
        configuration.write_text("{\n" + options + "}\n" + text)
        return running("env", f"XDG_CONFIG_HOME={folder}", "caddy", "run", "--adapter", "caddyfile", "--config", configuration)
    return start


def proxies() -> None:
    trusted = ("--trusted-proxies", "127.0.0.1")
    required = (*trusted, "--proxy-protocol", "required")
    behind("HAProxy, X-Forwarded-For", haproxy("HAProxy, with X-Forwarded-For", "http"), trusted)
    behind("HAProxy, PROXY v2", haproxy("HAProxy, with the PROXY protocol", "tcp"), required)
    v1 = haproxy("HAProxy, with the PROXY protocol", "tcp")
    global DOCUMENT
    document, DOCUMENT = DOCUMENT, DOCUMENT.replace("send-proxy-v2", "send-proxy")
    behind("HAProxy, PROXY v1", v1, required)
    DOCUMENT = document
    behind("nginx", nginx, trusted)
    behind("Caddy, X-Forwarded-For", caddy(False), trusted)
    behind("Caddy, Forwarded", caddy(True), (*trusted, "--client-ip-header", "forwarded"))


def admin(port: int, path: str) -> str:
    return status(port, path)[1]


def prometheus() -> None:
    rules = ROOT / "packaging/prometheus/serverd-alerts.yml"
    subprocess.run(["promtool", "check", "rules", rules], check=True, stdout=subprocess.DEVNULL)
    certificate_alert(rules)
    files_metrics()
    with tempfile.TemporaryDirectory() as folder:
        admin_port, web = free_port(), free_port()
        with serverd("whoami", "--admin", f"127.0.0.1:{admin_port}") as server:
            get(server)
            check_metrics(admin(admin_port, "/metrics"))
            configuration = pathlib.Path(folder) / "prometheus.yml"
            shutil.copy(rules, folder)
            examples = snippet("Prometheus:").replace("127.0.0.1:9090", f"127.0.0.1:{admin_port}")
            configuration.write_text("global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\n" + examples)
            subprocess.run(["promtool", "check", "config", configuration], check=True, stdout=subprocess.DEVNULL)
            with running("prometheus", f"--config.file={configuration}", f"--storage.tsdb.path={folder}/data",
                         f"--web.listen-address=127.0.0.1:{web}", "--log.level=error"):
                name = urllib.parse.quote('http_server_request_duration_seconds_count{method="GET",code="200"}')
                result = wait_for("prometheus has no sample", lambda: json.loads(
                    admin(web, f"/api/v1/query?query={name}"))["data"]["result"])
                assert float(result[0]["value"][1]) >= 1, result
                groups = wait_for("the alert rules have not been evaluated", lambda: evaluated(web))
    print(f"Prometheus scrapes the metrics, and evaluates {len(groups)} alert rules")


def check_metrics(text: str) -> None:
    found = subprocess.run(["promtool", "check", "metrics"], input=text, stderr=subprocess.PIPE, text=True)
    assert (found.returncode, found.stderr) == (0, ""), found.stderr


def files_metrics() -> None:
    """Check the metrics of a server of files with all of its features."""
    hashed = "alice:$2y$05$nF4wGCaEtRacYiOVnrhaQeX.3xDjiQ/U/lAOzoim86wOywsVSaKAy"
    admin_port = free_port()
    options = ("--tls", "--auth", hashed, "--access-log", os.devnull, "--admin", f"127.0.0.1:{admin_port}")
    with serverd("files", ROOT / "docs", *options):
        text = admin(admin_port, "/metrics")
    check_metrics(text)
    for name in ("serverd_file_cache_lookups_total", "serverd_auth_total", "serverd_tls_certificate_expiry_seconds"):
        assert f"\n{name}{{" in text, name
    for file in ("grafana/serverd-dashboard.json", "prometheus/serverd-alerts.yml"):
        for name in re.findall(r"\b((?:serverd|http_server|process)_[a-z_]+)[{[)]", (ROOT / "packaging" / file).read_text()):
            family = re.sub("_(bucket|count)$", "", name)
            assert f"# TYPE {family} " in text, f"{file} names {name}, which does not exist"


def certificate_alert(rules: pathlib.Path) -> None:
    """Check when the alert about a certificate fires. The clock of promtool begins at 0."""
    labels = {"name": "example.org", "file": "chain.pem", "instance": "a:1"}
    series = "serverd_tls_certificate_expiry_seconds{%s}" % ",".join(f'{key}="{labels[key]}"' for key in labels)
    summary = "The certificate example.org of a:1 (chain.pem) has to be renewed; time left: 12d 22h 0m 0s."
    alert = {"exp_labels": {"severity": "warning", **labels}, "exp_annotations": {"summary": summary}}
    cases = [{
        "interval": "1m",
        "input_series": [{"series": series, "values": f"{days * 24 * 3600}+0x120"}],
        "alert_rule_test": [{"eval_time": "2h", "alertname": "ServerdCertificateExpires", "exp_alerts": alerts}],
    } for days, alerts in ((15, []), (13, [alert]))]
    with tempfile.TemporaryDirectory() as folder:
        test = pathlib.Path(folder) / "test.yml"
        # JSON is YAML.
        test.write_text(json.dumps({"rule_files": [str(rules)], "tests": cases}))
        subprocess.run(["promtool", "test", "rules", test], check=True, stdout=subprocess.DEVNULL)
    print("an alert fires two weeks before a certificate expires")


def evaluated(web: int) -> list:
    """Return the alert rules once all of them were evaluated."""
    rules = [rule for group in json.loads(admin(web, "/api/v1/rules"))["data"]["groups"] for rule in group["rules"]]
    assert not any(rule.get("lastError") for rule in rules), rules
    return rules if rules and all(rule["health"] == "ok" for rule in rules) else []


def status(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read().decode()


def stuck_worker() -> None:
    """Check that a worker whose loop does not turn is reported in time, and no longer once it turns again."""
    admin_port = free_port()
    arguments = ("--quiet", "--port", "0", "--host", "127.0.0.1", "--workers", "2", "--admin", f"127.0.0.1:{admin_port}")
    with running(sys.argv[1], *arguments, "whoami") as process:
        process.stdout.readline()
        wait_for("not alive", lambda: status(admin_port, "/livez")[0] == 200)
        tasks = pathlib.Path(f"/proc/{process.pid}/task")
        thread = next(int(task.name) for task in tasks.iterdir() if (task / "comm").read_text() == "worker-1\n")
        start = time.monotonic()
        with stopped(thread):
            text = wait_for("/livez does not notice a stopped worker", lambda: not_alive(admin_port))
            seconds = time.monotonic() - start
            assert text.startswith("worker 1: the loop has not turned for "), text
            assert "serverd_loop_turns_total" in status(admin_port, "/metrics")[1]
        wait_for("/livez does not recover", lambda: status(admin_port, "/livez")[0] == 200)
    assert seconds < 6, f"/livez took {seconds:.1f} s"
    print(f"a stopped worker turns /livez to 503 after {seconds:.1f} s")


def not_alive(port: int) -> str:
    """Return the text of /livez if its status is 503."""
    code, text = status(port, "/livez")
    return text if code == 503 else ""


def unix_socket() -> None:
    with tempfile.TemporaryDirectory() as folder:
        socket_path = f"{folder}/admin.sock"
        with serverd("whoami", "--admin", f"unix:{socket_path}"):
            command = re.search(r"^curl -s --unix-socket .*$", DOCUMENT, re.M)[0]
            command = command.replace("/run/serverd/admin.sock", socket_path)
            output = subprocess.run(command, shell=True, check=True, stdout=subprocess.PIPE, text=True).stdout
            assert output.endswith("ok\n") and "[+] serving: ok" in output, output
    print("curl reads the admin socket")


if __name__ == "__main__":
    proxies()
    prometheus()
    stuck_worker()
    unix_socket()

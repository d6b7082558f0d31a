#!/usr/bin/env python3
"""Scans a server that uses TLS with sslyze (from PyPI) and testssl.sh (from Debian): tls_scanners.py SERVER

Fails on any finding above "info" that is not listed below with the reason. A scanner that cannot be installed is skipped
with a message, or the script fails if CI_REQUIRE_SCANNERS is set.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SSLYZE = "sslyze==6.3.1"
SECONDS_MAX = 1800

CERTIFICATE = "the certificate of the tests is self-signed and valid for a century"
EXPECTED = {
    "certificate_path_validation": CERTIFICATE,
    "maximum_certificate_lifespan": CERTIFICATE,
    "cert_chain_of_trust": CERTIFICATE,
    "cert_trust": CERTIFICATE,
    "cert_validityPeriod": CERTIFICATE,
    "cert_revocation": CERTIFICATE,
    "DNS_CAArecord": "localhost has no DNS records",
    "HSTS": "the application decides about its headers",
    "security_headers": "the application decides about its headers",
    "cipher_order": "clients choose among cipher suites that are all strong, as Mozilla recommends",
}
unexpected = []


def report(scanner: str, finding: str, text: str) -> None:
    reason = EXPECTED.get(finding)
    print(f"{scanner}: {finding}: {text}" + (f" (expected: {reason})" if reason else ""))
    if not reason:
        unexpected.append(f"{scanner}: {finding}: {text}")


def skip(scanner: str, reason: str) -> None:
    print(f"SKIPPED: {scanner}: {reason}")
    if os.environ.get("CI_REQUIRE_SCANNERS"):
        sys.exit(1)


def true_members(value: object, name: str = "") -> list[str]:
    """The names of all members of a JSON value that are true."""
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in true_members(inner, key)]
    if isinstance(value, list):
        return [found for inner in value for found in true_members(inner, name)]
    return [name] if value is True else []


def run_sslyze(target: str, scratch: Path) -> None:
    environment = ROOT / "target/sslyze"
    python = environment / "bin/python"
    if not python.exists() or subprocess.run([python, "-m", "sslyze", "--help"], capture_output=True).returncode:
        shutil.rmtree(environment, ignore_errors=True)
        made = subprocess.run([sys.executable, "-m", "venv", environment], capture_output=True, text=True)
        made = made if made.returncode else subprocess.run([python, "-m", "pip", "install", "-q", SSLYZE],
                                                           capture_output=True, text=True)
        if made.returncode:
            return skip("sslyze", "cannot be installed: " + (made.stderr or made.stdout).strip()[-200:])
    output = scratch / "sslyze.json"
    scan = subprocess.run([python, "-m", "sslyze", "--mozilla_config", "intermediate", f"--json_out={output}", target],
                          capture_output=True, text=True, timeout=SECONDS_MAX)
    _, found, compliance = scan.stdout.partition("COMPLIANCE AGAINST TLS CONFIGURATION")
    if not found:
        sys.exit(f"sslyze has failed: {scan.stdout}{scan.stderr}")
    for finding, text in re.findall(r"^\s+\* (\w+): (.*)", compliance, re.MULTILINE):
        report("sslyze", finding, text)
    faults = [name for name in true_members(json.loads(output.read_text())["server_scan_results"])
              if name.startswith(("is_vulnerable", "supports_compression"))]
    for name in faults:
        report("sslyze", name, "true")


def run_testssl(target: str, scratch: Path) -> None:
    if not shutil.which("testssl"):
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "testssl.sh"]
        command = command if os.geteuid() == 0 else ["sudo", "-n", *command]
        installed = subprocess.run(command, capture_output=True, text=True)
        if installed.returncode:
            return skip("testssl.sh", "cannot be installed: " + installed.stderr.strip()[-200:])
    output = scratch / "testssl.json"
    scan = subprocess.run(["testssl", "--quiet", "--warnings", "off", "--color", "0", "--nodns", "none", "-oJ", output,
                           target], capture_output=True, text=True, timeout=SECONDS_MAX)
    if not output.exists():
        sys.exit(f"testssl.sh has failed: {scan.stdout}{scan.stderr}")
    text = output.read_text()
    for finding in json.loads(text)["scanResult"][0].values():
        for item in finding if isinstance(finding, list) else []:
            if item["severity"] == "WARN":
                # A check that the scanner could not make, such as one of cipher suites that its OpenSSL lacks.
                print(f"testssl.sh: {item['id']}: not checked: {item['finding']}")
            elif item["severity"] not in ("OK", "INFO"):
                report("testssl.sh", item["id"], f"{item['severity']}: {item['finding']}")


def main() -> None:
    command = [sys.argv[1], "--port", "0", "--tls-cert", ROOT / "tests/tls/a.pem", "--tls-key", ROOT / "tests/tls/a.key",
               "--access-log", "off"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        port = re.search(r"https://127\.0\.0\.1:(\d+)", server.stdout.readline()).group(1)
        with tempfile.TemporaryDirectory() as scratch:
            for scanner in (run_sslyze, run_testssl):
                scanner(f"localhost:{port}", Path(scratch))
    finally:
        server.terminate()
    if server.wait():
        sys.exit("the server has failed")
    if unexpected:
        sys.exit("unexpected findings:\n" + "\n".join(unexpected))


if __name__ == "__main__":
    main()

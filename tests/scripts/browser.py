#!/usr/bin/env python3
"""Tests directory listings in Chromium: mouse and keyboard navigation, opening files, and playback by range requests.

    browser.py SERVERD [BACKEND...]          run the test on each backend, without and with TLS
    browser.py SERVERD --screenshots DIR     take screenshots of a listing: light, dark, both, and phone width

Controls Chromium with chromedriver over the WebDriver protocol. Reports and skips the test if either is not installed,
unless CI_REQUIRE_CLIENTS is set.
"""
import base64
import contextlib
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

WAIT_MAX = 30
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
ENTER, TAB = "\ue007", "\ue004"
HOSTILE = "<b>\"it's\" 100% #1?&c.txt"
TONE_SECONDS = 180


class Driver:
    """A headless Chromium, controlled over WebDriver."""

    def __init__(self, directory):
        self.port = free_port()
        command = ["chromedriver", f"--port={self.port}", "--log-level=SEVERE"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--mute-audio",
                   "--disable-background-networking", "--disable-component-update", "--disable-sync",
                   "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required",
                   f"--user-data-dir={directory}", "--window-size=1100,900"]
        chromium = {"args": options}
        if shutil.which("chromium"):
            chromium["binary"] = shutil.which("chromium")
        capabilities = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": chromium, "acceptInsecureCerts": True}}}
        self.session = ""
        session = retry(lambda: self.call("POST", "/session", capabilities))
        self.session = "/session/" + session["sessionId"]

    def call(self, method, path, value=None):
        body = json.dumps(value if value is not None else {}).encode() if method == "POST" else None
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{self.session}{path}", body, method=method,
                                         headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=WAIT_MAX) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode(errors="replace")[:500]) from None

    def go(self, url):
        self.call("POST", "/url", {"url": url})

    def url(self):
        return self.call("GET", "/url")

    def script(self, text, *arguments):
        return self.call("POST", "/execute/sync", {"script": text, "args": list(arguments)})

    def script_async(self, text, *arguments):
        return self.call("POST", "/execute/async", {"script": text, "args": list(arguments)})

    def find(self, selector):
        return self.call("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

    def link(self, text):
        return self.call("POST", "/element", {"using": "link text", "value": text})[ELEMENT]

    def click(self, element):
        self.call("POST", f"/element/{element}/click")

    def press(self, keys):
        """Presses keys in the focused element."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def devtools(self, command, **parameters):
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def close(self):
        with contextlib.suppress(Exception):
            self.call("DELETE", "")
        self.process.terminate()
        self.process.wait(WAIT_MAX)


class RecordingProxy:
    """A proxy between browser and server that records the heads of requests and responses."""

    def __init__(self, server):
        self.server, self.exchanges = server, []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            with contextlib.suppress(OSError):
                client = self.socket.accept()[0]
                server = socket.create_connection(("127.0.0.1", self.server))
                requests = []
                for source, target, record in ((client, server, requests.append), (server, client, self.recorder(requests))):
                    threading.Thread(target=relay, args=(source, target, record), daemon=True).start()

    def recorder(self, requests):
        def record(head):
            self.exchanges.append((requests.pop(0) if requests else "", head))
        return record


def relay(source, target, record):
    """Forwards bytes and records each head, which starts a chunk, because browsers do not pipeline."""
    with contextlib.suppress(OSError):
        while chunk := source.recv(65536):
            head = re.match(rb"((GET|HEAD) |HTTP/1\.1 \d\d\d ).*?\r\n\r\n", chunk, re.S)
            if head:
                record(head.group(0).decode("latin-1"))
            target.sendall(chunk)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def retry(attempt):
    """Calls `attempt` until it neither returns False nor raises an error. Returns its result."""
    end = time.monotonic() + WAIT_MAX
    while True:
        try:
            result = attempt()
            if result is not False:
                return result
            failure = "condition not met"
        except (OSError, RuntimeError) as error:
            failure = error
        if time.monotonic() > end:
            raise AssertionError(f"timed out after {WAIT_MAX} s: {failure}")
        time.sleep(0.05)


def create_tree(root):
    """Creates the directory tree for the test."""
    for name, size in (("archive.tar.gz", 4_813_662), ("notes.txt", 311), ("picture.png", 48_213), ("empty", 0)):
        with open(os.path.join(root, name), "wb") as file:
            file.truncate(size)
    with open(os.path.join(root, HOSTILE), "w", encoding="utf-8") as file:
        file.write("harmless")
    os.makedirs(os.path.join(root, "music", "quiet ones"))
    with open(os.path.join(root, "music", "read me.txt"), "w", encoding="utf-8") as file:
        file.write("one tone, three minutes")
    rate, channels, width = 44100, 2, 2
    length = TONE_SECONDS * rate * channels * width
    with open(os.path.join(root, "music", "tone.wav"), "wb") as file:
        file.write(struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + length, b"WAVE", b"fmt ", 16, 1, channels, rate,
                               rate * channels * width, channels * width, 8 * width, b"data", length))
        file.truncate(44 + length)


@contextlib.contextmanager
def serving(program, root, *options):
    command = [program, "files", root, "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        yield int(re.search(r"127\.0\.0\.1:(\d+)", line).group(1))
    finally:
        process.terminate()
        assert process.wait(WAIT_MAX) == 0, "the server exits with 0"


def rows(driver):
    return driver.script("return [...document.querySelectorAll('tbody td.n a')].map(link => link.textContent)")


def expect(name, actual, expected):
    assert actual == expected, f"{name}: {actual!r} instead of {expected!r}"


def wait_for_url(driver, suffix):
    retry(lambda: driver.url().endswith(suffix))


def test(program, backend, is_tls):
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory() as root:
        create_tree(root)
        with serving(program, root, "--backend", backend, *["--tls"] * is_tls) as port:
            proxy = None if is_tls else RecordingProxy(port)
            top = f"https://127.0.0.1:{port}/" if is_tls else f"http://127.0.0.1:{proxy.port}/"
            driver = Driver(home)
            try:
                navigate_by_mouse(driver, top)
                navigate_by_keyboard(driver, top)
                seek_in_media(driver, top + "music/", proxy)
            finally:
                driver.close()


def navigate_by_mouse(driver, top):
    driver.go(top)
    expect("names", rows(driver), ["music/", HOSTILE, "archive.tar.gz", "empty", "notes.txt", "picture.png"])
    expect("a file name injects no element", driver.script("return document.querySelectorAll('tbody b').length"), 0)
    expect("the CSP allows the style sheet", driver.script("return getComputedStyle(document.body).marginTop"), "0px")
    driver.click(driver.find("th.s button"))
    wait_for_url(driver, "?sort=size&order=desc")
    expect("by size", rows(driver)[1:3], ["archive.tar.gz", "picture.png"])
    expect("aria-sort", driver.script("return document.querySelector('th.s').ariaSort"), "descending")
    driver.click(driver.find("th.s button"))
    wait_for_url(driver, "?sort=size&order=asc")
    expect("by size, ascending", rows(driver)[1], "empty")
    driver.click(driver.link("music/"))
    wait_for_url(driver, "/music/?sort=size&order=asc")
    expect("subdirectory", rows(driver), ["Parent directory", "quiet ones/", "read me.txt", "tone.wav"])
    driver.click(driver.find("input[type=search]"))
    driver.press("tone" + ENTER)
    wait_for_url(driver, "/music/?sort=size&order=asc&q=tone")
    expect("filtered by name", rows(driver), ["Parent directory", "tone.wav"])
    driver.go(top + "music/")
    driver.click(driver.link("read me.txt"))
    wait_for_url(driver, "/music/read%20me.txt")
    expect("a file", driver.script("return document.body.innerText.trim()"), "one tone, three minutes")
    driver.go(top)
    driver.click(driver.link(HOSTILE))
    retry(lambda: driver.script("return document.body.innerText.trim()") == "harmless")


def navigate_by_keyboard(driver, top):
    driver.go(top)
    for _ in range(20):
        driver.press(TAB)
        if driver.script("return document.activeElement.textContent") == "music/":
            break
    outline = driver.script("return getComputedStyle(document.activeElement).outlineStyle")
    expect("the focus is visible", outline, "solid")
    driver.press(ENTER)
    wait_for_url(driver, "/music/")
    for _ in range(20):
        driver.press(TAB)
        if driver.script("return document.activeElement.textContent") == "Parent directory":
            break
    driver.press(ENTER)
    retry(lambda: driver.url() == top)


def seek_in_media(driver, music, proxy):
    """Seeks far beyond the buffered data, which requires a range request. It is only seen by a proxy, without TLS."""
    driver.go(music)
    driver.click(driver.link("tone.wav"))
    wait_for_url(driver, "/music/tone.wav")
    position = driver.script_async("""
        const [target, done] = arguments, media = document.querySelector('video, audio');
        media.muted = true;
        media.addEventListener('error', () => done('error ' + media.error.message));
        const ready = media.readyState > 0 ? Promise.resolve() : new Promise(on => media.onloadedmetadata = on);
        ready.then(() => media.play()).then(() => { media.onseeked = () => done(media.currentTime); media.currentTime = target; });
        """, TONE_SECONDS - 20)
    assert isinstance(position, (int, float)) and position >= TONE_SECONDS - 20.5, f"the file plays from the new position: {position}"
    retry(lambda: driver.script("return document.querySelector('video, audio').currentTime") > position)

    def range_starts():
        heads = [(request, response) for request, response in proxy.exchanges if "tone.wav" in request]
        for request, response in heads:
            start = re.search(r"(?im)^range: bytes=(\d+)-", request)
            sent = re.search(r"(?im)^content-range: bytes (\d+)-\d+/\d+", response)
            if start and sent and response.startswith("HTTP/1.1 206 ") and start.group(1) == sent.group(1):
                yield int(start.group(1))
    half = TONE_SECONDS * 44100 * 2
    assert not proxy or any(start > half for start in range_starts()), f"a range is requested and sent: {proxy.exchanges!r}"


def screenshots(program, directory):
    """Takes screenshots of a sample directory."""
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory() as root:
        create_sample(os.path.join(root, "projects", "lighthouse"))
        with serving(program, root) as port:
            driver = Driver(home)
            try:
                url = f"http://127.0.0.1:{port}/projects/lighthouse/"
                for name, width, height, scheme in (("light", 700, 560, "light"), ("dark", 700, 560, "dark"),
                                                    ("phone", 390, 780, "light"), ("phone-dark", 390, 780, "dark")):
                    screenshot(driver, url, os.path.join(directory, name + ".png"), width, height, scheme)
                pair = os.path.join(directory, "pair.html")
                with open(pair, "w", encoding="utf-8") as file:
                    file.write("<body style='margin:0;display:flex'><img src=light.png><img src=dark.png>")
                screenshot(driver, "file://" + os.path.abspath(pair), os.path.join(directory, "listing.png"), 1400, 560)
                os.remove(pair)
            finally:
                driver.close()


def screenshot(driver, url, path, width, height, scheme="light"):
    driver.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                    mobile=width < 500)
    driver.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    driver.devtools("Emulation.setScrollbarsHidden", hidden=True)
    driver.go(url)
    with open(path, "wb") as file:
        file.write(base64.b64decode(driver.call("GET", "/screenshot")))


def create_sample(root):
    files = {"assets": None, "recordings": None, "src": None, "backup 2026-10.tar.zst": 734_003_200, "cover.jpg": 2_411_724,
             "deploy.sh": 1_204, "Field notes.pdf": 812_441, "intro.mp4": 148_897_792, "lighthouse-0.9.1.iso": 1_610_612_736,
             "main.rs": 7_913, "night-sea.flac": 31_457_280, "README.md": 4_096, "\u6d77\u306e\u97f3.opus": 5_242_880, "LICENCE": 1_071}
    for index, (name, size) in enumerate(files.items()):
        path = os.path.join(root, name)
        os.makedirs(path if size is None else root, exist_ok=True)
        if size is not None:
            with open(path, "wb") as file:
                file.truncate(size)
        mtime = 1_795_000_000 - index * index * 1_234_567
        os.utime(path, (mtime, mtime))


def main():
    program = os.path.abspath(sys.argv[1])
    missing = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    if missing:
        print(f"skipped: not installed: {', '.join(missing)}")
        sys.exit(1 if os.environ.get("CI_REQUIRE_CLIENTS") else 0)
    if sys.argv[2:3] == ["--screenshots"]:
        return screenshots(program, sys.argv[3])
    for backend in sys.argv[2:] or ["select"]:
        for is_tls in (False, True):
            test(program, backend, is_tls)
        print(f"ok {backend}, without and with TLS: listings work with mouse and keyboard, and media can be played with range requests")


if __name__ == "__main__":
    main()

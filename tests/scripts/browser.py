#!/usr/bin/env python3
"""Chromium goes through listings by mouse and keyboard, opens files, and plays one by ranges.

browser.py SERVERD [BACKEND...]          the test, on each backend
browser.py SERVERD --screenshots DIR     pictures of a listing: light, dark, both, and as wide as a phone

Speaks the WebDriver protocol to chromedriver. Without the two programs it says so and is skipped, unless
CI_REQUIRE_CLIENTS is set.
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

PATIENCE = 30
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
ENTER, TAB = "\ue007", "\ue004"
HOSTILE = "<b>\"it's\" 100% #1?&c.txt"
TONE_SECONDS = 180


class Driver:
    """A browser."""

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
        wish = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": chromium}}}
        self.session = ""
        answer = patiently(lambda: self.call("POST", "/session", wish))
        self.session = "/session/" + answer["sessionId"]

    def call(self, method, path, value=None):
        body = json.dumps(value if value is not None else {}).encode() if method == "POST" else None
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{self.session}{path}", body, method=method,
                                         headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return json.load(answer)["value"]
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
        """Presses keys where the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def devtools(self, command, **parameters):
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def close(self):
        with contextlib.suppress(Exception):
            self.call("DELETE", "")
        self.process.terminate()
        self.process.wait(PATIENCE)


class Listener:
    """Stands between browser and server, and notes what is asked and answered."""

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
                asked = []
                for source, target, note in ((client, server, asked.append), (server, client, self.answered(asked))):
                    threading.Thread(target=relay, args=(source, target, note), daemon=True).start()

    def answered(self, asked):
        def note(head):
            self.exchanges.append((asked.pop(0) if asked else "", head))
        return note


def relay(source, target, note):
    """Passes bytes on, and tells of each head that begins a piece of them: enough for a browser, which does not pipeline."""
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            head = re.match(rb"((GET|HEAD) |HTTP/1\.1 \d\d\d ).*?\r\n\r\n", piece, re.S)
            if head:
                note(head.group(0).decode("latin-1"))
            target.sendall(piece)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def patiently(attempt):
    """Tries until it goes well."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            result = attempt()
            if result is not False:
                return result
            failure = "it did not come true"
        except (OSError, RuntimeError) as error:
            failure = error
        if time.monotonic() > end:
            raise AssertionError(f"not in {PATIENCE} s: {failure}")
        time.sleep(0.05)


def plant(root):
    """A tree to go through."""
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
        assert process.wait(PATIENCE) == 0, "the server ends with 0"


def rows(driver):
    return driver.script("return [...document.querySelectorAll('tbody td.n a')].map(link => link.textContent)")


def expect(what, seen, wanted):
    assert seen == wanted, f"{what}: {seen!r} instead of {wanted!r}"


def at(driver, ending):
    patiently(lambda: driver.url().endswith(ending) or False)


def test(program, backend):
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory() as root:
        plant(root)
        with serving(program, root, "--backend", backend) as port:
            listener = Listener(port)
            driver = Driver(home)
            try:
                by_mouse(driver, f"http://127.0.0.1:{listener.port}/")
                by_keyboard(driver, f"http://127.0.0.1:{listener.port}/")
                plays(driver, f"http://127.0.0.1:{listener.port}/music/", listener)
            finally:
                driver.close()


def by_mouse(driver, top):
    driver.go(top)
    expect("names", rows(driver), ["music/", HOSTILE, "archive.tar.gz", "empty", "notes.txt", "picture.png"])
    expect("no element comes from a name", driver.script("return document.querySelectorAll('tbody b').length"), 0)
    expect("the style is let through", driver.script("return getComputedStyle(document.body).marginTop"), "0px")
    driver.click(driver.link("Size"))
    at(driver, "?sort=size&order=desc")
    expect("by size", rows(driver)[1:3], ["archive.tar.gz", "picture.png"])
    expect("told to readers", driver.script("return document.querySelector('th.s').ariaSort"), "descending")
    driver.click(driver.link("Size"))
    at(driver, "?sort=size&order=asc")
    expect("the other way", rows(driver)[1], "empty")
    driver.click(driver.link("music/"))
    at(driver, "/music/?sort=size&order=asc")
    expect("inside", rows(driver), ["Parent directory", "quiet ones/", "read me.txt", "tone.wav"])
    driver.click(driver.link("read me.txt"))
    at(driver, "/music/read%20me.txt")
    expect("a file", driver.script("return document.body.innerText.trim()"), "one tone, three minutes")
    driver.go(top)
    driver.click(driver.link(HOSTILE))
    patiently(lambda: driver.script("return document.body.innerText.trim()") == "harmless" or False)


def by_keyboard(driver, top):
    driver.go(top)
    for _ in range(20):
        driver.press(TAB)
        if driver.script("return document.activeElement.textContent") == "music/":
            break
    outline = driver.script("return getComputedStyle(document.activeElement).outlineStyle")
    expect("the focus is seen", outline, "solid")
    driver.press(ENTER)
    at(driver, "/music/")
    for _ in range(20):
        driver.press(TAB)
        if driver.script("return document.activeElement.textContent") == "Parent directory":
            break
    driver.press(ENTER)
    patiently(lambda: driver.url() == top or False)


def plays(driver, music, listener):
    """Seeks far ahead of what is there already: that is a request for a range."""
    driver.go(music)
    driver.click(driver.link("tone.wav"))
    at(driver, "/music/tone.wav")
    position = driver.script_async("""
        const [target, done] = arguments, media = document.querySelector('video, audio');
        media.muted = true;
        media.addEventListener('error', () => done('error ' + media.error.message));
        const ready = media.readyState > 0 ? Promise.resolve() : new Promise(on => media.onloadedmetadata = on);
        ready.then(() => media.play()).then(() => { media.onseeked = () => done(media.currentTime); media.currentTime = target; });
        """, TONE_SECONDS - 20)
    assert isinstance(position, (int, float)) and position >= TONE_SECONDS - 20.5, f"it plays: {position}"
    patiently(lambda: driver.script("return document.querySelector('video, audio').currentTime") > position or False)

    def starts():
        heads = [(asked, answer) for asked, answer in listener.exchanges if "tone.wav" in asked]
        for asked, answer in heads:
            start = re.search(r"(?im)^range: bytes=(\d+)-", asked)
            told = re.search(r"(?im)^content-range: bytes (\d+)-\d+/\d+", answer)
            if start and told and answer.startswith("HTTP/1.1 206 ") and start.group(1) == told.group(1):
                yield int(start.group(1))
    half = TONE_SECONDS * 44100 * 2
    assert any(start > half for start in starts()), f"a range is asked for and given: {listener.exchanges!r}"


def screenshots(program, directory):
    """What the pictures show is planted for them."""
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory() as root:
        plant_pictures(os.path.join(root, "projects", "lighthouse"))
        with serving(program, root) as port:
            driver = Driver(home)
            try:
                url = f"http://127.0.0.1:{port}/projects/lighthouse/"
                for name, width, height, scheme in (("light", 700, 560, "light"), ("dark", 700, 560, "dark"),
                                                    ("phone", 390, 780, "light"), ("phone-dark", 390, 780, "dark")):
                    picture(driver, url, os.path.join(directory, name + ".png"), width, height, scheme)
                pair = os.path.join(directory, "pair.html")
                with open(pair, "w", encoding="utf-8") as file:
                    file.write("<body style='margin:0;display:flex'><img src=light.png><img src=dark.png>")
                picture(driver, "file://" + os.path.abspath(pair), os.path.join(directory, "listing.png"), 1400, 560)
                os.remove(pair)
            finally:
                driver.close()


def picture(driver, url, path, width, height, scheme="light"):
    driver.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                    mobile=width < 500)
    driver.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    driver.devtools("Emulation.setScrollbarsHidden", hidden=True)
    driver.go(url)
    with open(path, "wb") as file:
        file.write(base64.b64decode(driver.call("GET", "/screenshot")))


def plant_pictures(root):
    files = {"assets": None, "recordings": None, "src": None, "backup 2026-10.tar.zst": 734_003_200, "cover.jpg": 2_411_724,
             "deploy.sh": 1_204, "Field notes.pdf": 812_441, "intro.mp4": 148_897_792, "lighthouse-0.9.1.iso": 1_610_612_736,
             "main.rs": 7_913, "night-sea.flac": 31_457_280, "README.md": 4_096, "\u6d77\u306e\u97f3.opus": 5_242_880, "LICENCE": 1_071}
    for at, (name, size) in enumerate(files.items()):
        path = os.path.join(root, name)
        os.makedirs(path if size is None else root, exist_ok=True)
        if size is not None:
            with open(path, "wb") as file:
                file.truncate(size)
        moment = 1_795_000_000 - at * at * 1_234_567
        os.utime(path, (moment, moment))


def main():
    program = os.path.abspath(sys.argv[1])
    missing = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    if missing:
        print(f"skipped: {' and '.join(missing)} is not installed")
        sys.exit(1 if os.environ.get("CI_REQUIRE_CLIENTS") else 0)
    if sys.argv[2:3] == ["--screenshots"]:
        return screenshots(program, sys.argv[3])
    for backend in sys.argv[2:] or ["select"]:
        test(program, backend)
        print(f"ok {backend}: a browser goes through the listing by mouse and keyboard, and plays by ranges")


if __name__ == "__main__":
    main()

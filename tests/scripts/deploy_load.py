#!/usr/bin/env python3
"""Deploys releases while clients download, and checks every response: deploy_load.py BINARY BACKEND [SECONDS]

Two ways of deploying run for half of SECONDS each (default: 60):

- symlink: a link `current -> releases/N` is switched every 100 ms, and files are also replaced by renaming; a release is
  removed 2 s after it was replaced. Every response must be a 200 with one whole file of one release.
- rebuild: the directory is removed (rm -rf) and written again. 404 and 503 are correct as well, and so is the beginning
  of a file that is being written, but never an empty listing or a mixture of two releases.
"""

import http.client
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

CLIENTS = 4
SMALL_BYTES, LARGE_BYTES = 1000, 200_000
KEPT_SECONDS = 2


def content(release, size):
    return (f'{release:08d}\n'.encode() * (size // 9 + 1))[:size]


def write_release(directory, release):
    directory.mkdir(parents=True)
    (directory / 'small.txt').write_bytes(content(release, SMALL_BYTES))
    (directory / 'large.bin').write_bytes(content(release, LARGE_BYTES))


class Server:
    def __init__(self, binary, backend, directory):
        arguments = [binary, 'files', str(directory), '--port', '0', '--backend', backend, '--workers', '2']
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.port = int(re.search(rb'127\.0\.0\.1:(\d+)', self.process.stdout.readline()).group(1))

    def stop(self):
        self.process.terminate()
        assert self.process.wait(20) == 0, 'the server did not shut down'


class Load:
    """Clients that request the files and the listing until they are stopped."""

    def __init__(self, port, check):
        self.port, self.check, self.ended = port, check, threading.Event()
        self.statuses, self.problems = Counter(), []
        self.threads = [threading.Thread(target=self.run) for _ in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def run(self):
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=20)
        for path in itertools.cycle(('/small.txt', '/large.bin', '/?format=json')):
            if self.ended.is_set():
                return
            try:
                connection.request('GET', path)
                response = connection.getresponse()
                status, body = response.status, response.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                status, body = type(error).__name__, b''
            self.statuses[path, status] += 1
            problem = self.check(path, status, body)
            if problem:
                self.problems.append(f'{path}: {status}, {problem}')

    def stop(self):
        self.ended.set()
        for thread in self.threads:
            thread.join()


def is_whole(path, body):
    size = SMALL_BYTES if path == '/small.txt' else LARGE_BYTES
    return len(body) == size and body[:8].isdigit() and body == content(int(body[:8]), size)


def check_symlink(path, status, body):
    if status != 200:
        return 'every request must be answered with a file'
    if path == '/?format=json':
        return None if b'small.txt' in body and b'large.bin' in body else f'incomplete listing {body[:100]}'
    return None if is_whole(path, body) else f'not one whole file: {len(body)} bytes'


def check_rebuild(path, status, body):
    if status in (404, 503):
        return None
    if status != 200:
        # The file was truncated or removed by the file system while it was sent.
        return 'unexpected status'
    if path == '/?format=json':
        return None if body.strip() != b'[]' else 'empty listing'
    # A file that is being written may be short, but is of one release.
    is_beginning = not body or len(body) < 8 or body[:8].isdigit() and body == content(int(body[:8]), len(body))
    return None if is_beginning else f'a mixture: {len(body)} bytes'


def deploy_symlinks(site, seconds):
    end, old, release = time.monotonic() + seconds, [], 1
    while time.monotonic() < end:
        release += 1
        write_release(site / 'releases' / str(release), release)
        (site / 'next').symlink_to(f'releases/{release}')
        (site / 'next').rename(site / 'current')
        old.append((time.monotonic() + KEPT_SECONDS, site / 'releases' / str(release - 1)))
        time.sleep(0.05)
        # A file of the current release is replaced as well, by one that was written beside it.
        (site / 'new').write_bytes(content(release + 10_000_000, SMALL_BYTES))
        (site / 'new').rename(site / 'releases' / str(release) / 'small.txt')
        while old and old[0][0] < time.monotonic():
            shutil.rmtree(old.pop(0)[1])
        time.sleep(0.05)
    return release


def rebuild(site, seconds):
    end, release = time.monotonic() + seconds, 1
    while time.monotonic() < end:
        release += 1
        subprocess.run(['rm', '-rf', str(site)], check=True)
        time.sleep(0.02 * (release % 4))
        write_release(site, release)
        time.sleep(0.3 * (release % 5))
    return release


def run(name, binary, backend, seconds, deploy, check, served):
    site = Path(tempfile.mkdtemp(prefix='deploy-')) / 'site'
    try:
        if served:
            write_release(site / 'releases' / '1', 1)
            (site / served).symlink_to('releases/1')
        else:
            write_release(site, 1)
        server = Server(binary, backend, site / served)
        load = Load(server.port, check)
        try:
            releases = deploy(site, seconds)
        finally:
            load.stop()
            server.stop()
        counts = ', '.join(f'{path} {status}: {count}' for (path, status), count in sorted(load.statuses.items(), key=str))
        print(f'{"FAIL" if load.problems else "ok"} {name} ({backend}): {releases} releases; {counts}')
        for problem in load.problems[:5]:
            print(f'  {problem}')
        served_paths = {path for path, status in load.statuses if status == 200}
        return not load.problems and len(served_paths) == 3
    finally:
        shutil.rmtree(site.parent, ignore_errors=True)


def main():
    binary, backend = os.path.abspath(sys.argv[1]), sys.argv[2]
    seconds = float(sys.argv[3]) / 2 if len(sys.argv) > 3 else 30
    good = run('symlink', binary, backend, seconds, deploy_symlinks, check_symlink, 'current')
    good &= run('rebuild', binary, backend, seconds, rebuild, check_rebuild, '')
    sys.exit(0 if good else 1)


main()

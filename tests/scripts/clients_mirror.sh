#!/usr/bin/env bash
# Tests directory listings and downloads with the programs that use them: clients_mirror.sh BINARY BACKEND
# rclone, wget -r and -m, lftp, aria2c, git (dumb HTTP), pip --find-links, and apt with a flat repository.
# A client that is not installed is reported and skipped, unless CI_REQUIRE_CLIENTS is set.
set -euo pipefail
serverd=$1 backend=$2
scratch=$(mktemp -d)
server=
trap '[ -z "$server" ] || { kill -9 "$server"; wait "$server"; } 2>/dev/null || true; rm -rf "$scratch"' EXIT

. "$(dirname "$0")/have.sh"

# No proxy, and no configuration of the user.
unset http_proxy HTTP_PROXY https_proxy all_proxy ALL_PROXY PIP_INDEX_URL PIP_EXTRA_INDEX_URL
export HOME=$scratch/home no_proxy=127.0.0.1 GIT_CONFIG_NOSYSTEM=1 PIP_CONFIG_FILE=/dev/null
mkdir "$HOME"

tree=$scratch/tree
mkdir -p "$tree/data/sub/deep dir" "$tree/apt" "$tree/wheels"
head -c 20000000 /dev/urandom >"$tree/data/large.bin"
head -c 20000 /dev/urandom >"$tree/data/sub/small.bin"
: >"$tree/data/sub/empty.txt"
echo "odd name" >"$tree/data/sub/deep dir/a#b 50%+é.txt"
echo "plain text" >"$tree/data/README"

"$serverd" --port 0 --backend "$backend" --access-log "$scratch/log" --log-format combined files "$tree" >"$scratch/line" &
server=$!
await_port "$scratch/line"
url=http://127.0.0.1:$port

same() { # DIRECTORY WHAT
    diff -r "$tree/data" "$1" || fail "$2"
    echo "ok $2"
}

with_rclone() {
    rclone --config /dev/null copy --http-url "$url/data/" :http: "$scratch/rclone" 2>"$scratch/errors" || fail "rclone: $(cat "$scratch/errors")"
    same "$scratch/rclone" "rclone copy"
    rclone --config /dev/null check --one-way --download --http-url "$url/data/" :http: "$tree/data" 2>"$scratch/errors" || fail "rclone check"
    echo "ok rclone check"
}

with_wget() {
    sleep 1.2 # The access log is written with a delay.
    : >"$scratch/before"
    cp "$scratch/log" "$scratch/before"
    (cd "$scratch" && wget -q -T 10 -r -np -nH --cut-dirs=1 -R 'index.html*' -e robots=off -P wget "$url/data/") || fail "wget -r"
    same "$scratch/wget" "wget -r"
    sleep 1.2
    # Each listing and each file once: 3 directories, 5 files.
    local requests
    requests=$(($(wc -l <"$scratch/log") - $(wc -l <"$scratch/before")))
    [ "$requests" = 8 ] || fail "wget -r made $requests requests instead of 8"
    echo "ok wget -r, each listing once"
    for _ in 1 2; do
        (cd "$scratch" && wget -q -T 10 -m -np -nH --cut-dirs=1 -e robots=off -P mirror "$url/data/") || fail "wget -m"
    done
    cmp "$scratch/mirror/large.bin" "$tree/data/large.bin" || fail "wget -m"
    echo "ok wget -m, twice"
}

with_lftp() {
    for _ in 1 2; do
        lftp -c "set net:max-retries 2; set net:timeout 10; open $url/data/; mirror . $scratch/lftp" || fail "lftp mirror"
    done
    same "$scratch/lftp" "lftp mirror, twice"
    head -c 1234567 "$tree/data/large.bin" >"$scratch/part"
    lftp -c "set net:max-retries 2; set net:timeout 10; open $url/data/; get -c large.bin -o $scratch/part" || fail "lftp get -c"
    cmp "$scratch/part" "$tree/data/large.bin" || fail "lftp get -c"
    echo "ok lftp get -c, resumes a download"
}

with_aria2c() {
    aria2c -q --no-conf -x 8 -s 8 -k 1M -d "$scratch" -o aria.bin "$url/data/large.bin" || fail "aria2c"
    cmp "$scratch/aria.bin" "$tree/data/large.bin" || fail "aria2c"
    echo "ok aria2c, 8 connections"
    aria2c -q --no-conf -d "$scratch" -o aria.empty "$url/data/sub/empty.txt" || fail "aria2c, an empty file"
    [ ! -s "$scratch/aria.empty" ] || fail "aria2c, an empty file"
    echo "ok aria2c, an empty file"
}

with_git() {
    local git="git -c user.name=a -c user.email=a@b -c init.defaultBranch=main"
    $git init -q "$scratch/work"
    cp "$tree/data/README" "$scratch/work"
    $git -C "$scratch/work" add README
    $git -C "$scratch/work" commit -q -m one
    $git clone -q --bare "$scratch/work" "$tree/repo.git"
    $git -C "$tree/repo.git" update-server-info
    $git clone -q "$url/repo.git" "$scratch/clone" || fail "git clone"
    cmp "$scratch/clone/README" "$tree/data/README" || fail "git clone"
    echo two >>"$scratch/work/README"
    $git -C "$scratch/work" commit -q -a -m two
    $git -C "$scratch/work" push -q "$tree/repo.git" main
    $git -C "$tree/repo.git" gc -q
    $git -C "$tree/repo.git" update-server-info
    # A file of references that was read a moment ago may be remembered for a second.
    sleep 1.1
    $git -C "$scratch/clone" pull -q || fail "git pull"
    cmp "$scratch/clone/README" "$scratch/work/README" || fail "git pull"
    echo "ok git clone and pull over dumb HTTP"
}

with_pip() {
    python3 - "$tree/wheels/demo_package-1.0-py3-none-any.whl" <<'PYTHON'
import sys, zipfile
with zipfile.ZipFile(sys.argv[1], 'w') as wheel:
    info = 'demo_package-1.0.dist-info/'
    wheel.writestr('demo_package.py', 'x = 1\n')
    wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\nName: demo-package\nVersion: 1.0\n')
    wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
    wheel.writestr(info + 'RECORD', 'demo_package.py,,\n')
PYTHON
    python3 -m pip download -q --disable-pip-version-check --no-cache-dir --no-index --find-links "$url/wheels/" \
        -d "$scratch/pip" demo-package || fail "pip download"
    cmp "$tree"/wheels/*.whl "$scratch"/pip/*.whl || fail "pip download"
    echo "ok pip --find-links"
}

with_apt() {
    local package=$scratch/package apt=$scratch/apt
    mkdir -p "$package/DEBIAN" "$package/usr/share/demo" "$apt/state/lists/partial" "$apt/cache/archives/partial" "$apt/etc"
    echo demo >"$package/usr/share/demo/demo.txt"
    printf 'Package: serverd-demo\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@b>\nDescription: demo\n' >"$package/DEBIAN/control"
    dpkg-deb -b "$package" "$tree/apt/serverd-demo_1.0_all.deb" >/dev/null
    local deb=$tree/apt/serverd-demo_1.0_all.deb
    { cat "$package/DEBIAN/control"; printf 'Filename: ./serverd-demo_1.0_all.deb\nSize: %s\nSHA256: %s\n\n' \
        "$(stat -c %s "$deb")" "$(sha256sum "$deb" | cut -d' ' -f1)"; } >"$tree/apt/Packages"
    echo "deb [trusted=yes] $url/apt ./" >"$apt/etc/sources.list"
    local options=(-q -o "Dir::Etc::SourceList=$apt/etc/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State=$apt/state" -o "Dir::State::status=/dev/null" -o "Dir::Cache=$apt/cache" -o Acquire::Languages=none
        -o Acquire::http::Proxy=DIRECT -o APT::Sandbox::User=root -o APT::Update::Post-Invoke-Success::=)
    for _ in 1 2; do
        apt-get "${options[@]}" update >"$scratch/errors" 2>&1 || fail "apt-get update: $(cat "$scratch/errors")"
    done
    (cd "$scratch" && apt-get "${options[@]}" download serverd-demo >"$scratch/errors" 2>&1) || fail "apt-get download: $(cat "$scratch/errors")"
    cmp "$deb" "$scratch/serverd-demo_1.0_all.deb" || fail "apt-get download"
    echo "ok apt-get update and download from a flat repository"
}

! have rclone || with_rclone
! have wget || with_wget
! have lftp || with_lftp
! have aria2c || with_aria2c
! have git || with_git
! have python3 || with_pip
! have apt-get || ! have dpkg-deb || with_apt
kill -TERM "$server"
wait "$server" || fail "the server exited with $?"
server=

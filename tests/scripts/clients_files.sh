#!/usr/bin/env bash
# Tests the file server with curl and wget, and without openat2: clients_files.sh BINARY BACKEND
# A client that is not installed is reported and skipped, unless CI_REQUIRE_CLIENTS is set.
set -euo pipefail
serverd=$1 backend=$2
scratch=$(mktemp -d)
server=
trap '[ -z "$server" ] || { kill -9 "$server"; wait "$server"; } 2>/dev/null || true; rm -rf "$scratch"' EXIT

. "$(dirname "$0")/have.sh"

create_tree() { # a website whose pages link to every file
    mkdir -p "$scratch/site/sub/deep dir"
    head -c 5000000 /dev/urandom >"$scratch/site/large.bin"
    head -c 20000 /dev/urandom >"$scratch/site/sub/small.bin"
    : >"$scratch/site/sub/empty.txt"
    echo "body { color: black }" >"$scratch/site/style.css"
    echo "hash, percent and question" >"$scratch/site/sub/deep dir/a#b 50%?.txt"
    cat >"$scratch/site/index.html" <<'PAGE'
<link rel=stylesheet href=style.css><a href=large.bin>large</a> <a href=sub/>sub</a>
PAGE
    cat >"$scratch/site/sub/index.html" <<'PAGE'
<a href=small.bin>small</a> <a href=/sub/empty.txt>empty</a> <a href="deep%20dir/">deep</a> <a href="../">up</a>
PAGE
    cat >"$scratch/site/sub/deep dir/index.html" <<'PAGE'
<a href="a%23b%2050%25%3F.txt">odd</a>
PAGE
}

start() { # sets `server`, `port` and `url`
    "$serverd" files "$scratch/site" --port 0 --backend "$backend" >"$scratch/line" &
    server=$!
    await_start
}

await_start() {
    await_port "$scratch/line"
    # So that the next server is not taken for this one before it has begun.
    rm "$scratch/line"
    url=http://127.0.0.1:$port
}

with_curl() {
    local part=$scratch/part
    # Resume an interrupted download.
    head -c 1234567 "$scratch/site/large.bin" >"$part"
    curl -sS -m 20 -C - -o "$part" "$url/large.bin"
    cmp "$part" "$scratch/site/large.bin" || fail "curl -C -"
    echo "ok curl -C -, resumes a download"
    [ "$(curl -sS -m 10 -r 10-19,4999990- "$url/large.bin" | grep -ac '^Content-Range: bytes ')" = 2 ] || fail "curl -r, two parts"
    echo "ok curl -r, two parts"
    curl -sS -m 10 -R --etag-save "$scratch/tag" -o "$scratch/again" "$url/large.bin"
    [ "$(curl -sS -m 10 --etag-compare "$scratch/tag" -o /dev/null -w '%{response_code}' "$url/large.bin")" = 304 ] || fail "curl --etag-compare"
    [ "$(curl -sS -m 10 -z "$scratch/again" -o /dev/null -w '%{response_code}' "$url/large.bin")" = 304 ] || fail "curl -z"
    echo "ok curl --etag-compare and -z, 304 for an unchanged file"
    [ "$(curl -sS -m 10 --path-as-is -o /dev/null -w '%{response_code}' "$url/../../../../etc/passwd")" = 404 ] || fail "curl --path-as-is"
    echo "ok curl --path-as-is, no path traversal"
}

with_wget() {
    (cd "$scratch" && wget -q -T 10 -r -l 10 -nH -np -P mirror "$url/")
    diff -r "$scratch/site" "$scratch/mirror" || fail "wget -r"
    echo "ok wget -r, the mirror is complete"
    (cd "$scratch" && head -c 777 site/large.bin >large.bin && wget -q -T 10 -c "$url/large.bin")
    cmp "$scratch/large.bin" "$scratch/site/large.bin" || fail "wget -c"
    echo "ok wget -c, resumes a download"
}

# If the kernel lacks openat2, or a seccomp filter blocks it, paths are resolved component by component. The results
# must be the same.
without_openat2() { # ERROR
    strace -f -qq -o "$scratch/trace" -e trace=openat2 -e "inject=openat2:error=$1" \
        "$serverd" files "$scratch/site" --port 0 --backend "$backend" >"$scratch/line" &
    server=$!
    await_start
    local code
    for check in /sub/small.bin:200 /sub:301 /link:200 /out/secret:404 /..%2fsecret:404 /none:404; do
        code=$(curl -sS -m 10 -o "$scratch/got" -w '%{response_code}' "$url${check%:*}")
        [ "$code" = "${check##*:}" ] || fail "without openat2 ($1): ${check%:*} is $code"
    done
    grep -q INJECTED "$scratch/trace" || [ "$(uname -s)" != Linux ] || fail "openat2 was not called"
    pkill -TERM -P "$server"
    wait "$server" || fail "the server exited with $?"
    server=
    echo "ok without openat2 ($1)"
}

with_strace() {
    if ! strace -o /dev/null -e inject=getpid:error=EINTR true 2>/dev/null; then
        echo "SKIPPED: strace cannot inject faults here"
        return
    fi
    echo secret >"$scratch/secret"
    ln -s sub/small.bin "$scratch/site/link"
    ln -s .. "$scratch/site/out"
    without_openat2 ENOSYS
    without_openat2 EPERM
}

create_tree
start
! have curl || with_curl
! have wget || with_wget
kill -TERM "$server"
wait "$server" || fail "the server exited with $?"
server=
! have strace || ! have curl || with_strace

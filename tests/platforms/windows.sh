#!/usr/bin/env bash
# Black-box tests of serverd.exe under Wine that the test suite cannot do there: Ctrl-C, a console, and 5,000 clients at
# once. Prints a line for each check, and exits with 1 if one failed.
#
#   windows.sh PATH/TO/serverd.exe [CLIENTS]
set -uo pipefail
exe=$1 clients=${2:-5000}
here=$(cd "$(dirname "$0")" && pwd)
. "$here/env.sh"
ulimit -n "$(ulimit -Hn)" || true
failed=0
output=$(mktemp -d)
trap '[ -z "${pid:-}" ] || kill -9 "$pid" 2>/dev/null; wineserver -k 2>/dev/null; rm -rf "$output"' EXIT

check() { # NAME COMMAND...
    local name=$1 start=$SECONDS
    shift
    if "$@"; then echo "ok $name ($((SECONDS - start)) s)"; else echo "not ok $name"; failed=1; fi
}

start() { # ARGUMENTS: sets pid and port
    "$here/wine-run" "$exe" --port 0 "$@" >"$output/out" 2>"$output/err" &
    pid=$! port=
    for _ in $(seq 300); do
        port=$(sed -n 's/^serverd: .*:\/\/127\.0\.0\.1:\([0-9]*\) .*/\1/p' "$output/out")
        [ -z "$port" ] || return 0
        sleep 0.1
    done
    cat "$output/err" >&2
    return 1
}

exits_with() { # CODE
    for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    wait "$pid"
    local code=$?
    pid=
    [ $code = "$1" ] || { echo "# exit code $code, not $1"; cat "$output/err"; return 1; }
}

responds() { [ "$(curl -sS -m 20 "http://127.0.0.1:$port/")" = "this is response from server" ]; }

uses_select() { grep -q '(select, 1 worker)' "$output/out"; }

many_clients() { python3 "$here/many_clients.py" "127.0.0.1:$port" "$clients" 60; }

# Many clients that disconnect immediately, some in the middle of a request. The server must still respond afterwards.
connect_and_disconnect() {
    for i in $(seq 400); do
        exec 8<>"/dev/tcp/127.0.0.1/$port" || return 1
        [ $((i % 3)) != 0 ] || printf 'GET / HT' >&8
        exec 8>&-
    done
    responds
}

# Ctrl-C during a request: the server finishes the request, then exits.
shuts_down_gracefully() {
    local line response
    exec 9<>"/dev/tcp/127.0.0.1/$port" || return 1
    printf 'POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n' >&9
    IFS= read -r -t 20 line <&9 && [[ $line == "HTTP/1.1 100"* ]] || return 1
    kill -INT "$pid"
    # Wait until the listener is closed, which happens first.
    for _ in $(seq 100); do (exec 7<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break; sleep 0.05; done
    printf 'ab' >&9
    response=$(timeout 20 cat <&9)
    exec 9>&-
    [[ $response == *"HTTP/1.1 200"*"this is response from server" ]]
}

second_interrupt() {
    exec 9<>"/dev/tcp/127.0.0.1/$port" || return 1
    printf 'POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n' >&9
    IFS= read -r -t 20 _ <&9 || return 1
    kill -INT "$pid"
    for _ in $(seq 100); do (exec 7<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break; sleep 0.05; done
    kill -INT "$pid"
    exits_with 130
    local outcome=$?
    exec 9>&-
    return $outcome
}

unsupported_backend() { # one line on stderr, exit code 1
    "$here/wine-run" "$exe" --backend epoll >"$output/out" 2>"$output/err"
    [ $? = 1 ] && [ "$(wc -l <"$output/err")" = 1 ] && grep -q 'epoll is available on Linux only' "$output/err"
}

check "rejects --backend epoll with one line" unsupported_backend
check "starts" start || exit 1
check "uses the select backend by default" uses_select
check "responds" responds
check "$clients clients at once, each within 60 s" many_clients
check "400 clients that disconnect immediately" connect_and_disconnect
check "finishes in-flight requests on Ctrl-C" shuts_down_gracefully
check "exits with 0" exits_with 0
check "starts again" start || exit 1
check "exits at once with 130 on a second Ctrl-C" second_interrupt
python3 "$here/console.py" "$exe" || failed=1
exit $failed

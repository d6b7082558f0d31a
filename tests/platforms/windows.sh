#!/usr/bin/env bash
# serverd.exe under Wine, seen from outside: what its own tests cannot do there, which is Ctrl-C, a console, and 5,000
# clients at once. Prints a line for each check; exit 1 when one failed.
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

ends_with() { # CODE
    for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    wait "$pid"
    local code=$?
    pid=
    [ $code = "$1" ] || { echo "# exit code $code, not $1"; cat "$output/err"; return 1; }
}

is_answered() { [ "$(curl -sS -m 20 "http://127.0.0.1:$port/")" = "this is response from server" ]; }

says_select() { grep -q '(select, 1 worker)' "$output/out"; }

crowd() { python3 "$here/crowd.py" "127.0.0.1:$port" "$clients" 60; }

storm() { # many who connect and go away at once, some after half a request; then the server answers as before
    for i in $(seq 400); do
        exec 8<>"/dev/tcp/127.0.0.1/$port" || return 1
        [ $((i % 3)) != 0 ] || printf 'GET / HT' >&8
        exec 8>&-
    done
    is_answered
}

# A request is under way when Ctrl-C comes: it is finished, and the server ends as told.
drains() {
    local line answer
    exec 9<>"/dev/tcp/127.0.0.1/$port" || return 1
    printf 'POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n' >&9
    IFS= read -r -t 20 line <&9 && [[ $line == "HTTP/1.1 100"* ]] || return 1
    kill -INT "$pid"
    # The listener goes first.
    for _ in $(seq 100); do (exec 7<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break; sleep 0.05; done
    printf 'ab' >&9
    answer=$(timeout 20 cat <&9)
    exec 9>&-
    [[ $answer == *"HTTP/1.1 200"*"this is response from server" ]]
}

second_interrupt() {
    exec 9<>"/dev/tcp/127.0.0.1/$port" || return 1
    printf 'POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n' >&9
    IFS= read -r -t 20 _ <&9 || return 1
    kill -INT "$pid"
    for _ in $(seq 100); do (exec 7<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break; sleep 0.05; done
    kill -INT "$pid"
    ends_with 130
    local outcome=$?
    exec 9>&-
    return $outcome
}

foreign_backend() { # one sentence, exit code 1
    "$here/wine-run" "$exe" --backend epoll >"$output/out" 2>"$output/err"
    [ $? = 1 ] && [ "$(wc -l <"$output/err")" = 1 ] && grep -q 'epoll is for Linux' "$output/err"
}

check "--backend epoll is refused in one sentence" foreign_backend
check "starts" start || exit 1
check "takes select by itself" says_select
check "answers" is_answered
check "$clients clients at once, each within 60 s" crowd
check "400 who leave at once" storm
check "finishes at Ctrl-C what is under way" drains
check "ends with 0" ends_with 0
check "starts once more" start || exit 1
check "ends at once with 130 at a second Ctrl-C" second_interrupt
python3 "$here/console.py" "$exe" || failed=1
exit $failed

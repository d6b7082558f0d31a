# Functions of scripts that start a server and run real clients. Sourced by them.

fail() { echo "FAILED: $*"; exit 1; }

have() { # PROGRAM
    command -v "$1" >/dev/null && return
    [ -z "${CI_REQUIRE_CLIENTS:-}" ] || fail "$1 is not installed"
    echo "skipped: $1 is not installed"
    return 1
}

await_port() { # FILE: waits until a server has written its start line to FILE; sets `port`
    port=
    for _ in $(seq 200); do
        # The file may not exist yet: the server in the background creates it.
        port=$(sed -n 's/.*127\.0\.0\.1:\([0-9]*\) .*/\1/p' "$1" 2>/dev/null || true)
        [ -n "$port" ] && return
        sleep 0.05
    done
    fail "the server did not start"
}

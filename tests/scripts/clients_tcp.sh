#!/usr/bin/env bash
# Tests the echo and chat servers with nc, ncat and telnet, and with serverd's own clients, without and with a terminal.
#   clients_tcp.sh BINARY BACKEND WORKERS
# A client that is not installed is reported and skipped, unless CI_REQUIRE_CLIENTS is set. nc must be OpenBSD's.
set -euo pipefail
serverd=$1 backend=$2 workers=$3
scratch=$(mktemp -d)
pids=()
trap 'for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done; rm -rf "$scratch"' EXIT

fail() {
    echo "failed: $1" >&2
    exit 1
}

wait_for() { # FILE TEXT
    for _ in $(seq 200); do
        grep -qF -- "$2" "$1" 2>/dev/null && return
        sleep 0.05
    done
    cat "$1" >&2 || true
    fail "\"$2\" not found in $(basename "$1")"
}

start() { # COMMAND; sets `server` and `port`
    "$serverd" "$1" --port 0 --backend "$backend" --workers "$workers" >"$scratch/line" &
    server=$!
    pids+=("$server")
    wait_for "$scratch/line" "$1 on tcp://127.0.0.1:"
    port=$(sed -n 's/.*127\.0\.0\.1:\([0-9]*\) .*/\1/p' "$scratch/line")
    rm "$scratch/line"
}

finish() {
    kill -TERM "$server"
    wait "$server" || fail "the server exited with $?"
}

has() {
    command -v "$1" >/dev/null && return
    echo "skipped: $1 is not installed"
    [ -z "${CI_REQUIRE_CLIENTS:-}" ] || fail "$1 is missing"
    return 1
}

declare -A command=([nc]="nc 127.0.0.1" [ncat]="ncat 127.0.0.1" [telnet]="telnet 127.0.0.1")

echo_all() {
    local sum back
    head -c 20000000 /dev/urandom >"$scratch/bytes"
    sum=$(sha256sum <"$scratch/bytes")
    for program in "nc -N 127.0.0.1 $port" "ncat 127.0.0.1 $port" "$serverd connect 127.0.0.1:$port"; do
        has "${program%% *}" || continue
        back=$($program <"$scratch/bytes" | sha256sum)
        [ "$sum" = "$back" ] || fail "$program: the echoed bytes differ"
    done
    echo "echo: ok with nc, ncat and connect"
}

# Starts a client in the background. File descriptor ${input[NAME]} is its input, $scratch/NAME its output.
declare -A input
join() { # NAME COMMAND...
    local name=$1 fd
    shift
    mkfifo "$scratch/$name.in"
    # Close the inputs of the other clients in the child; otherwise they would never see the end of their input.
    (for fd in "${input[@]}"; do exec {fd}>&-; done && exec "$@") <"$scratch/$name.in" >"$scratch/$name" 2>&1 &
    pids+=("$!")
    exec {fd}>"$scratch/$name.in"
    input[$name]=$fd
    wait_for "$scratch/$name" "* Welcome, guest"
    echo "/nick $name" >&"$fd"
    wait_for "$scratch/$name" "* You are now $name."
}

chat_all() {
    local clients=() from to
    for name in nc ncat telnet; do
        has "$name" || continue
        # shellcheck disable=SC2086
        join "$name" ${command[$name]} "$port"
        clients+=("$name")
    done
    join connect "$serverd" connect "127.0.0.1:$port"
    clients+=(connect)
    for from in "${clients[@]}"; do
        echo "grüße from $from" >&"${input[$from]}"
        for to in "${clients[@]}"; do
            [ "$from" = "$to" ] || wait_for "$scratch/$to" "[$from] grüße from $from"
        done
    done
    # The clients leave in different ways: with /quit or at the end of their input.
    for from in "${clients[@]::${#clients[@]}-1}"; do
        [ "$from" = ncat ] || echo "/quit" >&"${input[$from]}"
        exec {input[$from]}>&-
        wait_for "$scratch/connect" "* $from left"
    done
    finish
    wait_for "$scratch/connect" "* The server is shutting down. Goodbye."
    echo "chat: ok with ${clients[*]}"
}

start echo
"$serverd" check "tcp://127.0.0.1:$port" >/dev/null || fail "check of the running server"
echo_all
finish
"$serverd" check "tcp://127.0.0.1:$port" 2>/dev/null && fail "check of a stopped server succeeded"
start chat
chat_all
python3 "$(dirname "$0")/chat_session.py" "$serverd" "$backend" "$workers"

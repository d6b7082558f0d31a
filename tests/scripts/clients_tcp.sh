#!/usr/bin/env bash
# Programs that people have talk to the echo and to the chat, and the own clients to all of them.
#   clients_tcp.sh BINARY BACKEND WORKERS
# Needs nc (of OpenBSD), ncat and telnet; what is missing is told, and with CI_REQUIRE_CLIENTS=1 a failure.
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
    fail "\"$2\" does not come to $(basename "$1")"
}

start() { # COMMAND; sets `server` and `port`
    "$serverd" "$1" --port 0 --backend "$backend" --workers "$workers" >"$scratch/line" &
    server=$!
    pids+=("$server")
    wait_for "$scratch/line" "$1 on tcp://127.0.0.1:"
    port=$(sed -n 's/.*127\.0\.0\.1:\([0-9]*\) .*/\1/p' "$scratch/line")
}

finish() {
    kill -TERM "$server"
    wait "$server" || fail "the server ended with $?"
}

has() {
    command -v "$1" >/dev/null && return
    echo "skipped: $1 is not installed"
    [ -z "${CI_REQUIRE_CLIENTS:-}" ] || fail "$1 is missing"
    return 1
}

declare -A talk=([nc]="nc 127.0.0.1" [ncat]="ncat 127.0.0.1" [telnet]="telnet 127.0.0.1")

echo_all() {
    local sum back
    head -c 20000000 /dev/urandom >"$scratch/bytes"
    sum=$(sha256sum <"$scratch/bytes")
    for program in "nc -N 127.0.0.1 $port" "ncat 127.0.0.1 $port" "$serverd connect 127.0.0.1:$port"; do
        has "${program%% *}" || continue
        back=$($program <"$scratch/bytes" | sha256sum)
        [ "$sum" = "$back" ] || fail "$program does not get its bytes back"
    done
    echo "echo: nc, ncat and connect get their bytes back"
}

# One person in the background; lines are written to descriptor ${say[NAME]}, and read in $scratch/NAME.
declare -A say
come() { # NAME COMMAND...
    local name=$1 fd
    shift
    mkfifo "$scratch/$name.in"
    # Without the others' descriptors, or the end of their input would never come.
    (for fd in "${say[@]}"; do exec {fd}>&-; done && exec "$@") <"$scratch/$name.in" >"$scratch/$name" 2>&1 &
    pids+=("$!")
    exec {fd}>"$scratch/$name.in"
    say[$name]=$fd
    wait_for "$scratch/$name" "* Welcome, guest"
    echo "/nick $name" >&"$fd"
    wait_for "$scratch/$name" "* You are now $name."
}

chat_all() {
    local people=() from to
    for name in nc ncat telnet; do
        has "$name" || continue
        # shellcheck disable=SC2086
        come "$name" ${talk[$name]} "$port"
        people+=("$name")
    done
    come connect "$serverd" connect "127.0.0.1:$port"
    people+=(connect)
    for from in "${people[@]}"; do
        echo "grüße from $from" >&"${say[$from]}"
        for to in "${people[@]}"; do
            [ "$from" = "$to" ] || wait_for "$scratch/$to" "[$from] grüße from $from"
        done
    done
    # Each leaves in its way: by command, by the end of its input.
    for from in "${people[@]::${#people[@]}-1}"; do
        [ "$from" = ncat ] || echo "/quit" >&"${say[$from]}"
        exec {say[$from]}>&-
        wait_for "$scratch/connect" "* $from left"
    done
    finish
    wait_for "$scratch/connect" "* The server is going down. Goodbye."
    echo "chat: ${people[*]} talk"
}

start echo
"$serverd" check "tcp://127.0.0.1:$port" >/dev/null || fail "the check of the echo"
echo_all
finish
"$serverd" check "tcp://127.0.0.1:$port" 2>/dev/null && fail "the check of a server that is gone"
start chat
chat_all

#!/usr/bin/env bash
# Counts the system calls of 1,000 keep-alive requests on one connection, on both backends. Expects one recvfrom and one
# sendto per request, and no epoll_ctl calls beyond those at the start of the server and of the connection.
#   strace_count.sh PATH-OF-SERVERD
set -euo pipefail
serverd=$1
here=$(dirname "$0")
. "$here/have.sh"
requests=1000
work=$(mktemp -d)
tracer=
trap '[ -z "$tracer" ] || kill -9 "$tracer" 2>/dev/null || true; rm -rf "$work"' EXIT

if ! strace -o /dev/null true 2>/dev/null; then
    echo "SKIPPED: strace is not permitted here; nothing was counted"
    exit 0
fi

calls() { # NAME: prints the number of calls
    awk -v name="$1" '$NF == name { print $4; found = 1 } END { if (!found) print 0 }' "$work/counts"
}

for backend in epoll select; do
    strace -f -c -o "$work/counts" "$serverd" --port 0 --backend "$backend" >"$work/out" &
    tracer=$!
    await_port "$work/out"
    python3 "$here/keepalive.py" "$port" $requests
    pkill -TERM -P "$tracer"
    wait "$tracer"
    tracer=
    received=$(calls recvfrom) sent=$(calls sendto) controlled=$(calls epoll_ctl)
    echo "$backend: $requests requests, $received recvfrom, $sent sendto, $controlled epoll_ctl"
    grep -E 'calls|recvfrom|sendto|epoll|select|accept' "$work/counts"
    [ "$received" -ge $requests ] && [ "$received" -le $((requests + 10)) ]
    # The signal pipes take a few more: six to test them, and those at shutdown.
    [ "$sent" -ge $requests ] && [ "$sent" -le $((requests + 20)) ]
    [ "$controlled" -le 6 ]
done

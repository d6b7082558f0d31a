#!/usr/bin/env bash
# Uses strace to make file look-ups of the running server slow. Checks that the loop serves other requests in between,
# and that all look-ups are answered correctly.
#   strace_slow_files.sh PATH-OF-SERVERD
set -euo pipefail
serverd=$1
here=$(dirname "$0")
work=$(mktemp -d)
tracer=
trap '[ -z "$tracer" ] || kill -9 "$tracer" 2>/dev/null || true; rm -rf "$work"' EXIT

if ! strace -f --seccomp-bpf -o /dev/null -e trace=getpid -e inject=getpid:delay_enter=1 true 2>/dev/null; then
    echo "SKIPPED: strace cannot delay system calls here; nothing was tested"
    exit 0
fi

mkdir "$work/public" "$work/public/sub"
for number in $(seq 40); do echo "$number" >"$work/public/$number.txt"; done

for backend in epoll select; do
    rm -f "$work/out" "$work/trace"
    # 50 ms for each file that is opened or examined, several of which make a look-up.
    strace -f -qq --seccomp-bpf -o "$work/trace" -e trace=openat2 -e inject=openat2:delay_enter=50000 \
        "$serverd" files "$work/public" --port 0 --workers 1 --backend $backend >"$work/out" 2>"$work/log" &
    tracer=$!
    port=
    for _ in $(seq 200); do
        port=$(sed -n 's/.*http:\/\/127\.0\.0\.1:\([0-9]*\) .*/\1/p' "$work/out" 2>/dev/null || true)
        [ -n "$port" ] && break
        sleep 0.05
    done
    [ -n "$port" ] || { cat "$work/log"; exit 1; }
    python3 "$here/slow_files.py" "$port" "$backend" "$work/trace" || { cat "$work/log"; exit 1; }
    pkill -TERM -P "$tracer"
    timeout 20 tail --pid="$tracer" -f /dev/null
    wait "$tracer" || { cat "$work/log"; exit 1; }
    tracer=
done

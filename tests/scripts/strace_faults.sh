#!/usr/bin/env bash
# Uses strace to make system calls of the running server fail. Checks that all requests are served nevertheless, and
# that the server exits with 0 on SIGTERM.
#   strace_faults.sh PATH-OF-SERVERD
set -euo pipefail
serverd=$1
here=$(dirname "$0")
work=$(mktemp -d)
tracer=
trap '[ -z "$tracer" ] || kill -9 "$tracer" 2>/dev/null || true; rm -rf "$work"' EXIT

if ! strace -o /dev/null -e inject=getpid:error=EINTR true 2>/dev/null; then
    echo "SKIPPED: strace cannot inject faults here; nothing was tested"
    exit 0
fi

# System calls, the error to inject, and the calls that fail: FIRST+STEP or FIRST..LAST.
rules=(
    "epoll_wait,epoll_pwait,epoll_pwait2,select,pselect6:error=EINTR:when=1+2"
    "recvfrom,recvmsg,read:error=EINTR:when=10+2"
    "sendto,sendmsg,write,writev:error=EINTR:when=1+2"
    "accept4:error=EINTR:when=1+2"
    "accept4:error=ECONNABORTED:when=1+2"
    "accept4:error=EPERM:when=1+2"
    "accept4:error=EPROTO:when=1+2"
    "accept4:error=EMFILE:when=1..3"
    "accept4:error=ENFILE:when=2+4"
    "accept4:error=ENOBUFS:when=1+2"
    "accept4:error=ENOMEM:when=1+2"
    "accept4:error=EINVAL:when=3"
)

try() { # BACKEND WORKERS RULE
    local port=
    rm -f "$work/out"
    strace -f -qq -o "$work/trace" -e "inject=$3" "$serverd" --port 0 --backend "$1" --workers "$2" \
        >"$work/out" 2>"$work/log" &
    tracer=$!
    for _ in $(seq 200); do
        port=$(sed -n 's/.*http:\/\/127\.0\.0\.1:\([0-9]*\) .*/\1/p' "$work/out" 2>/dev/null || true)
        [ -n "$port" ] && break
        sleep 0.05
    done
    [ -n "$port" ] || { cat "$work/log"; return 1; }
    for _ in 1 2 3 4 5; do
        timeout 20 python3 "$here/keepalive.py" "$port" 20 || return 1
    done
    pkill -TERM -P "$tracer"
    timeout 20 tail --pid="$tracer" -f /dev/null || return 1
    wait "$tracer" || { cat "$work/log"; return 1; }
    tracer=
    injected=$(grep -c INJECTED "$work/trace" || true)
    if grep -q panicked "$work/log"; then cat "$work/log"; return 1; fi
}

for rule in "${rules[@]}"; do
    for setup in "epoll 1" "select 1" "epoll 2"; do
        # shellcheck disable=SC2086
        if ! try $setup "$rule"; then
            echo "failed: $setup, $rule"
            exit 1
        fi
        echo "$setup: $rule: $injected calls failed, all requests were served"
    done
done

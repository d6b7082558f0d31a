#!/usr/bin/env bash
# Tests a running default server with real HTTP clients: clients_http.sh HOST:PORT
# A client that is not installed is reported and skipped, unless CI_REQUIRE_CLIENTS is set.
set -euo pipefail
address=$1
here=$(dirname "$0")
text="this is response from server"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

. "$(dirname "$0")/have.sh"

equals() { # NAME EXPECTED ACTUAL
    [ "$2" = "$3" ] || fail "$1: expected '$2', got '$3'"
    echo "ok $1"
}

with_curl() {
    local url=http://$address
    head -c 900000 /dev/urandom >"$scratch/upload"
    equals "curl, 3 requests on one connection" "$text$text$text connects 1 0 0" \
        "$(curl -sS -m 10 -w '' "$url/1" "$url/2" "$url/3") connects $(curl -sS -m 10 -o /dev/null -o /dev/null -o /dev/null \
            -w '%{num_connects} ' "$url/1" "$url/2" "$url/3" | sed 's/ $//')"
    equals "curl --http1.0" "$text 200 1.1" "$(curl -sS -m 10 --http1.0 -w ' %{response_code} %{http_version}' "$url/")"
    equals "curl -T" "$text 200" "$(curl -sS -m 10 -T "$scratch/upload" -w ' %{response_code}' "$url/upload")"
    equals "curl -T, chunked" "$text 200" "$(curl -sS -m 10 -T - -w ' %{response_code}' "$url/upload" <"$scratch/upload")"
    equals "curl, Expect: 100-continue" "100 200" "$(curl -sS -m 10 -v -H 'Expect: 100-continue' --data-binary "@$scratch/upload" \
        "$url/" 2>&1 >/dev/null | sed -n 's/^< HTTP\/1.1 \([0-9]*\).*/\1/p' | paste -sd' ')"
    equals "curl, body too large" "413" "$(head -c 3000000 /dev/zero | curl -sS -m 10 -T - -o /dev/null -w '%{response_code}' "$url/" 2>/dev/null || true)"
    equals "curl -I" "200 28" "$(curl -sSI -m 10 -o "$scratch/head" -w '%{response_code}' "$url/") $(sed -n 's/\r//; s/^Content-Length: //p' "$scratch/head")"
    equals "curl -X OPTIONS" "204" "$(curl -sS -m 10 -X OPTIONS -o /dev/null -w '%{response_code}' "$url/")"
    equals "curl -X TRACE" "405" "$(curl -sS -m 10 -X TRACE -o /dev/null -w '%{response_code}' "$url/")"
}

# At least 10,000 requests on one connection. wrk runs for a fixed time, so a slow machine gets a second, longer run.
with_wrk() {
    local out count=0
    for seconds in 2 20; do
        [ "$count" -lt 10000 ] || break
        out=$(wrk -t 1 -c 1 -d "${seconds}s" "http://$address/")
        count=$(sed -n 's/^ *\([0-9]*\) requests in.*/\1/p' <<<"$out")
        ! grep -qE 'Socket errors|Non-2xx' <<<"$out" || fail "wrk: $out"
    done
    [ "$count" -ge 10000 ] || fail "wrk: only $count requests in 20 s"
    echo "ok wrk, more than 10,000 requests on one connection"
}

with_h2load() {
    local out
    out=$(h2load --h1 -n 10000 -c 1 "http://$address/")
    grep -q 'requests: 10000 total, 10000 started, 10000 done, 10000 succeeded, 0 failed, 0 errored, 0 timeout' <<<"$out" ||
        fail "h2load: $out"
    echo "ok h2load --h1, 10,000 requests on one connection"
}

! have curl || with_curl
! have wrk || with_wrk
! have h2load || with_h2load
! have python3 || python3 "$here/clients_http.py" "$address"
! have node || node "$here/clients_http.mjs" "$address"

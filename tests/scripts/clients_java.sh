#!/usr/bin/env bash
# Tests TLS with the HTTP client of Java, with and without client certificates: clients_java.sh BINARY BACKEND
# If Java or openssl is not installed, this is reported and skipped, unless CI_REQUIRE_CLIENTS is set.
set -euo pipefail
serverd=$1 backend=$2
cd "$(dirname "$0")/../.."
scratch=$(mktemp -d)
servers=()
trap '{ kill -9 "${servers[@]}"; wait; } 2>/dev/null || true; rm -rf "$scratch"' EXIT

. tests/scripts/have.sh
have javac && have openssl || exit 0

start() { # COMMAND...: sets `port`
    "$serverd" --port 0 --backend "$backend" --tls-cert tests/tls/a.pem --tls-key tests/tls/a.key "$@" >"$scratch/line" &
    servers+=($!)
    await_port "$scratch/line"
    rm "$scratch/line"
}

(
    cd "$scratch"
    key=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)
    openssl req -x509 "${key[@]}" -days 10 -subj "/CN=Clients" -keyout ca.key -out ca.pem
    openssl req "${key[@]}" -subj "/CN=Alice" -keyout alice.key -out alice.csr
    echo extendedKeyUsage=clientAuth >alice.ext
    openssl x509 -req -in alice.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile alice.ext -days 10 -out alice.pem
    openssl pkcs12 -export -in alice.pem -inkey alice.key -passout pass:password -out alice.p12
) 2>"$scratch/openssl" || fail "openssl: $(cat "$scratch/openssl")"
mkdir "$scratch/site"
head -c 20000000 /dev/urandom >"$scratch/site/large.bin"
start files "$scratch/site"
files=$port
start whoami --tls-client-ca "$scratch/ca.pem" --max-body 20MiB
timeout 300 java tests/scripts/clients_java.java "$files" "$port" tests/tls/a.pem tests/tls/b.pem "$scratch/alice.p12" \
    "$scratch/site/large.bin"

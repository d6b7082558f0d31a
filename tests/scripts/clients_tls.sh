#!/usr/bin/env bash
# Tests the file server over TLS with curl, openssl, Python and Node: clients_tls.sh BINARY BACKEND
# A client that is not installed is reported and skipped, unless CI_REQUIRE_CLIENTS is set.
set -euo pipefail
serverd=$1 backend=$2
cd "$(dirname "$0")/../.."
ca=tests/tls/a.pem
scratch=$(mktemp -d)
server=
trap '[ -z "$server" ] || { kill -9 "$server"; wait "$server"; } 2>/dev/null || true; rm -rf "$scratch"' EXIT

. tests/scripts/have.sh

equals() { # NAME EXPECTED ACTUAL
    [ "$2" = "$3" ] || fail "$1: expected '$2', got '$3'"
    echo "ok $1"
}

contains() { # NAME PATTERN FILE
    grep -qE "$2" "$3" || { cat "$3"; fail "$1: no $2"; }
    echo "ok $1"
}

with_curl() {
    local url=https://localhost:$port version
    for version in 1.2 1.3; do
        curl -sS -m 60 --cacert $ca "--tlsv$version" --tls-max $version -o "$scratch/got" "$url/large.bin"
        cmp "$scratch/site/large.bin" "$scratch/got" || fail "curl, TLS $version: a different file"
        echo "ok curl, 5 MB over TLS $version"
    done
    equals "curl, 3 requests on one connection" "1 0 0 " "$(curl -sS -m 60 --cacert $ca -o "$scratch/got" -o "$scratch/got" \
        -o "$scratch/got" -w '%{num_connects} ' "$url/a" "$url/a" "$url/a")"
    equals "curl, a range" "206 10" "$(curl -sS -m 60 --cacert $ca -r 5-14 -o "$scratch/got" \
        -w '%{response_code} %{size_download}' "$url/large.bin")"
    equals "curl with h2 and http/1.1" "200 1.1" "$(curl -sS -m 60 --cacert $ca --http2 -o "$scratch/got" \
        -w '%{response_code} %{http_version}' "$url/a")"
    equals "curl without the certificate" "60" "$(curl -sS -m 60 -o "$scratch/got" "$url/a" 2>/dev/null; echo $?)"
    equals "curl with http" "400" "$(curl -sS -m 60 -o "$scratch/got" -w '%{response_code}' "http://localhost:$port/a")"
}

client() { # ARGUMENTS: openssl s_client with a request as its input
    printf 'GET /a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' |
        timeout 60 openssl s_client -connect "127.0.0.1:$port" -servername localhost -CAfile $ca -verify_return_error \
            -ign_eof "$@" >"$scratch/s_client" 2>&1 || true
}

with_openssl() {
    local version
    for version in 1_2 1_3; do
        client -tls$version -sess_out "$scratch/session"
        contains "openssl s_client -tls$version" '^HTTP/1.1 200 ' "$scratch/s_client"
        contains "openssl s_client -tls$version verifies" 'Verify return code: 0 ' "$scratch/s_client"
        client -tls$version -sess_in "$scratch/session"
        contains "openssl s_client -tls$version resumes" '^Reused, ' "$scratch/s_client"
    done
    client -tls1_1 -cipher ALL:@SECLEVEL=0
    contains "openssl s_client -tls1_1 is refused" 'alert (protocol version|handshake failure)|no protocols available' "$scratch/s_client"
    client -alpn h2
    contains "openssl s_client -alpn h2 is refused" 'alert no application protocol' "$scratch/s_client"
    # R in a line by itself renegotiates. A slow machine gets a second, longer run.
    for seconds in 1 20; do
        { sleep $seconds; echo R; sleep $seconds; } |
            timeout 90 openssl s_client -connect "127.0.0.1:$port" -tls1_2 >"$scratch/s_client" 2>&1 || true
        ! grep -q 'no renegotiation' "$scratch/s_client" || break
    done
    contains "openssl s_client does not renegotiate" 'no renegotiation' "$scratch/s_client"
    timeout 60 openssl s_time -connect "127.0.0.1:$port" -CAfile $ca -www /a -new -time 2 >"$scratch/s_time" 2>&1 ||
        { cat "$scratch/s_time"; fail "openssl s_time"; }
    contains "openssl s_time" '[1-9][0-9]* connections in' "$scratch/s_time"
}

with_python() {
    python3 - "$port" $ca <<'PYTHON'
import http.client, socket, ssl, sys
port, ca = int(sys.argv[1]), sys.argv[2]
for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = context.maximum_version = version
    client = http.client.HTTPSConnection("localhost", port, context=context, timeout=60)
    for _ in range(100):
        client.request("GET", "/a")
        response = client.getresponse()
        assert (response.status, response.read()) == (200, b"hello\n")
    client.close()
    with socket.create_connection(("127.0.0.1", port), 60) as plain:
        stream = context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False)
        stream.sendall(b"GET /a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        got = b""
        # Without close_notify, this raises an exception.
        while piece := stream.recv(65536):
            got += piece
        assert got.endswith(b"\r\n\r\nhello\n"), got
    print(f"ok Python, {version.name}: 100 requests on one connection, and close_notify at the end")
PYTHON
}

with_node() {
    node - "$port" $ca <<'NODE'
const [port, ca] = process.argv.slice(2);
const options = { host: "localhost", port, path: "/a", ca: require("fs").readFileSync(ca), timeout: 60000 };
require("https").get(options, (response) => {
    const protocol = response.socket.getProtocol();
    let text = "";
    response.on("data", (piece) => { text += piece; });
    response.on("end", () => {
        if (response.statusCode !== 200 || text !== "hello\n") throw new Error(`${response.statusCode} ${text}`);
        console.log(`ok Node, ${protocol}`);
    });
});
NODE
}

mkdir "$scratch/site"
echo hello >"$scratch/site/a"
head -c 5000000 /dev/urandom >"$scratch/site/large.bin"
"$serverd" files "$scratch/site" --port 0 --backend "$backend" --tls-cert $ca --tls-key tests/tls/a.key >"$scratch/line" &
server=$!
await_port "$scratch/line"
! have curl || with_curl
! have openssl || with_openssl
! have python3 || with_python
! have node || with_node

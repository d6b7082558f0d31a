"""Tests a running default server with Python's http.client and requests: clients_http.py HOST:PORT"""

import http.client
import os
import sys

TEXT = b"this is response from server"
address = sys.argv[1]


def standard_library():
    connection = http.client.HTTPConnection(address, timeout=10)
    for number in range(100):
        connection.request("GET", f"/{number}")
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, TEXT)
        if number == 0:
            socket = connection.sock
        assert connection.sock is socket, "the connection was not reused"
    connection.request("POST", "/", body=(piece for piece in [b"a" * 10000, b"b"]), encode_chunked=True)
    assert connection.getresponse().read() == TEXT
    connection.request("HEAD", "/")
    response = connection.getresponse()
    assert (response.getheader("content-length"), response.read()) == ("28", b"")
    connection.request("BREW", "/")
    response = connection.getresponse()
    assert (response.status, response.getheader("content-type")) == (501, "text/plain; charset=utf-8")
    response.read()
    assert connection.sock is socket
    print("ok Python http.client")


def with_requests():
    try:
        import requests
    except ImportError:
        if os.environ.get("CI_REQUIRE_CLIENTS"):
            raise
        print("skipped: the Python package requests is not installed")
        return
    with requests.Session() as session:
        for _ in range(100):
            assert session.get(f"http://{address}/", timeout=10).content == TEXT
        for body in (b"x" * 100000, iter([b"a", b"b" * 5000])):
            assert session.put(f"http://{address}/", data=body, timeout=10).content == TEXT
        assert session.options(f"http://{address}/", timeout=10).status_code == 204
        pools = session.get_adapter("http://").poolmanager.pools
        opened = sum(pools[key].num_connections for key in pools.keys())
        assert opened == 1, f"{opened} connections"
    print("ok Python requests")


standard_library()
with_requests()

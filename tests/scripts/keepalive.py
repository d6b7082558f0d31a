#!/usr/bin/env python3
"""Sends COUNT sequential requests on one connection: keepalive.py PORT COUNT."""
import socket
import sys

port, count = int(sys.argv[1]), int(sys.argv[2])
with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(count):
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        seen = b""
        while not seen.endswith(b"this is response from server"):
            piece = client.recv(65536)
            if not piece:
                sys.exit("connection closed early")
            seen += piece

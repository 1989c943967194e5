"""Imported by any Python with this folder on its path: connections beyond this machine are refused and noted."""

import os
import socket

LOCAL = ("127.", "::1", "localhost", "0.0.0.0")
connect, connect_ex, resolve = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo


def refuse(host: object) -> None:
    if isinstance(host, bytes):
        host = host.decode()
    if host is None or str(host).startswith(LOCAL) or host == socket.gethostname():
        return
    if log := os.environ.get("OFFLINE_LOG"):
        with open(log, "a") as file:
            file.write(f"{host}\n")
    raise OSError(f"no network in tests: {host}")


def guarded(real):
    def call(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            refuse(address[0])
        return real(self, address)

    return call


def guarded_resolve(host, *args, **kwargs):
    refuse(host)
    return resolve(host, *args, **kwargs)


socket.socket.connect, socket.socket.connect_ex = guarded(connect), guarded(connect_ex)
socket.getaddrinfo = guarded_resolve

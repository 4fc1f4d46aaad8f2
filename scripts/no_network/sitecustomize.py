"""Shuts the network for every Python process that has this folder on PYTHONPATH; loopback and Unix sockets stay open.

An attempt raises, and is also written to the file $NO_NETWORK_LOG: a program that catches the error and goes on is found out too.
By an audit hook, which sees every socket of the interpreter and cannot be taken off again.
"""

import ipaddress
import os
import sys


def _is_outside(host: object) -> bool:
    if host is None or not isinstance(host, (str, bytes)):
        return False
    name = host.decode() if isinstance(host, bytes) else host
    try:
        return not ipaddress.ip_address(name).is_loopback and not ipaddress.ip_address(name).is_unspecified
    except ValueError:
        return name not in ("", "localhost", os.uname().nodename)


def _target(event: str, arguments: tuple[object, ...]) -> object:
    """The host of a network event; None for all other events."""
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        return arguments[0]
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        return address[0] if isinstance(address, tuple) else None  # text: a Unix socket
    return None


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if not event.startswith("socket."):
        return
    host = _target(event, arguments)
    if not _is_outside(host):
        return
    note = f"{event} {host!r} by {' '.join(sys.argv)}\n"
    log = os.environ.get("NO_NETWORK_LOG")
    if log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(note)
    raise OSError(f"the network is shut: {note}")


sys.addaudithook(_watch)

"""Where the server listens: an address, since others resolve names; TLS."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import struct
import sys
from pathlib import Path

from bimedix_edge.errors import UsageError

__all__ = ["LOOPBACK_NAMES", "bind", "is_loopback", "notice_dead_peers", "reset_when_closed", "tls_context", "url_host"]

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
_BACKLOG = 512
# the system notices a vanished client after 15 + 3 x 5 s of silence, or 30 s after it should have read
_PROBES = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address.

    Raises:
        UsageError: It is not an address.
    """
    return _address(host).is_loopback


def url_host(host: str) -> str:
    """Return an address as URLs write it."""
    address = _address(host)
    return f"[{address}]" if address.version == 6 else str(address)


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; clients may connect from now on.

    Args:
        host: An IPv4 or IPv6 address, or `localhost`.
        port: 0 takes a free one.

    Raises:
        UsageError: This machine does not have the address, or another program has the port.
    """
    address = _address(host)
    listener = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET)
    try:
        if sys.platform == "win32":
            # on Windows, the other option would let two programs share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(address), port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"The server cannot listen at {url_host(host)}:{port} ({error.strerror}). Choose another --port or --host, "
            "or stop the program that has it."
        ) from error
    listener.setblocking(False)
    return listener


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return the TLS settings: TLS 1.2 or later, HTTP/1.1.

    Args:
        certificate: PEM file with the certificate and its chain.
        key: PEM file of the key, not encrypted.

    Raises:
        UsageError: A file cannot be read, or the two do not belong together.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])

    def refuse() -> str:
        raise UsageError(f"The TLS key {key} is encrypted. Decrypt it first.")

    try:
        context.load_cert_chain(certificate, key, refuse)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "not PEM"
        raise UsageError(
            f"{certificate} and {key} are not a TLS certificate and its key as PEM files ({reason}). Correct "
            "--tls-cert and --tls-key."
        ) from error
    return context


def notice_dead_peers(connection: socket.socket) -> None:
    """Have the system end a connection whose client has vanished."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES.items():
        if (option := getattr(socket, name, None)) is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def reset_when_closed(connection: socket.socket) -> None:
    """Have the system discard undelivered data when this connection is closed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address("127.0.0.1" if host == "localhost" else host.strip("[]"))
    except ValueError as error:
        raise UsageError(
            f"--host is not an IPv4 or IPv6 address: {host[:60]!r}. Give an address of this machine, and names with "
            "--allow-host."
        ) from error

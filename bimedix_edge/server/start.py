"""From an operator's options to a running server: what is checked first, and what the operator sees."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bimedix_edge.errors import UsageError
from bimedix_edge.server.front.access import Keys, Names, OneTimeToken, new_key
from bimedix_edge.server.front.app import build_app
from bimedix_edge.server.front.limits import BodyRoom, Limits
from bimedix_edge.server.front.listening import LOOPBACK_NAMES, bind, is_loopback, tls_context, url_host
from bimedix_edge.server.front.metrics import RequestCounts
from bimedix_edge.server.front.service import Service
from bimedix_edge.server.front.serving import serve_app
from bimedix_edge.server.front.supervisor import ModelProcess
from bimedix_edge.server.link.messages import ModelFacts
from bimedix_edge.settings import Settings

__all__ = ["Address", "ServerOptions", "run_server"]

_MIN_KEY_CHARS = 20
_POLL_S = 1.0
_MAX_KEYS_BYTES = 1 << 20


@dataclass(frozen=True)
class Address:
    """Where the server listens, and who may use it.

    Attributes:
        host: Address to listen at; one that other machines can reach needs TLS and a file of keys.
        port: 0 takes a free one.
        names: Further names of the server, for users' URLs.
        tls_certificate, tls_key: PEM files; both or neither.
        key_file: File with one key a line; None makes a key for this start.
    """

    host: str
    port: int
    names: Sequence[str] = ()
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    key_file: Path | None = None

    def check(self) -> None:
        """Refuse options that would let the wrong people in.

        Raises:
            UsageError: The options do not go together.
        """
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise UsageError("--tls-cert and --tls-key belong together. Give both.")
        safe = self.tls_certificate is not None and self.key_file is not None
        if not is_loopback(self.host) and not safe:
            raise UsageError(
                f"Other machines can reach the server at --host {self.host}. Add --tls-cert, --tls-key and "
                "--api-key-file, or leave out --host."
            )
        if self.host.strip("[]") in ("0.0.0.0", "::") and not self.names:  # noqa: S104  compared, not bound
            raise UsageError(
                f"The server listens at every address ({self.host}) and has no name. Give the name in its users' URLs "
                "with --allow-host."
            )
        for name in self.names:
            if not name or any(char in name for char in ":/@ \t") or not name.isascii():
                raise UsageError(f"--allow-host is not a host name without scheme and port: {name[:60]!r}. Correct it.")


@dataclass(frozen=True)
class ServerOptions:
    """How a server runs.

    Attributes:
        address: Where it listens, and who may use it.
        access_log: Whether it logs each request.
        limits: What a client may take.
    """

    address: Address
    access_log: bool = False
    limits: Limits = field(default_factory=Limits)


async def run_server(settings: Settings, model: Path, options: ServerOptions, announce: Callable[[str], None]) -> bool:
    """Serve a model until a signal comes.

    Args:
        settings: Settings of the runtime.
        model: A bundle's directory.
        options: How the server runs.
        announce: Called with lines for the operator; if the server made a key, one line holds it.

    Returns:
        Whether a second signal stopped running answers.

    Raises:
        UsageError: Options do not go together, a file cannot be used, or the port is taken.
        BimedixEdgeError: The model cannot be loaded.
    """
    address, limits = options.address, options.limits
    address.check()
    tls = None
    if address.tls_certificate is not None and address.tls_key is not None:
        tls = tls_context(address.tls_certificate, address.tls_key)
    new = new_key() if address.key_file is None else None
    keys = Keys([new] if new else _read_keys(address.key_file))
    token = OneTimeToken(new) if new else None
    listener = bind(address.host, address.port)
    port: int = listener.getsockname()[1]
    scheme = "https" if tls else "http"
    process = ModelProcess(settings, model)
    service = Service(process, limits, BodyRoom(limits.bodies_bytes), RequestCounts(), token, settings.seed)
    names = Names.of(scheme, port, [*LOOPBACK_NAMES, url_host(address.host), *address.names])
    app = build_app(service, names=names, keys=keys, access_log=options.access_log)
    url = f"{scheme}://{address.names[0] if address.names else url_host(address.host)}:{port}"
    announce(f"Listening at {url}")
    if new and token:
        announce(f"Key, for this start only: {new}")
        announce(f"Page, a link that works once: {url}/#t={token.token}")

    async def work() -> None:
        await process.start()
        await process.ready()
        announce(_ready(process.facts))
        while process.fault is None:
            await asyncio.sleep(_POLL_S)
        # the service manager should see that, and restart the server
        raise process.fault

    try:
        return await serve_app(app, listener, work, limits=limits, tls=tls)
    finally:
        await process.close()


def _ready(facts: ModelFacts | None) -> str:
    assert facts is not None, "a model that is ready has its facts"
    return f"Ready: {facts.name}, {facts.n_parallel} answers at once, context {facts.n_ctx}\n{facts.notice}"


def _read_keys(path: Path | None) -> list[str]:
    """Return the keys in a file, one a line, without empty lines and lines that begin with #.

    Raises:
        UsageError: Other users may read the file, or a key is too short or not one plain word.
    """
    assert path is not None, "without a file the server makes a key"
    try:
        if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise UsageError(f"Other users can read the file of keys {path}. Run `chmod 600` on it.")
        with open(path, "rb") as file:
            text = file.read(_MAX_KEYS_BYTES).decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not plain ASCII"
        raise UsageError(f"The file of keys {path} cannot be read ({reason}). Correct it.") from error
    keys = [line.strip() for line in text.splitlines()]
    keys = [key for key in keys if key and not key.startswith("#")]
    for number, key in enumerate(keys, 1):
        if len(key) < _MIN_KEY_CHARS or not key.isprintable() or " " in key:
            raise UsageError(
                f"Key number {number} in {path} is not one word of {_MIN_KEY_CHARS} or more characters. Make one with "
                "`openssl rand -base64 32`."
            )
    if not keys:
        raise UsageError(f"{path} has no key. Make one with `openssl rand -base64 32`.")
    return keys

"""From what an operator asked for to a server that runs: what is refused before, and what is told."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bimedix_edge.errors import UsageError
from bimedix_edge.server.front.access import Keys, Names, OneTimeToken, new_key
from bimedix_edge.server.front.app import build_app
from bimedix_edge.server.front.limits import BodyRoom, Limits
from bimedix_edge.server.front.listening import LOOPBACK_NAMES, bind, is_loopback, tls_context, url_host
from bimedix_edge.server.front.metrics import Requests
from bimedix_edge.server.front.page import OPEN_PATHS, page_routes
from bimedix_edge.server.front.service import Service
from bimedix_edge.server.front.serving import serve
from bimedix_edge.server.front.supervisor import ModelProcess
from bimedix_edge.server.link.messages import ModelFacts
from bimedix_edge.settings import Settings

__all__ = ["Address", "run_server"]

_MIN_KEY_CHARS = 20
_LOOK_S = 1.0
_MAX_KEYS_BYTES = 1 << 20


@dataclass(frozen=True)
class Address:
    """Where the server listens and who may come.

    Attributes:
        host: an address; one that others can reach needs TLS and a file of keys.
        port: 0 takes one that is free.
        names: that the server also goes by.
        tls_certificate, tls_key: PEM files; both or neither.
        key_file: one key a line; None makes a key for this start.
    """

    host: str
    port: int
    names: Sequence[str] = ()
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    key_file: Path | None = None

    def check(self) -> None:
        """Refuse what would let the wrong people in.

        Raises:
            UsageError: options that do not go together.
        """
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise UsageError("Expected --tls-cert and --tls-key together, but there is only one; give both.")
        safe = self.tls_certificate is not None and self.key_file is not None
        if not is_loopback(self.host) and not safe:
            raise UsageError(
                f"Expected --tls-cert, --tls-key and --api-key-file where other machines reach the server, but --host "
                f"is {self.host} without all of them; give them, or leave out --host."
            )
        if self.host.strip("[]") in ("0.0.0.0", "::") and not self.names:  # noqa: S104  compared, not bound
            raise UsageError(
                f"Expected the server's names with --allow-host where it listens at every address ({self.host}), but "
                "there are none; give the name that stands in its users' URL."
            )
        for name in self.names:
            if not name or any(char in name for char in ":/@ \t") or not name.isascii():
                raise UsageError(
                    f"Expected a host name without scheme and port in --allow-host, but it is {name[:60]!r}; change it."
                )


async def run_server(
    settings: Settings,
    model: Path,
    address: Address,
    *,
    access_log: bool,
    tell: Callable[[str], None],
    limits: Limits | None = None,
) -> bool:
    """Serve a model until a signal comes.

    Args:
        settings: of the runtime.
        model: a bundle's directory.
        address: see there.
        access_log: whether each request is logged.
        tell: called with lines for the operator; the key is in one of them, if one was made.
        limits: what a client may take; by default `Limits()`.

    Returns:
        Whether a second signal cut running answers.

    Raises:
        UsageError: options do not go together, a file cannot be used, or the port is taken.
        BimedixEdgeError: the model cannot be loaded.
    """
    address.check()
    limits = limits or Limits()
    tls = None
    if address.tls_certificate is not None and address.tls_key is not None:
        tls = tls_context(address.tls_certificate, address.tls_key)
    made = new_key() if address.key_file is None else None
    keys = Keys([made] if made else _read_keys(address.key_file))
    token = OneTimeToken(made) if made else None
    listener = bind(address.host, address.port)
    port: int = listener.getsockname()[1]
    scheme = "https" if tls else "http"
    process = ModelProcess(settings, model)
    service = Service(process, limits, BodyRoom(limits.bodies_bytes), Requests(), token, settings.seed)
    names = Names.of(scheme, port, [*LOOPBACK_NAMES, url_host(address.host), *address.names])
    app = build_app(
        service, names=names, keys=keys, page=page_routes(), page_open_paths=OPEN_PATHS, access_log=access_log
    )
    url = f"{scheme}://{address.names[0] if address.names else url_host(address.host)}:{port}"
    tell(f"Listening at {url}")
    if made and token:
        tell(f"Key, for this start only: {made}")
        tell(f"Page, a link that works once: {url}/#t={token.token}")

    async def work() -> None:
        await process.start()
        await process.ready()
        tell(_ready(process.facts))
        while process.fault is None:
            await asyncio.sleep(_LOOK_S)
        # whoever started us should see that, and start us again
        raise process.fault

    try:
        return await serve(app, listener, work, limits=limits, tls=tls)
    finally:
        await process.close()


def _ready(facts: ModelFacts | None) -> str:
    assert facts is not None, "a model that is ready is known"
    return f"Ready: {facts.name}, {facts.n_parallel} answers together, context {facts.n_ctx}\n{facts.notice}"


def _read_keys(path: Path | None) -> list[str]:
    """Return the keys of a file, one a line; empty lines and those that begin with # are passed over.

    Raises:
        UsageError: others may read the file, or a key is too short or no plain word.
    """
    assert path is not None, "without a file a key is made"
    try:
        if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise UsageError(
                f"Expected a file of keys that its owner alone can read, but others can read {path}; `chmod 600` it."
            )
        with open(path, "rb") as file:
            text = file.read(_MAX_KEYS_BYTES).decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not plain ASCII"
        raise UsageError(f"Expected a file of keys, but {path} cannot be read ({reason}); correct it.") from error
    keys = [line.strip() for line in text.splitlines()]
    keys = [key for key in keys if key and not key.startswith("#")]
    for number, key in enumerate(keys, 1):
        if len(key) < _MIN_KEY_CHARS or not key.isprintable() or " " in key:
            raise UsageError(
                f"Expected keys of {_MIN_KEY_CHARS} or more characters without blanks, but number {number} in {path} "
                "is none; make one with `openssl rand -base64 32`."
            )
    if not keys:
        raise UsageError(f"Expected a key in {path}, but there is none; make one with `openssl rand -base64 32`.")
    return keys

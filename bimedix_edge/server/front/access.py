"""Who is answered: the Host and Origin of the request, the key, and how often.

A page of another site can make a browser send requests here (cross-site posts), and can give its own name this
machine's address (DNS rebinding). So the Host must be a name that this server was given, and a request that a browser
marks as coming from elsewhere gets no answer whatever it asks for. No header ever allows another origin.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from bimedix_edge.server.api.errors import ApiError
from bimedix_edge.server.front.limits import RateLimit

__all__ = ["Access", "Keys", "Names", "OneTimeToken", "new_key"]

_DEFAULT_PORTS = {"http": 80, "https": 443}
# `none` is an address typed, or opened by another program
_OWN_SITE = {"same-origin", "none"}
_KEY_PREFIX = "bmx-"


def new_key() -> str:
    """Return a fresh key, 256 random bits."""
    return _KEY_PREFIX + secrets.token_urlsafe(32)


class Keys:
    """The keys that open the API. Comparing takes the same time whatever is given.

    Args:
        keys: at least one.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]
        assert self._digests, "a server without a key would answer everybody"
        self._secret = secrets.token_bytes(32)

    def holder(self, key: str) -> str | None:
        """Return an opaque name for whoever holds this key, or None if it opens nothing.

        The name is of this start only, and the key cannot be found from it.
        """
        given, known = _digest(key), False
        for digest in self._digests:
            known |= hmac.compare_digest(given, digest)
        return hmac.new(self._secret, given, "sha256").hexdigest()[:16] if known else None


class OneTimeToken:
    """What the page's link holds: whoever brings it first gets the key, nobody after that.

    Args:
        key: what it is worth.
    """

    def __init__(self, key: str) -> None:
        self.token = secrets.token_urlsafe(24)
        self._key: str | None = key

    def take(self, token: str) -> str | None:
        """Return the key at the first right token, and None otherwise."""
        if not hmac.compare_digest(_digest(token), _digest(self.token)):
            return None
        key, self._key = self._key, None
        return key


@dataclass(frozen=True)
class Names:
    """The names this server goes by.

    Attributes:
        scheme: `http` or `https`.
        hosts: every Host that is answered, in lower case, with its port.
    """

    scheme: str
    hosts: frozenset[str]

    @classmethod
    def of(cls, scheme: str, port: int, names: Sequence[str]) -> Names:
        """Return what names without a port become: with this port, and bare where the port is the scheme's own."""
        hosts = set()
        for name in names:
            hosts.add(f"{name.lower()}:{port}")
            if port == _DEFAULT_PORTS[scheme]:
                hosts.add(name.lower())
        return cls(scheme, frozenset(hosts))

    def check(self, headers: Headers) -> None:
        """Let a request of our own pages, or of a program, pass.

        Raises:
            ApiError: 403, the Host is none of ours, or a browser says that another site's page sends this.
        """
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            raise ApiError(
                403,
                "host_not_allowed",
                "Expected this server's own name in Host, but it is another; use the address that the server printed, "
                "or start it with --allow-host.",
            )
        origins = headers.getlist("origin")
        own = f"{self.scheme}://{hosts[0].lower()}"
        # browsers state the site in one header, the other, or both
        foreign = any(origin.lower() != own for origin in origins)
        if foreign or not set(headers.getlist("sec-fetch-site")) <= _OWN_SITE:
            raise ApiError(
                403,
                "origin_not_allowed",
                "Expected a request of this server's own page, but a browser sends it for another site; open the "
                "server's address itself.",
            )


class Access:
    """ASGI middleware: nothing behind it is asked by anybody it should not be asked by.

    Args:
        app: what is behind.
        names: see there.
        keys: see there.
        open_paths: answered without a key; one that ends with `/` stands for all below it.
        rate: of requests.
    """

    def __init__(self, app: ASGIApp, *, names: Names, keys: Keys, open_paths: Sequence[str], rate: RateLimit) -> None:
        self._app = app
        self._names = names
        self._keys = keys
        self._open_paths = frozenset(open_paths)
        self._open_folders = tuple(path for path in open_paths if path.endswith("/") and path != "/")
        self._rate = rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or raise an `ApiError`."""
        if scope["type"] == "http":
            scope["state"]["holder"] = self._check(scope)
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> str | None:
        """Return who asks, None where nobody need say.

        Raises:
            ApiError: 400, 401, 403, 429 or 505.
        """
        if scope["http_version"] not in ("1.0", "1.1"):
            raise ApiError(505, "http_version", "Expected HTTP/1.1, but the request has another version; use that.")
        headers = Headers(scope=scope)
        self._names.check(headers)
        path: str = scope["path"]
        if not path.startswith("/"):
            raise ApiError(400, "invalid_target", "Expected a path after the method, but there is a whole address.")
        address = scope["client"][0] if scope.get("client") else ""
        if path in self._open_paths or path.startswith(self._open_folders):
            self._rate.take(f"open {address}")
            return None
        kind, _, key = headers.get("authorization", "").partition(" ")
        holder = self._keys.holder(key.strip()) if kind.lower() == "bearer" else None
        if holder is None:
            self._rate.take(f"refused {address}")
            raise ApiError(
                401,
                "invalid_api_key",
                "Expected this server's key as `Authorization: Bearer KEY`, but there is none or another; use the key "
                "that the server printed, or one of its --api-key-file.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        self._rate.take(holder)
        return holder


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()

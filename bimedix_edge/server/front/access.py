"""Who is answered: checks of Host and Origin, of the key, and of the rate of requests.

A page of another site can make a browser send requests here (cross-site posts), and can point its own name at this
machine's address (DNS rebinding). So the Host must be one of this server's names, and a request that a browser marks
as coming from another site is refused, whatever it asks for. No header allows another origin.
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
# `none` is an address that was typed, or opened by another program
_OWN_SITE = {"same-origin", "none"}
_KEY_PREFIX = "bmx-"


def new_key() -> str:
    """Return a fresh key, 256 random bits."""
    return _KEY_PREFIX + secrets.token_urlsafe(32)


class Keys:
    """The keys that open the API. Comparing takes the same time for every key.

    Args:
        keys: At least one key.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]
        assert self._digests, "a server without a key would answer everybody"
        self._secret = secrets.token_bytes(32)

    def tenant(self, key: str) -> str | None:
        """Return an opaque name for the user of a key, or None for a key that opens nothing.

        Each start of the server has other names, and a name does not reveal the key.
        """
        given, known = _digest(key), False
        for digest in self._digests:
            known |= hmac.compare_digest(given, digest)
        return hmac.new(self._secret, given, "sha256").hexdigest()[:16] if known else None


class OneTimeToken:
    """The token in the page's link: the first client that brings it gets the key, no later one does.

    Args:
        key: The key that it is exchanged for.
    """

    def __init__(self, key: str) -> None:
        self.token = secrets.token_urlsafe(24)
        self._key: str | None = key

    def take(self, token: str) -> str | None:
        """Return the key for the right token, once; otherwise None."""
        if not hmac.compare_digest(_digest(token), _digest(self.token)):
            return None
        key, self._key = self._key, None
        return key


@dataclass(frozen=True)
class Names:
    """The names of this server.

    Attributes:
        scheme: `http` or `https`.
        hosts: Every Host that is answered, in lower case, with its port.
    """

    scheme: str
    hosts: frozenset[str]

    @classmethod
    def of(cls, scheme: str, port: int, names: Sequence[str]) -> Names:
        """Return names with this port; a name also counts without it where the port is the scheme's default."""
        hosts = set()
        for name in names:
            hosts.add(f"{name.lower()}:{port}")
            if port == _DEFAULT_PORTS[scheme]:
                hosts.add(name.lower())
        return cls(scheme, frozenset(hosts))

    def check(self, headers: Headers) -> None:
        """Let requests from our own page and from programs pass.

        Raises:
            ApiError: 403, the Host is not one of our names, or a browser sent the request for another site.
        """
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            raise ApiError(
                403,
                "host_not_allowed",
                "The Host header is not a name of this server. Use the address that the server printed, or have its "
                "operator allow this name.",
            )
        origins = headers.getlist("origin")
        own = f"{self.scheme}://{hosts[0].lower()}"
        # browsers state the site in one header, the other, or both
        foreign = any(origin.lower() != own for origin in origins)
        if foreign or not set(headers.getlist("sec-fetch-site")) <= _OWN_SITE:
            raise ApiError(
                403,
                "origin_not_allowed",
                "A browser sent this request for another site. Open the server's own address.",
            )


class Access:
    """ASGI middleware that lets a request pass only with the right Host, Origin and key, and within the rate.

    Args:
        app: The application behind it.
        names: Names of the server.
        keys: Keys that open the API.
        open_paths: Paths that need no key; a path that ends with `/` stands for all below it.
        rate: Limit of the rate of requests.
    """

    def __init__(self, app: ASGIApp, *, names: Names, keys: Keys, open_paths: Sequence[str], rate: RateLimit) -> None:
        self._app = app
        self._names = names
        self._keys = keys
        self._open_paths = frozenset(open_paths)
        self._open_folders = tuple(path for path in open_paths if path.endswith("/") and path != "/")
        self._rate = rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or raise an `ApiError`."""
        if scope["type"] == "http":
            scope["state"]["tenant"] = self._check(scope)
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> str | None:
        """Return the tenant of a request; None for an open path.

        Raises:
            ApiError: 400, 401, 403, 429 or 505.
        """
        if scope["http_version"] not in ("1.0", "1.1"):
            raise ApiError(505, "http_version", "The request is not HTTP/1.1. Use that version.")
        headers = Headers(scope=scope)
        self._names.check(headers)
        path: str = scope["path"]
        if not path.startswith("/"):
            raise ApiError(400, "invalid_target", "The request names a whole address. Send a path after the method.")
        address = scope["client"][0] if scope.get("client") else ""
        if path in self._open_paths or path.startswith(self._open_folders):
            self._rate.take(f"open {address}")
            return None
        kind, _, key = headers.get("authorization", "").partition(" ")
        tenant = self._keys.tenant(key.strip()) if kind.lower() == "bearer" else None
        if tenant is None:
            self._rate.take(f"refused {address}")
            raise ApiError(
                401,
                "invalid_api_key",
                "The key is missing or wrong. Send `Authorization: Bearer KEY` with the key that the server printed, "
                "or one that its operator gave you.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        self._rate.take(tenant)
        return tenant


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()

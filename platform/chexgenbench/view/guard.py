"""Who may ask the explorer: the browser that was given its address, and no other page in it."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TOKEN = "token"  # noqa: S105  a name, no secret
"""Name of the query's part that carries a token."""

_METHODS = ("GET", "HEAD", "POST")
_OWN = ("same-origin", "none")
_LONGEST = 4_096
"""Bytes of a query string."""

_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
        b"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)


class Guard:
    """Lets a request to `app` through, or answers it with the reason why not.

    A token in the address buys a cookie, and the address is asked for again without it; from then
    on the cookie counts. Cookies know no ports: those of this machine's servers go to all of them.
    Hence the whole site lies below a random folder, which the cookie is for: a browser sends it to
    another server only where that knows the folder and leads the user to its own page there. A
    page of another server could also make the browser ask here: hence the looks at Host (against a
    foreign name that points here), Origin and Sec-Fetch-Site.

    Args:
        port: where the server listens, on 127.0.0.1.
        root: the folder, such as ``/k3x``; see `new_root`.
    """

    def __init__(self, app: App, port: int, root: str) -> None:
        self._app, self._root = app, root
        self._hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
        self._cookie_name = f"chexgenbench-{port}"
        self._cookie = secrets.token_urlsafe(32)
        self._token = secrets.token_urlsafe(32)
        self._once: set[str] = set()
        self._lock = threading.Lock()
        self.url = f"http://{self._hosts[0]}{root}/?{TOKEN}={self._token}"

    def url_for_once(self) -> str:
        """An address that works a single time: other users of the machine see the arguments of the
        browser that is started with it."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._once.add(token)
        return f"http://{self._hosts[0]}{self._root}/?{TOKEN}={token}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def sent(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in _HEADERS}
                kept = [each for each in message.get("headers", ()) if each[0] not in names]
                message["headers"] = [*kept, *_HEADERS]
            await send(message)

        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
        refused = self._refused(scope, headers)
        if refused is not None:
            await _answer(sent, *refused)
            return
        if self._has_cookie(headers):
            token, query = self._split(scope)
            if token is None:
                await self._app(self._below(scope), receive, sent)
                return
            await _answer(sent, 303, "", [(b"location", _place(scope, query))])
            return
        token, query = self._split(scope)
        if token is None or scope["method"] != "GET" or not self._takes(token):
            what = "This address holds no token." if token is None else "The token is not valid."
            await _answer(sent, 403, f"{what} Open the address that the terminal shows.")
            return
        cookie = (
            f"{self._cookie_name}={self._cookie}; Path={self._root}/; HttpOnly; SameSite=Strict"
        )
        more = [(b"location", _place(scope, query)), (b"set-cookie", cookie.encode())]
        await _answer(sent, 303, "", more)

    def _refused(self, scope: Scope, headers: dict[str, list[str]]) -> tuple[int, str] | None:
        hosts = headers.get("host", [])
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return 403, "The explorer answers to 127.0.0.1 and localhost alone."
        if not _raw(scope).startswith(f"{self._root}/"):
            return 403, "This is no address of the explorer. Open the one that the terminal shows."
        if scope["method"] not in _METHODS:
            return 405, "The explorer is read-only."
        if len(scope["query_string"]) > _LONGEST:
            return 414, "The address is too long."
        origins = headers.get("origin", [])
        if any(origin.lower() != f"http://{hosts[0].lower()}" for origin in origins):
            return 403, "The request comes from another page."
        if scope["method"] == "POST" and not origins:
            return 403, "The request does not say which page it comes from."
        if any(site not in _OWN for site in headers.get("sec-fetch-site", [])):
            return 403, "The request comes from another page. Open the address in a new tab."
        return None

    def _below(self, scope: Scope) -> Scope:
        """The request as the application knows its addresses."""
        raw = _raw(scope)[len(self._root) :]
        return {**scope, "path": unquote(raw), "raw_path": raw.encode("latin-1")}

    def _has_cookie(self, headers: dict[str, list[str]]) -> bool:
        pairs = "; ".join(headers.get("cookie", [])).split(";")
        wanted = f"{self._cookie_name}={self._cookie}".encode()
        given = [pair.strip().encode() for pair in pairs]
        return any(secrets.compare_digest(each, wanted) for each in given)

    def _takes(self, token: str) -> bool:
        if secrets.compare_digest(token.encode(), self._token.encode()):
            return True
        with self._lock:
            found = [each for each in self._once if secrets.compare_digest(each, token)]
            self._once.difference_update(found)
        return bool(found)

    def _split(self, scope: Scope) -> tuple[str | None, str]:
        """The token of the query, and the query without it."""
        pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        tokens = [value for name, value in pairs if name == TOKEN]
        others = [pair for pair in pairs if pair[0] != TOKEN]
        token = tokens[0] if tokens else None
        return (token if token is None or token.isascii() else ""), urlencode(others)


def new_root() -> str:
    """A random folder of addresses."""
    return f"/{secrets.token_hex(8)}"


def _raw(scope: Scope) -> str:
    """The path as it was sent."""
    return bytes(scope.get("raw_path") or b"/").decode("latin-1")


def _place(scope: Scope, query: str) -> bytes:
    """The address again, without its token; it begins with the folder, and so stays here."""
    path = _raw(scope)
    return (f"{path}?{query}" if query else path).encode("latin-1")


async def _answer(
    send: Send, status: int, text: str, more: list[tuple[bytes, bytes]] | None = None
) -> None:
    body = text.encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        *(more or ()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

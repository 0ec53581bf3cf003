"""What is refused before a route sees it, in this order: by the site that asks and the name that it asks, by
the key, by the size and the pace of the body."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.auth import Keys
from service.batcher import Overloaded
from service.edge.connections import Pace, stalled
from service.errors import ServiceError, as_service_error, bad_request, overloaded, refuse
from service.models.engine import Engine
from service.record import current
from service.settings import PREFIX, Settings
from service.shares import Shares

PAGE = "/playground/"
OPEN = ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")
"""Paths that load balancers may request under any name."""
NOBODYS = ("localhost", "local", "internal", "home.arpa", "svc", "test")
"""Suffixes of names that nobody can register."""


class GuardOrigin:
    """Refuses requests of other sites' pages, except for links to the service, and requests for a host name
    that is not the service's.

    A page on any site can make its visitor's browser send requests to a service that only that browser can
    reach. Browsers say so in `Sec-Fetch-Site` (over HTTPS and to this machine), or else in `Origin`; programs
    send neither. If a site's name was made to lead here (DNS rebinding), both call its page the service's
    own; only `Host` differs.
    """

    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and scope["path"] not in OPEN:
            refusal = self._refusal(scope, Headers(scope=scope))
            if refusal is not None:
                await refuse(refusal, scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> ServiceError | None:
        host = headers.get("host")
        if host is not None and not self.hosts.allow(host):
            message = f"this service is not {host[:80]!r}: its names are set in {PREFIX}ALLOWED_HOSTS"
            return ServiceError(421, "unknown_host", message)
        if same_origin(headers, self.hosts) or _is_visit(scope, headers):
            return None
        return ServiceError(403, "cross_origin", "pages of other sites may not use this service")


@dataclass(frozen=True)
class Hosts:
    """Names that the service answers to. listed: `NAME`, `*.NAME` for all below it, `*` for any; None: those
    that no other site can have."""

    listed: tuple[str, ...] | None

    @classmethod
    def of(cls, text: str | None) -> Hosts:
        """From names separated by commas."""
        return cls(None if text is None else tuple(name.strip().lower() for name in text.split(",")))

    def allow(self, host: str) -> bool:
        """host: with or without a port. Addresses always: no other site has them."""
        name = _name(host)
        if _is_address(name):
            return True
        return self._is_listed(name) or (self.listed is None and _is_nobodys(name))

    def lists(self, host: str) -> bool:
        """By its name, not by `*`."""
        return self._is_listed(_name(host), but=("*",))

    def _is_listed(self, name: str, but: tuple[str, ...] = ()) -> bool:
        return any(
            name == each or each == "*" or (each.startswith("*.") and name.endswith(each[1:]))
            for each in self.listed or ()
            if each not in but
        )


def same_origin(headers: Headers, hosts: Hosts | None = None) -> bool:
    """Whether it is the service's own page, or no page at all. hosts: if a proxy passes another name to the
    service than browsers use, pages of the listed names are its own too."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("none", "same-origin")
    origin = headers.get("origin")
    if origin is None:
        return True
    try:
        there = urlsplit(origin).netloc
    except ValueError:
        return False
    return there == headers.get("host") or (hosts is not None and hosts.lists(there))


def _is_visit(scope: Scope, headers: Headers) -> bool:
    """Whether a link was followed: then the other site does not see the answer."""
    mode, there = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
    reads = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
    return reads and (mode, there) == ("navigate", "document")


def _name(host: str) -> str:
    """Without the port and the final dot of a full name."""
    name = host.strip().lower()
    name = name.partition("]")[0] + "]" if name.startswith("[") else name.partition(":")[0]
    return name.removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _is_nobodys(name: str) -> bool:
    """Also single-part names, whose meaning is up to this network."""
    return "." not in name or name.endswith(tuple(f".{end}" for end in NOBODYS))


class RequireKey:
    """Answers 401 to whoever has no key, before a byte of the body is read."""

    def __init__(self, app: ASGIApp, keys: Keys, shares: Shares, *, public_page: bool) -> None:
        self.app = app
        self.keys = keys
        self.shares = shares
        self.public_page = public_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._is_open(scope["path"]):
            await self.app(scope, receive, send)
            return
        name = self.keys.name_of(_given(Headers(scope=scope)))
        if name is None:
            await refuse(_refusal(scope), scope, receive, send)
            return
        scope.setdefault("state", {})["key"] = name
        if scope["type"] == "http" and scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        with ExitStack() as stack:
            try:
                current().share = stack.enter_context(self.shares.of(name, live=scope["type"] == "websocket"))
            except Overloaded as error:
                await refuse(as_service_error(error), scope, receive, send)
                return
            await self.app(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in OPEN or (self.public_page and (path == "/" or path.startswith(PAGE)))


def _given(headers: Headers) -> str:
    """A token, or what a browser sends when it has asked its user: any name, and the key for a password."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic" and same_origin(headers):
        with suppress(ValueError):
            return base64.b64decode(token, validate=True).decode().partition(":")[2]
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _refusal(scope: Scope) -> ServiceError:
    headers = Headers(scope=scope)
    code, message = "missing_api_key", "an API key is needed: send it as `Authorization: Bearer KEY`"
    if _given(headers):
        code, message = "invalid_api_key", "this API key is not known"
    page = "text/html" in headers.get("accept", "")
    ways = 'Basic realm="the API key is the password", charset="UTF-8"' if page else "Bearer"
    return ServiceError(401, code, message, headers={"WWW-Authenticate": ways})


class GuardBody:
    """Limits the bytes of a body and of all bodies together, and how slowly they may arrive.

    A declared length is checked before a byte is read; other bodies are counted. What is written to the disk
    as it arrives has a limit of its own, and is not held.
    """

    def __init__(self, app: ASGIApp, engine: Engine, settings: Settings, to_disk: str | None = None) -> None:
        """to_disk: the path of requests whose bodies are written to the disk as they arrive."""
        self.app = app
        self.engine = engine
        self.settings = settings
        self.to_disk = to_disk
        self.pending = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        to_disk = (scope["method"], scope["path"]) == ("POST", self.to_disk)
        body = _Body(self, receive, to_disk)
        try:
            self._check_declared(scope, body.to_disk)
        except ServiceError as error:
            await error.response()(scope, receive, send)
            return
        try:
            await self.app(scope, body.receive, send)
        finally:
            self.pending -= body.held

    def check(self, size: int, to_disk: bool) -> None:
        most = self.settings.max_job_bytes if to_disk else self.settings.max_body_bytes
        if size > most:
            raise ServiceError(413, "body_too_large", f"a request may have {most / (1 << 20):g} MiB")
        if size and not to_disk and self.pending > self.settings.max_pending_bytes:
            raise overloaded(1.0)

    def _check_declared(self, scope: Scope, to_disk: bool) -> None:
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal():
            raise bad_request("the Content-Length is not a number")
        self.check(int(declared), to_disk)
        if scope["method"] == "POST" and self.engine.requests > self.settings.max_requests:
            raise overloaded(1.0)


class _Body:
    def __init__(self, guard: GuardBody, receive: Receive, to_disk: bool) -> None:
        self._guard = guard
        self._receive = receive
        self._pace = Pace(guard.settings.min_upload_rate, guard.settings.upload_idle_timeout_s)
        self._whole = False
        self._size = 0
        self.to_disk = to_disk
        self.held = 0

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._pace.left_s):
                message = await self._receive()
        except TimeoutError as error:
            raise stalled(self._guard.settings) from error
        self._whole = not message.get("more_body", False)
        count = len(message.get("body", b""))
        self._pace.moved(count, time.monotonic() - began)
        self._size += count
        if not self.to_disk:
            self.held += count
            self._guard.pending += count
        self._guard.check(self._size, self.to_disk)
        return message

"""Whose page a browser asks from, and by which name: pages of other sites get nothing.

A page anywhere can make its reader's browser ask a service that only that browser reaches. Browsers say so in
`Sec-Fetch-Site`, over HTTPS and to this machine, or else in `Origin`; programs send neither. Where a site's
name has been made to lead here (DNS rebinding), its page is the service's own by both, and `Host` tells.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ServiceError, refuse
from service.settings import PREFIX

OPEN = ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")
"""What balancers ask by whatever name."""
NOBODYS = ("localhost", "local", "internal", "home.arpa", "svc", "test")
"""Ends of names that nobody can register."""


def same_origin(headers: Headers, hosts: Hosts | None = None) -> bool:
    """Whether it is the service's own page, or no page at all. hosts: where a proxy gives the service another
    name than browsers know it by, pages of those that are listed are its own too."""
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


@dataclass(frozen=True)
class Hosts:
    """Names that the service is asked by. listed: `NAME`, `*.NAME` for all below it, `*` for any; None: those
    that no other site can have."""

    listed: tuple[str, ...] | None

    @classmethod
    def of(cls, text: str | None) -> Hosts:
        """Separated by commas."""
        return cls(None if text is None else tuple(name.strip().lower() for name in text.split(",")))

    def allow(self, host: str) -> bool:
        """host: with a port or without. Addresses always: their page is nobody else's."""
        name = _name(host)
        if _is_address(name):
            return True
        return self._is_listed(name) or (self.listed is None and _is_nobodys(name))

    def lists(self, host: str) -> bool:
        """By name, not by `*`."""
        return self._is_listed(_name(host), but=("*",))

    def _is_listed(self, name: str, but: tuple[str, ...] = ()) -> bool:
        return any(
            name == each or each == "*" or (each.startswith("*.") and name.endswith(each[1:]))
            for each in self.listed or ()
            if each not in but
        )


class GuardOrigin:
    """Refuses what a page of another site asks for, but for a look at the service in a window of its own, and
    what is asked by a name that is not the service's."""

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


def _is_visit(scope: Scope, headers: Headers) -> bool:
    """A link that was followed: the other site does not see the answer."""
    mode, there = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
    reads = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
    return reads and (mode, there) == ("navigate", "document")


def _name(host: str) -> str:
    """Without the port, and the dot that ends a full name."""
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
    """Also of one part: what it means is up to this network."""
    return "." not in name or name.endswith(tuple(f".{end}" for end in NOBODYS))

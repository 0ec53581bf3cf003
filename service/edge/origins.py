"""From which site's page a browser sends a request, and to which host name: pages of other sites get nothing.

A page on any site can make its visitor's browser send requests to a service that only that browser can reach.
Browsers say so in `Sec-Fetch-Site` (over HTTPS and to this machine), or else in `Origin`; programs send
neither. If a site's name was made to lead here (DNS rebinding), both call its page the service's own; only
`Host` differs.
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
"""Paths that load balancers may request under any name."""
NOBODYS = ("localhost", "local", "internal", "home.arpa", "svc", "test")
"""Suffixes of names that nobody can register."""


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


class GuardOrigin:
    """Refuses requests of other sites' pages, except for links to the service, and requests for a host name
    that is not the service's."""

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

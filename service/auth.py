"""API keys: kept as hashes, named, compared in constant time.

    python -m service.auth NAME >> keys.txt

makes one, shows it on stderr, and prints its line for the file: the name and the SHA-256 of the key. A key is
256 random bits, so that a fast hash is enough.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import sys
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.batcher import Overloaded
from service.edge.origins import OPEN, same_origin
from service.errors import ServiceError, as_service_error, refuse
from service.shares import Shares

PAGE = "/playground/"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LINE = re.compile(rf"({_NAME.pattern})\s+([0-9a-f]{{64}})")


@dataclass(frozen=True)
class Keys:
    """digests: name -> SHA-256 of the key."""

    digests: dict[str, bytes]

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Raises ValueError, with the line at fault, and OSError."""
        return cls.of(path.read_text(encoding="utf-8").splitlines(), str(path))

    @classmethod
    def of(cls, lines: Iterable[str], where: str) -> Keys:
        digests: dict[str, bytes] = {}
        for number, line in enumerate(lines, start=1):
            line = line.partition("#")[0].strip()
            if not line:
                continue
            match = _LINE.fullmatch(line)
            if match is None:
                raise ValueError(
                    f"{where}, line {number}: a key's line is its name and 64 hexadecimal digits, as "
                    "`python -m service.auth NAME` prints it"
                )
            if match[1] in digests:
                raise ValueError(f"{where}, line {number}: {match[1]} is already there")
            digests[match[1]] = bytes.fromhex(match[2])
        if not digests:
            raise ValueError(f"{where}: there is no key in it, and so nobody could ask anything")
        return cls(digests)

    def name_of(self, key: str) -> str | None:
        """Whose it is. Takes as long for a wrong one as for a right one."""
        given = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = [name for name, digest in self.digests.items() if hmac.compare_digest(given, digest)]
        return found[0] if found else None


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
                stack.enter_context(self.shares.of(name, live=scope["type"] == "websocket"))
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


def made(name: str) -> tuple[str, str]:
    """(a new key, its line for the file). Raises ValueError for a name that does not fit."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r}: a name has 1 to 64 letters, digits, dots, dashes and underscores")
    key = secrets.token_urlsafe(32)
    return key, f"{name} {hashlib.sha256(key.encode()).hexdigest()}"


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python -m service.auth NAME >> keys.txt", file=sys.stderr)
        return 2
    try:
        key, line = made(sys.argv[1])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"the key, which is not shown again: {key}", file=sys.stderr)
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The pages at `/` and `/docs`, with their assets and examples: files of the package, and none but those."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

import speech_ssl
from service.errors import ServiceError

router = APIRouter(include_in_schema=False)

PAGE = Path(__file__).parent / "static"
PROMPTS = Path(speech_ssl.__file__).parent / "assets" / "prompts" / "audio"
EXAMPLES = ("confbridge-begin-glorious-a", "unidentified-no-callback", "vm-mismatch", "vm-tmpexists")
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".flac": "audio/flac",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept, but asked about: the modules of one version belong together
}


@dataclass(frozen=True)
class Asset:
    content: bytes
    media_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> Asset:
        content = path.read_bytes()
        return cls(content, TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


@cache
def assets() -> dict[str, Asset]:
    """By name. Read once: what is asked for never becomes a path."""
    paths = [path for path in PAGE.iterdir() if path.suffix in TYPES]
    paths += [PROMPTS / f"{name}.flac" for name in EXAMPLES]
    return {path.name: Asset.read(path) for path in paths}


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    return _answer(request, assets()["index.html"])


@router.api_route("/docs", methods=["GET", "HEAD"])
async def docs(request: Request) -> Response:
    return _answer(request, assets()["docs.html"])


@router.api_route("/playground/{file}", methods=["GET", "HEAD"])
async def asset(request: Request, file: str) -> Response:
    found = assets().get(file)
    if found is None:
        raise ServiceError(404, "not_found", "the playground has no such file")
    return _answer(request, found)


def _answer(request: Request, asset: Asset) -> Response:
    headers = HEADERS | {"ETag": asset.etag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if asset.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, headers=headers, media_type=asset.media_type)

"""API keys: kept as hashes, named, compared in constant time.

    python -m service.auth NAME >> keys.txt

makes one, shows it on stderr, and prints its line for the file: the name and the SHA-256 of the key. A key is
256 random bits, so that a fast hash is enough.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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

"""What tests of the command line share."""

from __future__ import annotations

import re
from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]
"""The entry point with arguments: (exit status, stdout, stderr)."""


def without_progress(err: str) -> str:
    """On a busy machine short work takes long, and then it says how far it is."""
    return re.sub(r"^(\w+: .*x real time.*|manifest: \d+ files)\n", "", err, flags=re.MULTILINE)

"""What to say when a library is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def eval_extra(what: str) -> Iterator[None]:
    """Around an import: what is missing belongs to the `eval` extra, and `what` needs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{what} needs {error.name}: install the `eval` extra, pip install 'speech-ssl[eval]'"
        ) from error

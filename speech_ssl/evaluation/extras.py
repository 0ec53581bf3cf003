"""The error for a missing optional library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def eval_extra(what: str) -> Iterator[None]:
    """Put around an import from the `eval` extra, which `what` needs."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{what} needs {error.name}: install the `eval` extra, pip install 'speech-ssl[eval]'"
        ) from error

"""Models of the Hugging Face hub by their ids (extra `hub`): fetched once, then from its cache."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from speech_ssl.checkpoints.conversion import ConversionError

FILES = ["config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json"]
FILES += ["vocab.json", "README.md"]
UNUSED = ["*/*", "adapter.*"]
"""Checkpoints of its training in folders; MMS has adapters for a thousand languages, 10 GB of them."""


def is_id(name: str) -> bool:
    """OWNER/NAME, with @REVISION if one is wanted."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?", name) is not None


def fetched(name: str, *, pickles: bool) -> Path:
    """The folder with its files. pickles: `pytorch_model.bin`, where it has no safetensors; where it is none
    of transformers either, as Omnilingual ASR's are, its `.pt` and tokenizer. Raises ConversionError."""
    try:
        import huggingface_hub  # noqa: F401 - an extra
    except ImportError:
        raise ConversionError(
            f"{name}: no such folder; to fetch it from the Hugging Face hub: pip install 'speech-ssl[hub]'"
        ) from None
    folder = _snapshot(name, [*FILES, "*.safetensors", "*.safetensors.index.json"])
    weights, known = sorted(folder.glob("*.safetensors")), (folder / "config.json").is_file()
    if not weights and pickles:
        return _snapshot(name, [*FILES, "pytorch_model.bin"] if known else ["*.pt", "*.model"])
    if not weights and known:
        raise ConversionError(
            f"{name}: has no model.safetensors; if it has a pickle, which is not loaded, first make an "
            "artifact of it, with `speech-ssl convert`"
        )
    for path in weights:
        _check_whole(name, path)
    return folder


def _snapshot(name: str, wanted: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        """Shown on a terminal alone, as our own are."""

        __init__ = partialmethod(tqdm.__init__, disable=None)

    model, _, revision = name.partition("@")
    try:
        with _quiet():
            return Path(
                snapshot_download(
                    model,
                    revision=revision or None,
                    allow_patterns=wanted,
                    ignore_patterns=UNUSED,
                    tqdm_class=Bar,
                )
            )
    except Exception as error:  # each of its versions has another HTTP library beneath, with its own errors
        reason = _reason(error, model, revision)
        raise ConversionError(f"{name}: cannot be fetched from the Hugging Face hub: {reason}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """It warns each time it tries again; what matters is how it ends. Who asks for more (HF_HUB_VERBOSITY)
    gets it."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR if level == logging.WARNING else level)
    try:
        yield
    finally:
        logger.setLevel(level)


def _reason(error: Exception, model: str, revision: str) -> str:
    """What is wrong and what to do about it, on one line."""
    from huggingface_hub import constants, errors

    told = _on_one_line(error)
    token = "log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return f"ask for access at {constants.ENDPOINT}/{model} and {token}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no such folder here, and no such model there, or a private one: check the name, or {token}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision!r}: give a branch, a tag or a whole commit hash"
    cause = error.__cause__ or error if isinstance(error, errors.LocalEntryNotFoundError) else error
    if isinstance(cause, errors.HfHubHTTPError) and cause.response.status_code in (401, 403):
        return f"{_on_one_line(cause)}: {token}"
    if isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and the cache does not have all of it: run it once without"
    if isinstance(error, errors.LocalEntryNotFoundError):
        why = _on_one_line(cause)
        return f"no such folder here, and no network to it or cache of all of it: check the network ({why})"
    if isinstance(error, ValueError):
        return f"no such folder here, and not a name of a model there: {told}"
    return f"{told}: try again"


def _on_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _check_whole(name: str, path: Path) -> None:
    """The hub's client takes what is in its cache as it is, and does not fetch it again."""
    try:
        with safe_open(path, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        cache = path.parents[2]
        raise ConversionError(
            f"{name}: {path.name} is not whole ({error}): remove {cache} to fetch it again"
        ) from None

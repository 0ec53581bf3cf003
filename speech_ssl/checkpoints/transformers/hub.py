"""Models of the Hugging Face hub by their ids (extra `hub`): fetched once, then read from its cache."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partialmethod
from importlib.util import find_spec
from pathlib import Path

from safetensors import SafetensorError, safe_open

from speech_ssl.checkpoints.conversion import ConversionError, read_json
from speech_ssl.checkpoints.replacing import CONFIG
from speech_ssl.checkpoints.transformers.preprocessor import PREPROCESSOR, PROCESSOR
from speech_ssl.checkpoints.transformers.pyctcdecode import ALPHABET, ATTRIBUTES, FOLDER
from speech_ssl.checkpoints.transformers.tokenizer import ADDED, SPECIAL, TOKENIZER, VOCABULARY
from speech_ssl.checkpoints.transformers.weights import ADAPTER, check_no_adapter, weights_in

FILES = [CONFIG, PREPROCESSOR, PROCESSOR, TOKENIZER, VOCABULARY, SPECIAL, ADDED, ADAPTER, ALPHABET]
FILES += ["README.md"]
PICKLES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
UNUSED = ["*/*", "adapter.*", "adapter_model.*"]
"""Not fetched: training checkpoints in folders; 10 GB of MMS adapters for 1,000 languages; PEFT weights."""


def is_id(name: str) -> bool:
    """Whether a name has the form OWNER/NAME, optionally with @REVISION."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?", name) is not None


def fetched(name: str, *, pickles: bool, language_model: bool = False) -> Path:
    """The local folder with the model's files. pickles: fetch `pytorch_model.bin` if there is no safetensors;
    for a model not of transformers, such as Omnilingual ASR's, its `.pt` and tokenizer. language_model: fetch
    pyctcdecode's too; without KenLM, only its parameters, unless `pickles` is set (for `convert`). Raises
    ConversionError."""
    try:
        import huggingface_hub  # noqa: F401 - an extra
    except ImportError:
        raise ConversionError(
            f"{name}: no such folder; to fetch it from the Hugging Face hub: pip install 'speech-ssl[hub]'"
        ) from None
    folder = _snapshot(name, [*FILES, "*.safetensors", "*.safetensors.index.json"])
    known = (folder / CONFIG).is_file()
    weights = weights_in(folder, read_json(folder / CONFIG)) if known else None
    safe = weights is not None and ".safetensors" in weights  # the cache may hold a pickle from before
    if not known:
        check_no_adapter(folder, name)
    if not safe and pickles:
        folder = _snapshot(name, [*FILES, *PICKLES] if known else ["*.pt", "*.model"])
        check_no_adapter(folder, name)
    elif not safe and known:
        raise ConversionError(
            f"{name}: has no model.safetensors; if it has a pickle, which is not loaded, first make an "
            "artifact of it, with `speech-ssl convert`"
        )
    for path in sorted(folder.glob("*.safetensors")):
        _check_whole(name, path)
    if language_model and (folder / ALPHABET).is_file():
        usable = pickles or find_spec("kenlm") is not None
        _snapshot(name, [f"{FOLDER}/*" if usable else f"{FOLDER}/{ATTRIBUTES}"], ignored=[f"{FOLDER}/*/*"])
    return folder


def commit_of(folder: Path) -> str | None:
    """The commit of a model that was fetched."""
    return folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None


def _snapshot(name: str, wanted: list[str], ignored: Sequence[str] = UNUSED) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        """Shown only on a terminal, like our own."""

        __init__ = partialmethod(tqdm.__init__, disable=None)

    model, _, revision = name.partition("@")
    try:
        with _quiet():
            return Path(
                snapshot_download(
                    model,
                    revision=revision or None,
                    allow_patterns=wanted,
                    ignore_patterns=list(ignored),
                    tqdm_class=Bar,
                )
            )
    except Exception as error:  # the HTTP library, and its errors, depend on the version
        reason = _reason(error, model, revision)
        raise ConversionError(f"{name}: cannot be fetched from the Hugging Face hub: {reason}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress a warning for each retry; only the final outcome matters. HF_HUB_VERBOSITY shows them."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR if level == logging.WARNING else level)
    try:
        yield
    finally:
        logger.setLevel(level)


def _reason(error: Exception, model: str, revision: str) -> str:
    """The cause and the remedy, on one line."""
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
    """Raises ConversionError for an incomplete file. The hub's client uses cached files as they are, and does
    not fetch them again."""
    try:
        with safe_open(path, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        cache = path.parents[2]
        raise ConversionError(
            f"{name}: {path.name} is not whole ({error}): remove {cache} to fetch it again"
        ) from None

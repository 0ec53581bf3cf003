"""Models of the Hugging Face hub by their ids (extra `hub`): fetched once, then from its cache."""

from __future__ import annotations

import re
from pathlib import Path

from speech_ssl.checkpoints.conversion import ConversionError

FILES = ["config.json", "preprocessor_config.json", "tokenizer_config.json", "vocab.json", "README.md"]


def is_id(name: str) -> bool:
    """OWNER/NAME, with @REVISION if one is wanted."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name) is not None


def fetched(name: str, *, pickles: bool) -> Path:
    """The folder with its files. pickles: `pytorch_model.bin`, where it has no safetensors; where it is none
    of transformers either, as Omnilingual ASR's are, its `.pt` and tokenizer. Raises ConversionError."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise ConversionError(
            f"{name}: no such folder; to fetch it from the Hugging Face hub: pip install 'speech-ssl[hub]'"
        ) from None
    model, _, revision = name.partition("@")
    wanted = [*FILES, "*.safetensors", "*.safetensors.index.json"]
    try:
        folder = Path(snapshot_download(model, revision=revision or None, allow_patterns=wanted))
        if pickles and not list(folder.glob("*.safetensors")):
            known = (folder / "config.json").is_file()
            wanted = [*FILES, "pytorch_model.bin"] if known else ["*.pt", "*.model"]
            folder = Path(snapshot_download(model, revision=revision or None, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConversionError(f"{name}: cannot be fetched from the Hugging Face hub ({reason})") from None
    return folder

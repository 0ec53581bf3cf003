"""Models that fairseq2 knows by name: its own, those of packages such as omnilingual_asr, and those in
FAIRSEQ2_USER_ASSET_DIR. For `speech-ssl convert NAME OUT` in an environment with fairseq2.

fairseq2 finds the card and fetches the files; they are read like other files of fairseq2 (`fairseq2.read`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from speech_ssl.checkpoints.conversion import ConversionError

CHARACTERS = "char_tokenizer"
"""fairseq2's tokenizer family with a unit for each character."""
NONE = "no model that fairseq2 knows by this name (where it is installed: scripts/install-fairseq2)"


@dataclass(frozen=True)
class Asset:
    """path: the checkpoint. tokenizer: the SentencePiece model of its characters. known: fields for
    `naming.config_of` that the card gives and the weights do not show."""

    path: Path
    tokenizer: Path | None
    known: dict[str, Any]


def is_name(name: str) -> bool:
    return re.fullmatch(r"\w[\w-]*(@\w+)?", name) is not None


def fetched(name: str) -> Asset | None:
    """The files of a named model; None if fairseq2 is not installed or knows no such name. Raises
    ConversionError for a card of another family, and for files that cannot be fetched."""
    if find_spec("fairseq2") is None:
        return None
    from fairseq2.assets import AssetCardError, AssetDownloadError, AssetNotFoundError, get_asset_store
    from fairseq2.error import OperationalError

    try:
        card = get_asset_store().retrieve_card(name)
    except AssetNotFoundError:
        return None
    try:
        return _of_card(card)
    except (AssetCardError, AssetDownloadError, AssetNotFoundError, OperationalError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConversionError(f"{name}: this asset of fairseq2 cannot be fetched ({reason})") from None


def _of_card(card: Any) -> Asset:
    from fairseq2.assets import get_asset_download_manager, get_asset_store
    from fairseq2.models.wav2vec2 import get_wav2vec2_model_hub
    from fairseq2.models.wav2vec2.asr import get_wav2vec2_asr_model_hub

    hubs = {"wav2vec2": get_wav2vec2_model_hub, "wav2vec2_asr": get_wav2vec2_asr_model_hub}
    family = card.field("model_family").as_(str)
    if family not in hubs:
        raise ConversionError(
            f"{card.name}: of fairseq2's family {family!r}; supported are {', '.join(hubs)}"
        )
    encoder = hubs[family]().get_model_config(card).encoder_config
    if encoder.use_conformer or encoder.use_fbank:
        raise ConversionError(
            f"{card.name}: fairseq2's Conformers and models with log-mel input are not supported"
        )
    files = get_asset_download_manager()
    path = Path(files.download_model(card.field("checkpoint").as_uri()))
    if (inner := card.maybe_get_field("checkpoint_path")) is not None:
        path = path / inner.as_(str)
    tokenizer = None
    if (reference := card.maybe_get_field("tokenizer_ref")) is not None:
        told = get_asset_store().retrieve_card(reference.as_(str))
        uri = told.maybe_get_field("tokenizer")
        if uri is not None and told.field("tokenizer_family").as_(str) == CHARACTERS:
            tokenizer = Path(files.download_tokenizer(uri.as_uri()))
    strides = tuple(int(stride) for _, _, stride in encoder.feature_extractor_layer_descs)
    return Asset(path, tokenizer, {"heads": encoder.num_encoder_attn_heads, "strides": strides})

"""A model's identity, as one hash: models with the same hash compute the same numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

import torch

from speech_ssl.model.encoder import Encoder
from speech_ssl.model.flat import flat_of, hashed
from speech_ssl.model.heads.specs import OLD_GELU, HeadSpec, spec_to_dict

if TYPE_CHECKING:
    from speech_ssl.checkpoints.artifact import Head


def identity(encoder: Encoder, heads: Mapping[str, Head], flat: Mapping[str, Any] | None = None) -> str:
    """sha256 of what is computed: the encoder's architecture, heads by name with labels and vocabularies, and
    every weight as it is in memory.

    So a checkpoint of another library and the artifact made from it are the same model. Not included are
    name, licence and provenance; what matters in training alone (dropout); how and in which precision weights
    are stored, as long as the numbers are the same; and a language model, which changes no output.

    Extracted features refer to their model by this hash, so it is computed from the names of format version 1
    for good. flat: the encoder's config in an artifact of that version, which may hold numbers that nothing
    reads.
    """
    told = {
        "encoder": hashed(flat_of(encoder.config) if flat is None else flat),
        "heads": {name: _unusual(head.spec) for name, head in heads.items()},
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    modules = {"": encoder, **{f"{name}.": head.module for name, head in sorted(heads.items())}}
    for prefix, module in modules.items():
        for key, value in sorted(module.state_dict().items()):
            digest.update(f"\n{prefix}{key} {value.dtype} {tuple(value.shape)}\n".encode())
            numbers = value.detach().cpu().contiguous().reshape(-1)
            digest.update(numbers.view(torch.uint8).numpy())
    return digest.hexdigest()


def _unusual(spec: HeadSpec) -> dict[str, object]:
    """The spec without fields at their defaults: fields added in later versions do not change the hash."""
    usual = {field.name: field.default for field in fields(spec) if field.default is not MISSING}
    told = {k: v for k, v in spec_to_dict(spec).items() if k not in usual or getattr(spec, k) != usual[k]}
    return {OLD_GELU if name == "gelu" else name: value for name, value in told.items()}

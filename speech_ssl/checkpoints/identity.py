"""What a model is, as one hash: of two models with the same, all numbers are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING

import torch

from speech_ssl.model.config import EncoderConfig
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.specs import HeadSpec, spec_to_dict

if TYPE_CHECKING:
    from speech_ssl.checkpoints.artifact import Head


def identity(encoder: Encoder, heads: Mapping[str, Head]) -> str:
    """sha256 of what is computed: the encoder's architecture, heads by their names with labels and
    vocabularies, and every weight as it is in memory.

    So a checkpoint of another library and the artifact made of it are one model. Its name, licence and
    provenance do not count, nor what training alone sees (dropout), nor how and in which precision weights
    are stored, as long as they are the same numbers. Nor does a language model, which changes no output.
    """
    told = {
        "encoder": _unusual(encoder.config.architecture(), encoder.config),
        "heads": {name: _unusual(spec_to_dict(head.spec), head.spec) for name, head in heads.items()},
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    modules = {"": encoder, **{f"{name}.": head.module for name, head in sorted(heads.items())}}
    for prefix, module in modules.items():
        for key, value in sorted(module.state_dict().items()):
            digest.update(f"\n{prefix}{key} {value.dtype} {tuple(value.shape)}\n".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def _unusual(values: Mapping[str, object], of: EncoderConfig | HeadSpec) -> dict[str, object]:
    """Without fields that are what they are by default: those that a later version adds change nothing."""
    usual = {field.name: field.default for field in fields(of) if field.default is not MISSING}
    return {k: v for k, v in values.items() if k not in usual or getattr(of, k) != usual[k]}

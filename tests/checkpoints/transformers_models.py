"""Small models of transformers with random weights, in folders as people have them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 24,
    "codevector_dim": 32,
    "proj_codevector_dim": 24,
    "num_codevectors_per_group": 8,
    "vocab_size": 9,
    "pad_token_id": 6,
}
LARGE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
VOCABULARY = {"|": 0, "A": 1, "B": 2, "C": 3, "'": 4, "[UNK]": 5, "[PAD]": 6, "<s>": 7, "</s>": 8}


def made(family: str, head: str, **options: Any) -> Any:
    """A model such as WavLM with ForCTC, all its parameters random."""
    import transformers

    config = getattr(transformers, f"{family}Config")(**{**SMALL, **options})
    with torch.random.fork_rng():  # whatever other tests have drawn
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}{head}")(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def saved(model: Any, folder: Path, *, preprocessor: Mapping[str, Any] | None = None, **options: Any) -> Path:
    """With a preprocessor that normalises nothing, if no other is given, and a vocabulary."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model.save_pretrained(folder, **options)
    write_json(folder / "preprocessor_config.json", preprocessor or {"do_normalize": False})
    write_json(folder / "vocab.json", VOCABULARY)
    write_json(folder / "tokenizer_config.json", {"word_delimiter_token": "|", "pad_token": "[PAD]"})
    return folder


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def change_json(path: Path, **changes: Any) -> None:
    """None removes a field."""
    content = {**json.loads(path.read_bytes()), **changes}
    write_json(path, {name: value for name, value in content.items() if value is not None})


def answer_of(model: Any, wave: NDArray[np.float32]) -> Any:
    with torch.inference_mode():
        return model(torch.from_numpy(wave)[None], output_hidden_states=True)


def noise(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.1, int(16000 * seconds) + 7).astype(np.float32)

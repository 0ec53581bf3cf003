"""Artifacts of format version 1, whose encoder's config is flat: they open, and their hash stays.

`golden/version_1.json` holds what that version saved for an encoder of each family, and the hash it gave to
the weights that `fill` makes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from speech_ssl.checkpoints.artifact import CONFIG, ENCODER, Head, add_head, load_artifact, save_artifact
from speech_ssl.checkpoints.fairseq2.extension import ArtifactEncoderConfig, build, card
from speech_ssl.checkpoints.opening import open_checkpoint
from speech_ssl.checkpoints.replacing import ArtifactError
from speech_ssl.model import presets
from speech_ssl.model.config import (
    ClippedDistances,
    Conformer,
    Convolutions,
    EncoderConfig,
    GatedDistances,
    LogMel,
    Rotary,
    Sinusoidal,
    StackedConvolutions,
    Transformer,
    WideConvolution,
)
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.flat import flat_of, hashed, stored_config
from speech_ssl.model.heads.specs import CTCSpec, EventsSpec, spec_from_dict

GOLDEN: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "golden" / "version_1.json").read_text(encoding="utf-8")
)
DEFAULT = Path(str(files("speech_ssl") / "assets" / "default"))
DEFAULT_SHA256 = "4e84771eddc4fb24d7e04169f0f844d61fdffc0b9d7d7894cf95106058fb096c"
LARGE = Convolutions(
    channels=(8, 12), kernels=(10, 3), strides=(5, 2), norm="layer", bias=True, normalize_wave=True
)
BASE = Convolutions(channels=(8, 12), kernels=(10, 3), strides=(5, 2))
WIDE = WideConvolution(kernel=8, groups=4)
SMALL: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "ffn_width": 24}
PARTS: dict[str, EncoderConfig] = {
    "wav2vec2 base": EncoderConfig(frontend=BASE, positions=WIDE, **SMALL),
    "mms": EncoderConfig(
        frontend=LARGE, positions=WIDE, block=Transformer(pre_norm=True, adapter_width=4), **SMALL
    ).changed(frontend={"wave_eps": 1e-5}),
    "hubert": EncoderConfig(
        frontend=BASE,
        positions=WideConvolution(kernel=8, groups=4, norm="batch"),
        feature_norm=False,
        activation="relu",
        conv_activation="silu",
        norm_eps=1e-4,
        **SMALL,
    ),
    "data2vec": EncoderConfig(
        frontend=Convolutions(channels=(8, 12), kernels=(10, 3), strides=(5, 2), norm="layer"),
        positions=StackedConvolutions(layers=3, kernel=5, groups=4),
        **SMALL,
    ),
    "wavlm": EncoderConfig(
        frontend=BASE, positions=GatedDistances(convolution=WIDE, buckets=16, furthest=40), **SMALL
    ),
    "wav2vec2-conformer rotary": EncoderConfig(
        frontend=LARGE,
        positions=Rotary(base=100),
        block=Conformer(kernel=5),
        activation="silu",
        feature_grad_scale=1.0,
        **SMALL,
    ),
    "wav2vec2-conformer sinusoidal": EncoderConfig(
        frontend=BASE,
        positions=Sinusoidal(),
        block=Conformer(kernel=5, dropout=0.0),
        feature_grad_scale=1.0,
        **SMALL,
    ),
    "w2v-bert": EncoderConfig(
        frontend=LogMel(bins=10),
        positions=ClippedDistances(left=5, right=2),
        block=Conformer(kernel=5, norm="layer"),
        activation="silu",
        feature_grad_scale=1.0,
        **SMALL,
    ),
}
UNREAD = {"conformer, trained here", "numbers that nothing reads"}
"""Whose flat config has numbers that no part has: what is saved of them anew has another hash."""


def fill(module: nn.Module) -> dict[str, torch.Tensor]:
    """Numbers that are exact everywhere; returns the state."""
    with torch.no_grad():
        for key, value in module.state_dict().items():
            count = torch.arange(value.numel()) + len(key)
            value.copy_((count % 17 + 1).reshape(value.shape) / 32)
    return module.state_dict()


def stored(folder: Path, family: str) -> Path:
    """The artifact of version 1 with those weights."""
    golden = GOLDEN[family]
    folder.mkdir()
    config = stored_config(golden["encoder"])
    save_file(fill(Encoder(config)), folder / ENCODER)
    for name, head in golden["heads"].items():
        save_file(fill(spec_from_dict(head).build(config)), folder / f"head.{name}.safetensors")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    about = {"format_version": 1, "name": family, "training": {}, "licence": "CC0"}
    about |= {"encoder": golden["encoder"], "heads": golden["heads"]}
    about["files"] = {name: {"sha256": digest} for name, digest in sums.items()}
    (folder / CONFIG).write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize("family", GOLDEN)
def test_it_opens_with_the_hash_it_had_and_is_saved_in_parts(family: str, tmp_path: Path) -> None:
    artifact = load_artifact(stored(tmp_path / "old", family))
    assert artifact.sha256 == GOLDEN[family]["sha256"]
    new = save_artifact(
        artifact.encoder, tmp_path / "new", name="n", training={}, licence="CC0", heads=artifact.heads
    )
    config = json.loads((new / CONFIG).read_text())
    assert config["format_version"] == 2
    assert config["encoder"].keys() >= {"frontend", "positions", "block"}
    again = load_artifact(new)
    assert again.encoder.config == artifact.encoder.config
    assert (again.sha256 == artifact.sha256) == (family not in UNREAD)


@pytest.mark.parametrize("family", PARTS)
def test_the_parts_of_each_family(family: str) -> None:
    assert stored_config(GOLDEN[family]["encoder"]) == PARTS[family]


def changed(config: EncoderConfig, path: Sequence[str]) -> EncoderConfig:
    """With another number or word in one place."""
    values = config.to_dict()
    part = values
    for name in path[:-1]:
        part = part[name]
    old = part[path[-1]]
    lists = [[*old[:-1], 2 * old[-1]]] if isinstance(old, list) else []
    numbers = (
        [not old] if isinstance(old, bool) else [2 * old, old + 2] if isinstance(old, int | float) else []
    )
    for new in (*lists, *numbers, "group", "layer", "weight", "batch", "gelu", "relu"):
        part[path[-1]] = new
        with suppress(ValueError):
            if new != old:
                return EncoderConfig.from_dict(values)
    raise AssertionError(f"nothing else is possible at {path}")


@pytest.mark.parametrize("family", PARTS)
def test_the_hash_tells_every_number(family: str) -> None:
    config = PARTS[family]
    seen = [hashed(flat_of(config))]
    for name in config.architecture():
        if not name.endswith("kind"):
            seen.append(hashed(flat_of(changed(config, name.split(".")))))
    assert all(one != other for i, one in enumerate(seen) for other in seen[:i])


def test_the_packaged_model() -> None:
    """Features that were extracted with it are resumed by its hash."""
    artifact = load_artifact(DEFAULT)
    assert artifact.sha256 == DEFAULT_SHA256
    assert artifact.encoder.config == presets.tiny()
    assert open_checkpoint(DEFAULT).config["format_version"] == 1


def test_a_hidden_layer_without_a_gelu(tmp_path: Path) -> None:
    """Version 1 says `bent` where `gelu` is said now."""
    old = load_artifact(stored(tmp_path / "old", "wav2vec2 large"))
    spec = old.heads["events"].spec
    assert isinstance(spec, EventsSpec) and spec.gelu is False
    new = save_artifact(old.encoder, tmp_path / "new", name="n", training={}, licence="CC0", heads=old.heads)
    entry = load_artifact(new).config["heads"]["events"]
    assert entry["gelu"] is False and "bent" not in entry


def test_a_head_more_makes_it_version_2(tmp_path: Path) -> None:
    """With other heads as they were stored."""
    folder = stored(tmp_path / "old", "wav2vec2 large")
    before = load_artifact(folder)
    spec = CTCSpec(vocabulary=("<blank>", "a"))
    module = spec.build(before.encoder.config)
    more = load_artifact(add_head(folder, tmp_path / "more", "ctc", Head(spec, module, {}, "CC0")))
    assert more.config["format_version"] == 2 and "frontend" in more.config["encoder"]
    assert more.encoder.config == before.encoder.config
    assert more.heads["events"].spec == before.heads["events"].spec


@pytest.mark.parametrize("family", ["wavlm", "w2v-bert"])
def test_in_a_card_of_fairseq2(family: str, tmp_path: Path) -> None:
    told = card(stored(tmp_path / "old", family))["model_config"]
    assert isinstance(told, dict)
    assert build(ArtifactEncoderConfig(**told)).config == PARTS[family]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"wide": 3}, "unknown field 'wide'"),
        ({"position_batch_norm": 1}, "position_batch_norm must be True beside"),
        ({"relative": "alibi"}, "relative must be 'none' beside"),
        ({"adapter_width": -1}, "adapter_width of Transformer"),
        ({"position_depth": -1}, "layers of StackedConvolutions"),
        ({"dropout": None}, "wrong type"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, object], said: str, tmp_path: Path) -> None:
    folder = stored(tmp_path / "old", "wav2vec2 base")
    config = json.loads((folder / CONFIG).read_text())
    config["encoder"] |= change
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=said):
        load_artifact(folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"conformer_kernel": -1}, "kernel of Conformer must be whole, from 1"),
        ({"conformer_kernel": 4}, "kernel of Conformer must be odd"),
        ({"conformer_norm": "group"}, "norm of Conformer must be"),
        ({"conformer_kernel": 0, "relative": "rotary"}, "relative must be 'none' beside"),
        ({"relative": "gated"}, "relative must be 'none' beside"),
        ({"relative": "alibi"}, "relative must be 'none' beside"),
        ({"pre_norm": False}, "pre_norm must be True beside"),
        ({"adapter_width": 8}, "adapter_width must be 0"),
        ({"position_depth": 2}, "position_depth must be 0"),
        ({"relative": "clipped", "relative_left": -1}, "left of ClippedDistances"),
        ({"relative": "rotary", "rotary_base": 0}, "base of Rotary"),
    ],
)
def test_flat_conformers_that_cannot_be(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        stored_config({**GOLDEN["wav2vec2-conformer"]["encoder"], **changes})


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = stored(tmp_path / "old", "wav2vec2 base")
    config = json.loads((folder / CONFIG).read_text())
    del config["encoder"]["width"]
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="'width' is missing"):
        load_artifact(folder)

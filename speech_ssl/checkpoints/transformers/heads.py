"""Convert the heads of transformers' models, in both directions: CTC, and classifiers of clips and of frames.

transformers pools over time before a linear layer, ours pool after it: the numbers are the same, and files of
any length can be computed in windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from speech_ssl.checkpoints.artifact import Head
from speech_ssl.checkpoints.conversion import ConversionError, Tensors, check_weights
from speech_ssl.checkpoints.random_init import no_random_init
from speech_ssl.checkpoints.transformers import tokenizer
from speech_ssl.checkpoints.transformers.tokenizer import Units, theirs_first
from speech_ssl.model.config import EncoderConfig
from speech_ssl.model.heads.specs import AdapterSpec, CTCSpec, EventsSpec, HeadSpec

PARTS = ("weight", "bias")


def read_ctc(
    tensors: Tensors,
    units: Units,
    config: EncoderConfig,
    adapter: tuple[AdapterSpec, Mapping[str, Tensor]] | None = None,
) -> Head:
    """The `lm_head` of a CTC model, with the adapter that comes before it."""
    spec = CTCSpec(vocabulary=units.symbols, spaced=units.spaced, adapter=adapter[0] if adapter else None)
    state = {f"adapter.{name}": tensor for name, tensor in (adapter[1] if adapter else {}).items()}
    state |= {
        "logits.weight": units.ours_first(_rows(tensors.take("lm_head.weight"), units, tensors.where)),
        "logits.bias": units.ours_first(_rows(tensors.take("lm_head.bias"), units, tensors.where)),
    }
    training: dict[str, object] = {"blank": units.blank, "blank_index": units.blank_index}
    if units.options:
        training["tokenizer"] = dict(units.options)
    return Head(spec, _filled(spec, config, state, tensors.where), training, "unknown")


def read_labels(
    tensors: Tensors, theirs: Mapping[str, Any], config: EncoderConfig, *, of_frames: bool, where: str
) -> Head:
    """The `classifier` of a model for clips (with `projector`) or for frames."""
    weighted = bool(theirs.get("use_weighted_layer_sum", False))
    weight = tensors.take("classifier.weight")
    labels = _labels(theirs, weight.shape[0] if weight.ndim else 0, where)
    problem = theirs.get("problem_type")
    several = of_frames or problem == "multi_label_classification"
    if problem == "regression" or (len(labels) == 1 and problem != "multi_label_classification"):
        asked = "'problem_type' is 'regression'" if problem == "regression" else "there is one label"
        raise ConversionError(f"{where}: {asked}: its outputs are values, not probabilities of labels")
    projected = None if of_frames else tensors.take("projector.weight")
    spec = EventsSpec(
        labels=labels,
        exclusive=not several,
        pooling="mean",
        hidden=0 if projected is None else len(projected),
        mixing="plain" if weighted else "last",
        gelu=False,
        timed=of_frames,
    )
    state = {"outputs.weight": weight, "outputs.bias": tensors.take("classifier.bias")}
    if projected is not None:
        state |= {"hidden.weight": projected, "hidden.bias": tensors.take("projector.bias")}
    if weighted:
        state["mix.scores"] = tensors.take("layer_weights")
    module = _filled(spec, config, state, tensors.where)
    return Head(spec, module, {"of": "frames" if of_frames else "clips"}, "unknown")


def write_ctc(head: Head) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Tensors except the adapter's, fields for `config.json`, and contents of the two tokenizer files."""
    assert isinstance(head.spec, CTCSpec)
    state = head.module.state_dict()
    blank_index, ids, options = tokenizer.written(head.spec, head.training)
    tensors = {f"lm_head.{part}": theirs_first(state[f"logits.{part}"], blank_index) for part in PARTS}
    fields = {"vocab_size": len(ids), "pad_token_id": blank_index, "ctc_loss_reduction": "mean"}
    return tensors, fields, ids, options


def write_labels(head: Head) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """The architecture, its tensors and fields for `config.json`. Raises ValueError for a head that no class
    of transformers has."""
    spec, state = head.spec, head.module.state_dict()
    assert isinstance(spec, EventsSpec)
    if spec.mixing == "normalized" or spec.pooling != "mean" or (spec.hidden and spec.gelu):
        raise ValueError(
            f"transformers has no head with mixing {spec.mixing!r}, pooling {spec.pooling!r} and "
            f"{'a GELU' if spec.hidden and spec.gelu else 'no hidden layer'}: export the encoder without it"
        )
    tensors = {f"classifier.{part}": state[f"outputs.{part}"] for part in PARTS}
    if spec.hidden:
        tensors |= {f"projector.{part}": state[f"hidden.{part}"] for part in PARTS}
    if spec.mixing == "plain":
        tensors["layer_weights"] = state["mix.scores"]
    of_clips = bool(spec.hidden)
    kind = "single_label_classification" if spec.exclusive else "multi_label_classification"
    fields = {
        "problem_type": kind,
        "use_weighted_layer_sum": spec.mixing == "plain",
        "id2label": {str(unit): label for unit, label in enumerate(spec.labels)},
        "label2id": {label: unit for unit, label in enumerate(spec.labels)},
    }
    if of_clips:
        fields["classifier_proj_size"] = spec.hidden
    return "SequenceClassification" if of_clips else "AudioFrameClassification", tensors, fields


def _labels(theirs: Mapping[str, Any], count: int, where: str) -> tuple[str, ...]:
    named = theirs.get("id2label") or {unit: f"LABEL_{unit}" for unit in range(count)}
    if not isinstance(named, dict) or not all(str(unit).isdecimal() for unit in named):
        raise ConversionError(f"{where}: field 'id2label' does not give labels by number")
    labels = {int(unit): str(label) for unit, label in named.items()}
    if sorted(labels) != list(range(count)):
        raise ConversionError(f"{where}: field 'id2label' names {len(labels)} labels, the head has {count}")
    ordered = tuple(labels[unit] for unit in range(count))
    if len(set(ordered)) < count:
        raise ConversionError(f"{where}: field 'id2label' has the same label twice")
    return ordered


def _rows(rows: Tensor, units: Units, where: str) -> Tensor:
    if not rows.ndim or len(rows) != len(units.symbols):
        raise ConversionError(
            f"{where}: the head is of shape {tuple(rows.shape)}, and its vocabulary has {len(units.symbols)} "
            "units: they belong to different models"
        )
    return rows


def _filled(spec: HeadSpec, config: EncoderConfig, state: Mapping[str, Tensor], where: str) -> nn.Module:
    with no_random_init():
        module = spec.build(config)
    wanted: Sequence[str] = sorted(module.state_dict())
    for key in wanted:
        if key not in state or state[key].shape != module.state_dict()[key].shape:
            found = tuple(state[key].shape) if key in state else "missing"
            raise ConversionError(f"{where}: {key!r} of the head is {found}, not what its config asks for")
        check_weights(state[key], key, where)
    module.load_state_dict({key: state[key].clone().contiguous() for key in wanted}, assign=True)
    return module.eval()

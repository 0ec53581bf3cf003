"""Checkpoints of the original fairseq: wav2vec 2.0 (pre-trained or fine-tuned with CTC), HuBERT, data2vec
audio, and WavLM, which was published in the same format."""

from __future__ import annotations

import ast
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from speech_ssl.checkpoints import naming
from speech_ssl.checkpoints.artifact import Head
from speech_ssl.checkpoints.conversion import (
    ConversionError,
    Converted,
    Heads,
    Tensors,
    field_of,
    head_or_why,
    provenance,
)
from speech_ssl.checkpoints.naming import (
    assumed,
    config_of,
    encoder_of,
    old_names,
    pretraining_of,
    renamed,
    tensors_of,
)
from speech_ssl.checkpoints.torch_files.plain import plain
from speech_ssl.checkpoints.transformers.heads import read_ctc
from speech_ssl.checkpoints.transformers.tokenizer import Units
from speech_ssl.model.config import EncoderConfig, OfConformer, Rotary, Sinusoidal
from speech_ssl.text import BLANK, SPACE

DICTIONARY = "dict.ltr.txt"
SPECIAL = ("<pad>", "</s>", "<unk>")
"""The entries after `<s>`, the blank, in fairseq's dictionaries."""
CONVOLUTIONS = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2"
MOST_LAYERS, LONGEST = 100, 2000
"""Limits on the number of convolutions, and on the characters that describe them."""
NUMBERS = {  # with fairseq's defaults
    "dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.0),
    "feature_dropout": ("dropout_input", 0.0),
    "layer_drop": ("encoder_layerdrop", 0.0),
    "feature_grad_scale": ("feature_grad_mult", 1.0),
}
WAVE_NOTE = "norms come first and waves are normalised, as where the convolutions have layer norms"
POSITIONS: Mapping[str, OfConformer] = {"rel_pos": Sinusoidal(), "rope": Rotary()}
LAYER = r"encoder\.layers\.(\d+)\."
NAMES = [
    ("mask_emb", "masked_spec_embed"),
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.(.*)", r"feature_extractor.conv_layers.\1.conv.\2"),
    (
        r"feature_extractor\.conv_layers\.(\d+)\.2\.(?:1\.)?(.*)",
        r"feature_extractor.conv_layers.\1.layer_norm.\2",
    ),
    (r"layer_norm\.(.*)", r"feature_projection.layer_norm.\1"),
    (r"post_extract_proj\.(.*)", r"feature_projection.projection.\1"),
    (r"encoder\.pos_conv\.0\.(bias|weight_g|weight_v)", r"encoder.pos_conv_embed.conv.\1"),
    (r"encoder\.pos_conv\.(\d+)\.0\.(.*)", r"encoder.pos_conv_embed.layers.\1.conv.\2"),
    (LAYER + r"self_attn\.grep_linear\.(.*)", r"encoder.layers.\1.attention.gru_rel_pos_linear.\2"),
    (LAYER + r"self_attn\.grep_a", r"encoder.layers.\1.attention.gru_rel_pos_const"),
    (LAYER + r"self_attn\.relative_attention_bias\.(.*)", r"encoder.layers.\1.attention.rel_attn_embed.\2"),
    (LAYER + r"self_attn\.(.*)", r"encoder.layers.\1.attention.\2"),
    (LAYER + r"self_attn_layer_norm\.(.*)", r"encoder.layers.\1.layer_norm.\2"),
    (LAYER + r"fc1\.(.*)", r"encoder.layers.\1.feed_forward.intermediate_dense.\2"),
    (LAYER + r"fc2\.(.*)", r"encoder.layers.\1.feed_forward.output_dense.\2"),
    (r"quantizer\.vars", "quantizer.codevectors"),
    (r"final_proj\.(.*)", r"project_hid.\1"),
]
CONFORMER = [
    *((pattern, new) for pattern, new in NAMES if "self_attn" not in pattern),
    (LAYER + r"ffn([12])\.layer_norm\.(.*)", r"encoder.layers.\1.ffn\2_layer_norm.\3"),
    (LAYER + r"ffn([12])\.w_1\.(.*)", r"encoder.layers.\1.ffn\2.intermediate_dense.\3"),
    (LAYER + r"ffn([12])\.w_2\.(.*)", r"encoder.layers.\1.ffn\2.output_dense.\3"),
    (r"encoder\.layers\.0\.self_attn\.rotary_emb\.inv_freq", "encoder.embed_positions.inv_freq"),
]
LEFT_OUT = (
    "label_embs_concat",
    "project_hid.",
    "project_q.",
    "quantizer.",
    "regression_head",
    "_ema",
    "target_glu.",
    "lm_head.",
)


def recognises(content: Any) -> bool:
    if isinstance(content, Mapping) and "model" in content and ("args" in content or "cfg" in content):
        return True
    return any(key.endswith("feature_extractor.conv_layers.0.0.weight") for key in _state(content))


def read(content: Any, where: str, name: str) -> Converted:
    """Convert a checkpoint. Options may be missing; what the weights do not show is then taken from the
    published models. Raises ConversionError."""
    state = _state(content)
    found = {_shortened(key): value for key, value in state.items()}
    names = _names(found)
    theirs = renamed(found, names)
    options, task = _options(content, where)
    config = _config(theirs, options, task, where) if options else _published(theirs, where)
    tensors = Tensors(theirs, where)
    tensors.drop([key for key in theirs if key.endswith("rotary_emb.inv_freq")])  # the same in each layer
    encoder = encoder_of(tensors, config)
    heads, why = _heads(tensors, config, where)
    tuned = any(key.startswith("w2v_encoder.") for key in state)
    groups = options.get("latent_groups")
    extra = {} if tuned else pretraining_of(tensors, groups if type(groups) is int else None)
    left = tensors.keys()
    tensors.drop([key for key in left if key.startswith(LEFT_OUT)])
    tensors.check_empty()
    task_name = next((name for name in (task.get("_name"), options.get("arch")) if isinstance(name, str)), "")
    training = provenance(
        "fairseq",
        task=task_name,
        stored_as=tensors.stored_as,
        assumed=[] if options else assumed(config, *[WAVE_NOTE] * config.block.pre_norm),
        left=old_names(left, found, names),
        why=why,
    )
    return Converted(encoder, name, training, heads=heads, extra=extra)


def _state(content: Any) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    return tensors_of(content)


def _options(content: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the model, with those of its pre-trained model if it was fine-tuned; and of the task."""
    try:
        given = plain(content.get("cfg")) or plain(content.get("args")) or {}
    except RecursionError:
        raise ConversionError(f"{where}: field 'cfg' or 'args' is nested too deeply") from None
    if not isinstance(given, dict):
        raise ConversionError(f"{where}: field 'cfg' or 'args' does not hold options by name")
    model, task = given.get("model"), given.get("task")
    model = model if isinstance(model, dict) else given  # the architecture's name in old files
    task = task if isinstance(task, dict) else given
    before = model.get("w2v_args")
    if isinstance(before, dict):
        inner = before.get("model")
        model = {**model, **(inner if isinstance(inner, dict) else before)}
    elif "w2v_path" in model and "encoder_attention_heads" not in model:
        raise ConversionError(f"{where}: field 'w2v_args' is missing: the options of the pre-trained model")
    return model, task


def _shortened(key: str) -> str:
    if key.startswith("w2v_encoder.proj."):
        return key.replace("w2v_encoder.proj", "lm_head")
    return key.removeprefix("w2v_encoder.w2v_model.").removeprefix("w2v_encoder.")


def _names(found: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    if naming.DEPTHWISE in found:
        return CONFORMER
    stacked = "encoder.pos_conv.1.0.bias" in found
    return [pair for pair in NAMES if not (stacked and "weight_g" in pair[0])]


def _config(
    tensors: Mapping[str, Tensor], options: Mapping[str, Any], task: Mapping[str, Any], where: str
) -> EncoderConfig:
    def option(name: str, usual: Any, kind: type | tuple[type, ...]) -> Any:
        value = options.get(name)
        return field_of({name: usual if value is None else value}, name, kind, where)

    layers = _layers(option("conv_feature_layers", CONVOLUTIONS, str), where)
    known: dict[str, Any] = {
        "strides": tuple(stride for _, _, stride in layers),
        "heads": option("encoder_attention_heads", 12, int),
        "pre_norm": option("layer_norm_first", False, bool),
        "normalize_wave": _normalizes(options, task),
        **{ours: float(option(name, usual, (int, float))) for ours, (name, usual) in NUMBERS.items()},
    }
    if naming.DEPTHWISE in tensors:
        return _conformer(tensors, known, option("pos_enc_type", "abs", str), where)
    activation = option("activation_fn", "gelu", str)
    if activation not in ("gelu", "relu"):
        shown = reprlib.repr(activation)
        raise ConversionError(f"{where}: field 'activation_fn' is {shown}; supported are gelu and relu")
    known["activation"] = activation
    if options.get("relative_position_embedding"):
        known["furthest"] = option("max_distance", 800, int)
    return config_of(tensors, where, **known)


def _published(tensors: Mapping[str, Tensor], where: str) -> EncoderConfig:
    if naming.DEPTHWISE in tensors:
        raise ConversionError(f"{where}: field 'cfg' is missing, which gives the positions of a Conformer")
    layered = "feature_extractor.conv_layers.1.layer_norm.weight" in tensors
    return config_of(tensors, where, pre_norm=layered, normalize_wave=layered)


def _conformer(
    tensors: Mapping[str, Tensor], known: dict[str, Any], positions: str, where: str
) -> EncoderConfig:
    """The config of a Conformer whose layers use positions. fairseq has one dropout for all its parts."""
    if positions not in POSITIONS:
        shown = reprlib.repr(positions)
        raise ConversionError(f"{where}: field 'pos_enc_type' is {shown}; Conformers have rel_pos or rope")
    dropouts = ("attention_dropout", "activation_dropout", "conformer_dropout")
    known |= dict.fromkeys(dropouts, known["dropout"])
    return config_of(tensors, where, **known, positions=POSITIONS[positions])


def _normalizes(options: Mapping[str, Any], task: Mapping[str, Any]) -> bool:
    """Given by the task; the model's options may only refer to it (`${task.normalize}`)."""
    told = (each.get("normalize") for each in (task, options))
    return next((value for value in told if isinstance(value, bool)), False)


def _layers(text: str, where: str) -> list[tuple[int, int, int]]:
    """Channels, kernel and stride of each layer, from fairseq's expression of sums and products of lists."""
    try:
        if len(text) > LONGEST:
            raise ValueError("too long")
        layers = [tuple(layer) for layer in _value(ast.parse(text, mode="eval").body)]
        if any(len(layer) != 3 or any(type(value) is not int for value in layer) for layer in layers):
            raise ValueError("not three whole numbers each")
        return [(channels, kernel, stride) for channels, kernel, stride in layers]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise ConversionError(
            f"{where}: field 'conv_feature_layers' is {text[:80]!r}: not a list of layers"
        ) from None


def _value(node: ast.expr) -> Any:
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Add | ast.Mult):
        return ast.literal_eval(node)
    left, right = _value(node.left), _value(node.right)
    lists = [value for value in (left, right) if type(value) is list]
    if isinstance(node.op, ast.Add):
        if len(lists) != 2:
            raise ValueError("a sum of something else")
        return left + right
    times = next((value for value in (left, right) if type(value) is int), -1)
    if len(lists) != 1 or not 0 <= times * len(lists[0]) <= MOST_LAYERS:
        raise ValueError("too many layers, or a product of something else")
    return left * right


def _heads(tensors: Tensors, config: EncoderConfig, where: str) -> Heads:
    """The CTC head, with the dictionary beside fairseq's file; without it the head has no meaning."""
    path = Path(where).with_name(DICTIONARY)

    def read() -> Head:
        return read_ctc(tensors, Units(_symbols(path), "<s>", 0), config)

    return head_or_why("ctc", tensors, read) if "lm_head.weight" in tensors else ({}, {})


def _symbols(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise ConversionError(f"{path}: missing, and without it the units have no meaning")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ConversionError(f"{path}: not UTF-8 text") from None
    symbols = [*SPECIAL, *(line.rpartition(" ")[0] or line for line in lines if line)]
    ours = (BLANK, *(SPACE if symbol == "|" else symbol for symbol in symbols))
    if len(set(ours)) < len(ours):
        raise ConversionError(f"{path}: a symbol occurs twice")
    return ours

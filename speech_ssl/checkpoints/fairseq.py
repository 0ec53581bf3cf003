"""Checkpoints of the original fairseq: wav2vec 2.0 (pre-trained, or tuned for CTC), HuBERT, data2vec audio,
and WavLM, which was published in the same form."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from speech_ssl.checkpoints.artifact import Head
from speech_ssl.checkpoints.conversion import ConversionError, Converted, Tensors
from speech_ssl.checkpoints.hf_heads import Units, read_ctc
from speech_ssl.checkpoints.naming import config_of, encoder_of, pretraining_of, renamed, tensors_of
from speech_ssl.checkpoints.pickles import plain
from speech_ssl.model.config import EncoderConfig
from speech_ssl.text import BLANK, SPACE

DICTIONARY = "dict.ltr.txt"
SPECIAL = ("<pad>", "</s>", "<unk>")
"""What fairseq's dictionaries have after `<s>`, which is the blank."""
CONVOLUTIONS = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2"
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
LEFT_OUT = (
    "label_embs_concat",
    "project_hid.",
    "project_q.",
    "quantizer.",
    "regression_head",
    "_ema",
    "lm_head.",
)


def recognises(content: Any) -> bool:
    return isinstance(content, Mapping) and "model" in content and ("args" in content or "cfg" in content)


def read(content: Any, where: str, name: str) -> Converted:
    """Raises ConversionError."""
    found = tensors_of(content["model"])
    given = plain(content.get("args")) or plain(content.get("cfg")) or {}
    options, task = _options(given)
    tuned = any(key.startswith("w2v_encoder.") for key in found)
    found = {_shortened(key): value for key, value in found.items()}
    tensors = Tensors(_renamed(found), where)
    config = _config(_renamed(found), options, task, where)
    encoder = encoder_of(tensors, config)
    heads = _heads(tensors, config, where)
    extra = {} if tuned else pretraining_of(tensors, options.get("latent_groups"))
    left = tensors.keys()
    tensors.drop([key for key in left if key.startswith(LEFT_OUT)])
    tensors.check_empty()
    training: dict[str, object] = {
        "source": "fairseq",
        "task": str(task.get("_name") or options.get("arch") or ""),
    }
    if left:
        training["left_out"] = left
    return Converted(encoder, name, training, heads=heads, extra=extra)


def _options(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the model, those of its pre-training where it was tuned; and of the task."""
    model = given.get("model", given)
    task = given.get("task", given)
    if not isinstance(model, dict):  # in old files the name of the architecture
        model = dict(given)
    if not isinstance(task, dict):
        task = dict(given)
    before = model.get("w2v_args")
    if isinstance(before, dict):
        inner = before.get("model", before)
        model = {**model, **(inner if isinstance(inner, dict) else before)}
    return model, task


def _shortened(key: str) -> str:
    if key.startswith("w2v_encoder.proj."):
        return key.replace("w2v_encoder.proj", "lm_head")
    return key.removeprefix("w2v_encoder.w2v_model.").removeprefix("w2v_encoder.")


def _renamed(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    stacked = "encoder.pos_conv.1.0.bias" in found
    names = [pair for pair in NAMES if not (stacked and "weight_g" in pair[0])]
    return renamed(found, names)


def _config(
    tensors: Mapping[str, Tensor], options: Mapping[str, Any], task: Mapping[str, Any], where: str
) -> EncoderConfig:
    layers = _layers(str(options.get("conv_feature_layers") or CONVOLUTIONS), where)
    known: dict[str, Any] = {
        "conv_strides": tuple(stride for _, _, stride in layers),
        "pre_norm": bool(options.get("layer_norm_first", False)),
        "normalize_wave": bool(task.get("normalize", options.get("normalize", False))),
        "dropout": float(options.get("dropout", 0.1)),
        "attention_dropout": float(options.get("attention_dropout", 0.1)),
        "activation_dropout": float(options.get("activation_dropout", 0.0)),
        "feature_dropout": float(options.get("dropout_input", 0.0)),
        "layer_drop": float(options.get("encoder_layerdrop", 0.0)),
    }
    heads = options.get("encoder_attention_heads", 12)
    if not isinstance(heads, int):
        raise ConversionError(f"{where}: field 'encoder_attention_heads' is {heads!r}, not a whole number")
    known["heads"] = heads
    activation = options.get("activation_fn", "gelu")
    if activation not in ("gelu", "relu"):
        raise ConversionError(f"{where}: field 'activation_fn' is {activation!r}; known are gelu and relu")
    known["activation"] = activation
    if options.get("relative_position_embedding"):
        known["relative_distance"] = int(options.get("max_distance", 800))
    return config_of(tensors, where, **known)


def _layers(text: str, where: str) -> list[tuple[int, int, int]]:
    """Channels, kernel and stride of each, from the sums and products of lists that fairseq writes."""
    try:
        layers = _value(ast.parse(text, mode="eval").body)
        return [(int(channels), int(kernel), int(stride)) for channels, kernel, stride in layers]
    except (SyntaxError, ValueError, TypeError):
        raise ConversionError(
            f"{where}: field 'conv_feature_layers' is {text[:80]!r}: no list of layers"
        ) from None


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Mult) and max(v for v in (left, right) if isinstance(v, int)) > 1000:
            raise ValueError("too many layers")
        return left + right if isinstance(node.op, ast.Add) else left * right
    return ast.literal_eval(node)


def _heads(tensors: Tensors, config: EncoderConfig, where: str) -> dict[str, Head]:
    """With the dictionary that fairseq keeps beside the file; without it the head has no meaning."""
    path = Path(where).with_name(DICTIONARY)
    if "lm_head.weight" not in tensors or not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    symbols = [*SPECIAL, *(line.rpartition(" ")[0] or line for line in lines if line)]
    ours = (BLANK, *(SPACE if symbol == "|" else symbol for symbol in symbols))
    if len(set(ours)) < len(ours):
        raise ConversionError(f"{path}: a symbol occurs twice")
    return {"ctc": read_ctc(tensors, Units(ours, "<s>", 0), config)}

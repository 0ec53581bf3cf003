"""The numbers that define an encoder: stored in every artifact beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

ConvNorm = Literal["group", "layer"]
Init = Literal["published", "smooth"]
Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
Relative = Literal["none", "gated", "rotary", "sinusoidal", "clipped"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """A wav2vec 2.0 encoder (Baevski et al. 2020, arXiv 2006.11477, section 2 and appendix B).

    The defaults are BASE as published in code: 12 heads (the paper's text says 8).
    """

    conv_channels: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_norm: ConvNorm = "group"
    """"group": one group norm over time after the first convolution (BASE).
    "layer": a layer norm over channels after each (LARGE)."""
    conv_bias: bool = False
    normalize_wave: bool = False
    """Bring each wave to zero mean and unit variance over its true length."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    ffn_width: int = 3072
    pre_norm: bool = False
    """Layer norm before attention and feed-forward (LARGE LV-60k) instead of after (BASE)."""
    position_kernel: int = 128
    position_groups: int = 16
    norm_eps: float = 1e-5

    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    feature_dropout: float = 0.1
    layer_drop: float = 0.05
    feature_grad_scale: float = 0.1
    """Gradients into the convolutions are multiplied by this; 0 freezes them."""
    init: Init = "published"
    """"published": normal, as fairseq. "smooth": for short runs, see `frontend.smooth_convolutions_`."""

    # What the relatives of wav2vec 2.0 have. All fields from here on may be missing in a stored config.
    activation: Activation = "gelu"
    """In the feed-forward parts."""
    conv_activation: Activation = "gelu"
    feature_norm: bool = True
    """A layer norm before the features are projected; some HuBERT models have none."""
    position_depth: int = 0
    """0: one wide convolution for positions. N: data2vec's N narrow ones, with norms between them."""
    relative: Relative = "none"
    """Positions in attention. "gated": WavLM. "rotary", "sinusoidal": the two of wav2vec2-conformer, which
    take the place of the convolution. "clipped": by distance up to a limit (w2v-BERT 2.0)."""
    relative_buckets: int = 320
    relative_distance: int = 800
    """Of "gated", as WavLM calls them. "clipped" keeps distances from -relative_left to relative_right."""
    relative_left: int = 64
    relative_right: int = 8
    rotary_base: int = 10000
    adapter_width: int = 0
    """Of the adapters after each block (MMS); 0: none."""
    conformer_kernel: int = 0
    """Of the convolution in each block; 0: Transformer blocks. Else Conformer blocks (Gulati et al. 2020)."""
    conformer_norm: Literal["batch", "layer"] = "batch"
    """After that convolution: over the batch and both sides of it, or over channels and causal (w2v-BERT)."""
    mel_bins: int = 0
    """0: convolutions on samples. Else that many log-mel bins, two steps of 10 ms to a frame (w2v-BERT)."""

    def __post_init__(self) -> None:
        depth = len(self.conv_channels)
        if not depth or not depth == len(self.conv_kernels) == len(self.conv_strides):
            raise ValueError("conv_channels, conv_kernels and conv_strides need the same length, at least 1")
        numbers = (*self.conv_channels, *self.conv_kernels, *self.conv_strides)
        numbers += (self.width, self.depth, self.heads, self.ffn_width)
        numbers += (self.position_kernel, self.position_groups)
        if min(numbers) < 1:
            raise ValueError("all sizes of an encoder must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.width % self.position_groups:
            raise ValueError(
                f"width {self.width} must be a multiple of position_groups {self.position_groups}"
            )
        if self.conv_norm not in ("group", "layer"):
            raise ValueError(f"conv_norm must be 'group' or 'layer', not {self.conv_norm!r}")
        if self.init not in ("published", "smooth"):
            raise ValueError(f"init must be 'published' or 'smooth', not {self.init!r}")

    def to_dict(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncoderConfig:
        """The inverse of `to_dict`. Raises ValueError that names a missing or unknown field."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown field {unknown[0]!r} in the encoder config")
        if missing := sorted(known - set(values) - _LATER):
            raise ValueError(f"field {missing[0]!r} is missing in the encoder config")
        fitted: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        try:
            return cls(**fitted)
        except TypeError as error:
            raise ValueError(f"a field of the encoder config has the wrong type: {error}") from None


_NAMES = [f.name for f in fields(EncoderConfig)]
_LATER = frozenset(_NAMES[_NAMES.index("activation") :])
"""Fields that artifacts of the first version do not have."""

"""The numbers that define an encoder: stored in every artifact beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

ConvNorm = Literal["group", "layer"]
Init = Literal["published", "smooth"]
Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
Relative = Literal["none", "gated", "rotary", "sinusoidal", "clipped"]


WAVE_EPS = 1e-7
"""transformers' and ours."""
LARGEST, DEEPEST = 2**20, 1000
MEL_FIELD, MEL_HOP = 560, 320
"""Samples under a frame of log-mel features, and from one to the next."""


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
    position_batch_norm: bool = False
    """A batch norm before the wide convolution, which then has no weight norm; some HuBERT models have it."""
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
    """0: convolutions on samples. Else that many log-mel bins, two steps of 10 ms to a frame (w2v-BERT): in
    the words of convolutions conv_channels (2 * mel_bins,), conv_kernels (560,), conv_strides (320,)."""
    conformer_dropout: float = 0.1
    """After the convolution in each block."""
    wave_eps: float = WAVE_EPS
    """Added to the variance that normalize_wave divides by: fairseq, fairseq2 and torchaudio have 1e-5 there,
    which quiet waves hear."""

    def __post_init__(self) -> None:
        depth = len(self.conv_channels)
        if not depth or not depth == len(self.conv_kernels) == len(self.conv_strides):
            raise ValueError("conv_channels, conv_kernels and conv_strides need the same length, at least 1")
        self._check_sizes()
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.width % self.position_groups:
            raise ValueError(
                f"width {self.width} must be a multiple of position_groups {self.position_groups}"
            )
        if not 0 < self.wave_eps < 1:
            raise ValueError(f"wave_eps must be more than 0 and less than 1, not {self.wave_eps!r}")
        if self.conv_norm not in ("group", "layer"):
            raise ValueError(f"conv_norm must be 'group' or 'layer', not {self.conv_norm!r}")
        if self.init not in ("published", "smooth"):
            raise ValueError(f"init must be 'published' or 'smooth', not {self.init!r}")
        self._check_relatives()
        self._check_conformers()

    def _check_sizes(self) -> None:
        numbers = (*self.conv_channels, *self.conv_kernels, *self.conv_strides)
        numbers += (self.width, self.depth, self.heads, self.ffn_width)
        numbers += (self.position_kernel, self.position_groups)
        if min(numbers) < 1:
            raise ValueError("all sizes of an encoder must be at least 1")
        if max(numbers) > LARGEST or self.depth > DEEPEST:
            raise ValueError(f"an encoder's depth can be {DEEPEST} and its other sizes {LARGEST} at most")
        for name in ("dropout", "attention_dropout", "activation_dropout", "feature_dropout", "layer_drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {getattr(self, name)!r}")

    def _check_relatives(self) -> None:
        """The fields of Transformer-type relatives."""
        choices = {"activation": Activation, "conv_activation": Activation, "relative": Relative}
        for name, known in choices.items():
            if (value := getattr(self, name)) not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, not {value!r}")
        for name in ("feature_norm", "position_batch_norm"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, not {getattr(self, name)!r}")
        if self.position_batch_norm and self.position_depth:
            raise ValueError("position_batch_norm must be false where position_depth is not 0")
        for name in ("position_depth", "adapter_width"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        if self.relative == "gated" and self.relative_buckets < 4:
            raise ValueError(f"relative_buckets must be at least 4, not {self.relative_buckets}")
        if self.relative == "gated" and self.relative_distance <= self.relative_buckets // 4:
            raise ValueError(
                f"relative_distance {self.relative_distance} must be more than relative_buckets // 4, "
                f"{self.relative_buckets // 4}"
            )

    def _check_conformers(self) -> None:
        """The fields of Conformers and of those that hear log-mel features."""
        if self.conformer_kernel < 0 or (self.conformer_kernel and self.conformer_kernel % 2 == 0):
            raise ValueError(f"conformer_kernel must be 0 or odd, not {self.conformer_kernel}")
        if self.conformer_norm not in ("batch", "layer"):
            raise ValueError(f"conformer_norm must be 'batch' or 'layer', not {self.conformer_norm!r}")
        for name, possible in (_OF_CONFORMERS if self.conformer_kernel else _OF_TRANSFORMERS).items():
            if (value := getattr(self, name)) not in possible:
                kind = "Conformer" if self.conformer_kernel else "Transformer"
                choices = " or ".join(map(repr, possible))
                raise ValueError(f"{name} must be {choices} with {kind} blocks, not {value!r}")
        if min(self.relative_left, self.relative_right) < 0 or self.rotary_base < 1:
            raise ValueError("relative_left and relative_right must be at least 0, rotary_base at least 1")
        if self.relative in ("rotary", "sinusoidal") and self.width // self.heads % 2:
            raise ValueError(f"relative {self.relative!r} needs an even width of heads")
        heard = (self.conv_channels, self.conv_kernels, self.conv_strides)
        if self.mel_bins and heard != ((2 * self.mel_bins,), (MEL_FIELD,), (MEL_HOP,)):
            raise ValueError(
                f"mel_bins {self.mel_bins} needs conv_channels ({2 * self.mel_bins},), conv_kernels "
                f"({MEL_FIELD},) and conv_strides ({MEL_HOP},)"
            )
        if self.mel_bins and self.normalize_wave:
            raise ValueError("normalize_wave must be false where mel_bins is not 0: the bins are normalised")

    def to_dict(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def architecture(self) -> dict[str, Any]:
        """What decides the weights' shapes and what is computed with them, not what training alone sees."""
        return {name: value for name, value in self.to_dict().items() if name not in _TRAINING}

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
_OF_CONFORMERS: Mapping[str, tuple[object, ...]] = {
    "relative": ("none", "rotary", "sinusoidal", "clipped"),
    "pre_norm": (True,),
    "position_depth": (0,),
    "position_batch_norm": (False,),
    "adapter_width": (0,),
}
_OF_TRANSFORMERS: Mapping[str, tuple[object, ...]] = {"relative": ("none", "gated")}
_TRAINING = {name for name in _NAMES if name.endswith("dropout")}
_TRAINING |= {"layer_drop", "feature_grad_scale", "init"}

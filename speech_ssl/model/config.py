"""The encoder's config, made of parts with their own fields. Every artifact stores it beside the weights.

No `from __future__ import annotations` here: the allowed values of a field are read from its type.
"""

from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar, get_args, get_origin

ConvNorm = Literal["group", "layer"]
MelNorm = Literal["bin", "clip"]
Init = Literal["published", "smooth"]
Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]

WAVE_EPS = 1e-7
"""The value of transformers and the default here."""
LARGEST, DEEPEST = 2**20, 1000
FROM_0 = {"least": 0}
LATER = {"later": True}
"""Of fields that older artifacts lack. At its default such a field is not stored, so that hashes stay."""


class Part:
    """Base of the frozen dataclasses that make up a config. Stored as its fields and its name in KINDS. Whole
    numbers are at least 1 unless the field says otherwise."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __post_init__(self) -> None:
        self.check_types()

    def check_types(self) -> None:
        """Raises ValueError if a value does not fit its field."""
        for each in fields(self):
            name, value, kind = f"{each.name} of {type(self).__name__}", getattr(self, each.name), each.type
            if kind in (int, tuple[int, ...]):
                least, most = each.metadata.get("least", 1), each.metadata.get("most", LARGEST)
                for number in (value,) if kind is int else value:
                    if type(number) is not int or not least <= number <= most:
                        raise ValueError(f"{name} must be whole, from {least} to {most}, not {number!r}")
            elif get_origin(kind) is Literal:
                if value not in get_args(kind):
                    raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, not {value!r}")
            elif kind is float:
                if each.name.endswith(("dropout", "drop")) and not 0 <= value <= 1:
                    raise ValueError(f"{name} must be from 0 to 1, not {value!r}")
            elif not isinstance(value, kind):  # type: ignore[arg-type]  # a class or a union
                raise ValueError(f"{name} cannot be {value!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Convolutions(Part):
    """A convolutional front end on samples. The defaults are the published ones."""

    channels: tuple[int, ...] = (512,) * 7
    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    norm: ConvNorm = "group"
    """"group": one group norm over time after the first convolution (BASE).
    "layer": a layer norm over channels after each (LARGE)."""
    bias: bool = False
    normalize_wave: bool = False
    """Bring each wave to zero mean and unit variance over its true length."""
    wave_eps: float = WAVE_EPS
    """Added to the variance that normalize_wave divides by. fairseq, fairseq2 and torchaudio use 1e-5, which
    changes the result for quiet clips."""

    def __post_init__(self) -> None:
        self.check_types()
        if not self.channels or not len(self.channels) == len(self.kernels) == len(self.strides):
            raise ValueError("channels, kernels and strides of Convolutions need the same length, at least 1")
        if not 0 < self.wave_eps < 1:
            raise ValueError(f"wave_eps must be more than 0 and less than 1, not {self.wave_eps!r}")

    @property
    def width(self) -> int:
        """Channels of a frame."""
        return self.channels[-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class LogMel(Part):
    """A log-mel front end: several steps of 10 ms make a frame (w2v-BERT 2.0)."""

    bins: int = 80
    stacked: int = field(default=2, metadata={**LATER, "most": 100})
    """Steps in a frame: 2 make 50 frames a second, 4 make 25."""
    norm: MelNorm = field(default="bin", metadata=LATER)
    """"bin": each bin has mean 0 and variance 1 over the clip, which removes microphone, room and level, and
    with them most of the timbre of voices and sounds. "clip": all bins share the mean and variance, which
    removes the level alone."""
    channels: tuple[int, ...] = field(default=(), metadata=LATER)
    """Of 2-D convolutions before the projection, see `MelStem`. Each halves the steps: `stacked` is 2 to the
    power of their number."""

    def __post_init__(self) -> None:
        self.check_types()
        if self.channels and self.stacked != 2 ** len(self.channels):
            raise ValueError(
                f"{len(self.channels)} channels of LogMel need stacked={2 ** len(self.channels)}, "
                f"not {self.stacked}"
            )

    @property
    def width(self) -> int:
        """Channels of a frame."""
        return self.stacked * self.bins


@dataclass(frozen=True, kw_only=True, slots=True)
class WideConvolution(Part):
    """Positions by one wide grouped convolution (wav2vec 2.0)."""

    kernel: int = 128
    groups: int = 16
    norm: Literal["weight", "batch"] = "weight"
    """Weight norm, or a batch norm before the convolution, as in some HuBERT models."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StackedConvolutions(Part):
    """Positions by several narrow convolutions, with norms between them (data2vec)."""

    layers: int = 5
    kernel: int = 19
    groups: int = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedDistances(Part):
    """Positions by convolution, and in attention by a gated bias for each bucket of distances (WavLM)."""

    convolution: WideConvolution | StackedConvolutions = WideConvolution()
    buckets: int = field(default=320, metadata={"least": 4})
    furthest: int = 800
    """All distances from this one on share a bucket."""

    def __post_init__(self) -> None:
        self.check_types()
        if self.furthest <= self.buckets // 4:
            raise ValueError(f"furthest must be more than a quarter of buckets, not {self.furthest}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rotary(Part):
    """Rotary embeddings: frames are rotated by their position before attention (wav2vec2-conformer)."""

    base: int = 10000


@dataclass(frozen=True, kw_only=True, slots=True)
class Sinusoidal(Part):
    """Sinusoidal embeddings of relative distances in attention (wav2vec2-conformer)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClippedDistances(Part):
    """A learned vector for each distance in attention, from -left to right (w2v-BERT 2.0's relative_key)."""

    left: int = field(default=64, metadata=FROM_0)
    right: int = field(default=8, metadata=FROM_0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Transformer(Part):
    """Transformer blocks: attention and feed-forward."""

    pre_norm: bool = False
    """Layer norm before attention and feed-forward (LARGE LV-60k) instead of after (BASE)."""
    adapter_width: int = field(default=0, metadata=FROM_0)
    """Width of the adapter after each block (MMS); 0: no adapters."""
    causal: bool = field(default=False, metadata=LATER)
    """Each frame sees itself and those before it: in attention, and in the convolution of the positions. What
    the front end normalises by is still of the whole clip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conformer(Part):
    """Conformer blocks: attention, feed-forward and a convolution (Gulati et al. 2020)."""

    pre_norm: ClassVar[bool] = True

    kernel: int = 31
    norm: Literal["batch", "layer"] = "batch"
    """After the convolution. "batch": the convolution sees both sides; "layer": it is causal (w2v-BERT)."""
    dropout: float = 0.1
    """After the convolution."""

    def __post_init__(self) -> None:
        self.check_types()
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel of Conformer must be odd, not {self.kernel}")


ConvPosition: TypeAlias = WideConvolution | StackedConvolutions
OfTransformer: TypeAlias = WideConvolution | StackedConvolutions | GatedDistances
OfConformer: TypeAlias = Rotary | Sinusoidal | ClippedDistances | None


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig(Part):
    """A wav2vec 2.0 encoder (Baevski et al. 2020, arXiv 2006.11477, section 2 and appendix B), or a relative.

    The defaults are BASE as in the published code, with 12 heads (the paper's text says 8).
    """

    frontend: Convolutions | LogMel = Convolutions()
    positions: OfTransformer | OfConformer = WideConvolution()
    """Transformer blocks take convolutions, with or without gated distances. Conformer blocks take the others
    or None."""
    block: Transformer | Conformer = Transformer()

    width: int = 768
    depth: int = field(default=12, metadata={"most": DEEPEST})
    heads: int = 12
    ffn_width: int = 3072
    activation: Activation = "gelu"
    """Activation of the feed-forward layers, and after the convolution of Conformers."""
    conv_activation: Activation = "gelu"
    """Activation of the convolutions in the front end and the positions."""
    norm_eps: float = 1e-5
    feature_norm: bool = True
    """A layer norm before the projection of the features; some HuBERT models have none."""

    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    feature_dropout: float = 0.1
    layer_drop: float = 0.05
    feature_grad_scale: float = 0.1
    """Gradients into the front end are multiplied by this factor; 0 freezes it."""
    init: Init = "published"
    """"published": normal, as fairseq. "smooth": for short runs, see `smooth_convolutions_`."""

    def __post_init__(self) -> None:
        self.check_types()
        fitting = OfTransformer if isinstance(self.block, Transformer) else OfConformer
        if not isinstance(self.positions, fitting):
            kind = type(self.block).__name__
            raise ValueError(f"positions cannot be {self.positions!r} with blocks of a {kind}")
        if self.causal and not (
            isinstance(self.positions, WideConvolution) and self.positions.norm == "weight"
        ):
            raise ValueError("causal blocks need positions of a WideConvolution with a norm of its weight")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if isinstance(self.positions, Rotary | Sinusoidal) and self.width // self.heads % 2:
            raise ValueError(f"{type(self.positions).__name__} positions need an even width of heads")
        if (convolution := self.convolution) is not None and self.width % convolution.groups:
            raise ValueError(f"width {self.width} must be a multiple of groups {convolution.groups}")

    @property
    def causal(self) -> bool:
        """Whether each frame sees only itself and those before it."""
        return isinstance(self.block, Transformer) and self.block.causal

    @property
    def convolution(self) -> ConvPosition | None:
        """The positional convolution, if there is one."""
        inner = self.positions.convolution if isinstance(self.positions, GatedDistances) else self.positions
        return inner if isinstance(inner, ConvPosition) else None

    def changed(self, **changes: Any) -> "EncoderConfig":
        """A copy with these values changed; a mapping changes fields of a part."""
        parts = {k: replace(getattr(self, k), **v) for k, v in changes.items() if isinstance(v, Mapping)}
        return replace(self, **{**changes, **parts})

    def to_dict(self) -> dict[str, Any]:
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}

    def architecture(self) -> dict[str, Any]:
        """The fields that decide the weights' shapes and the computation, without those that matter in
        training alone. Keys look like `frontend.strides`."""
        return {name: value for name, value in _named(self.to_dict()) if not name.endswith(OF_TRAINING)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EncoderConfig":
        """The inverse of `to_dict`. Raises ValueError naming a missing or unknown field."""
        try:
            return _read(cls, values)
        except TypeError as error:
            raise ValueError(f"a field of the encoder config has the wrong type: {error}") from None


KINDS: Mapping[str, type[Part]] = {
    "convolutions": Convolutions,
    "log_mel": LogMel,
    "wide_convolution": WideConvolution,
    "stacked_convolutions": StackedConvolutions,
    "gated_distances": GatedDistances,
    "rotary": Rotary,
    "sinusoidal": Sinusoidal,
    "clipped_distances": ClippedDistances,
    "transformer": Transformer,
    "conformer": Conformer,
}
"""The name under which each part is stored."""
OF_TRAINING = ("dropout", "layer_drop", "feature_grad_scale", "init")
"""Endings of the names of fields that matter in training alone."""


def _plain(value: Any) -> Any:
    if not isinstance(value, Part):
        return list(value) if isinstance(value, tuple) else value
    kind = next(name for name, part in KINDS.items() if type(value) is part)
    stored = [each for each in fields(value) if not _left_out(each, getattr(value, each.name))]
    return {"kind": kind} | {each.name: _plain(getattr(value, each.name)) for each in stored}


def _left_out(each: Field[Any], value: Any) -> bool:
    return "later" in each.metadata and bool(value == each.default)


def _named(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", each) for inner, each in _named(value))
        else:
            yield name, value


Made = TypeVar("Made", bound=Part)


def _read(cls: type[Made], values: Mapping[str, Any]) -> Made:
    known = {each.name for each in fields(cls)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"unknown field {unknown[0]!r} in {cls.__name__}")
    later = {each.name for each in fields(cls) if "later" in each.metadata}
    if missing := sorted(known - later - set(values)):
        raise ValueError(f"field {missing[0]!r} is missing in {cls.__name__}")
    return cls(**{name: _read_value(value) for name, value in values.items()})


def _read_value(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return tuple(value) if isinstance(value, list) else value
    if (part := KINDS.get(str(value.get("kind")))) is None:
        raise ValueError(f"kind {value.get('kind')!r} is not known: this version knows {', '.join(KINDS)}")
    return _read(part, {name: inner for name, inner in value.items() if name != "kind"})

"""Specs of heads, as data that needs no PyTorch: the service's own process reads them and never loads it.

`build` makes the module, which is in `head` or `adapters`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from speech_ssl.model.config import Activation, EncoderConfig

if TYPE_CHECKING:
    from speech_ssl.model.heads.head import CTCHead, EventsHead

AdapterKind = Literal["convolutions", "blocks"]
STRIDE = 2
"""Stride of each layer of an adapter."""
LARGEST, DEEPEST = 2**20, 8
EventPooling = Literal["mean", "max", "attentive"]
Mixing = Literal["normalized", "plain", "last"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterSpec:
    """kind: layers of "convolutions" alone, or Transformer "blocks" (w2v-BERT 2.0). width: of its frames; if
    it differs from the encoder's, they are projected first. eps: of the norms. The other fields are for
    "blocks" alone. ffn_first: a half-step feed-forward with ReLU comes first, as in a Conformer."""

    kind: AdapterKind
    layers: int
    width: int
    eps: float = 1e-5
    heads: int = 0
    ffn_width: int = 0
    activation: Activation = "relu"
    ffn_first: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(AdapterKind):
            raise ValueError(f"the adapter's kind must be 'convolutions' or 'blocks', not {self.kind!r}")
        blocks = int(self.kind == "blocks")
        for name, least in (("layers", 1), ("width", 1), ("heads", blocks), ("ffn_width", blocks)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= LARGEST:
                raise ValueError(f"the adapter's {name} must be a whole number from {least}, not {value!r}")
        if self.layers > DEEPEST:
            raise ValueError(f"an adapter can have {DEEPEST} layers at most, not {self.layers}")
        if not blocks and (self.heads or self.ffn_width or self.ffn_first):
            raise ValueError("an adapter of convolutions has no heads, ffn_width or ffn_first")
        if blocks and self.width % self.heads:
            raise ValueError(f"the adapter's width {self.width} must be a multiple of its heads {self.heads}")
        if not isinstance(self.eps, float) or not 0 < self.eps < 1:
            raise ValueError(f"the adapter's eps must be above 0 and below 1, not {self.eps!r}")
        if self.activation not in get_args(Activation):
            known = ", ".join(get_args(Activation))
            raise ValueError(f"the adapter's activation must be one of {known}, not {self.activation!r}")
        if not isinstance(self.ffn_first, bool):
            raise ValueError(f"the adapter's ffn_first must be true or false, not {self.ffn_first!r}")

    @property
    def stride(self) -> int:
        """Frames of the encoder per frame of the adapter."""
        return int(STRIDE**self.layers)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AdapterSpec:
        """The inverse of `dataclasses.asdict`. Raises ValueError naming a missing or unknown field: ignoring
        one would change the numbers."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(map(str, set(values) - known)):
            raise ValueError(f"field {unknown[0]!r} of the adapter is not known")
        if missing := [name for name in ("kind", "layers", "width") if name not in values]:
            raise ValueError(f"field {missing[0]!r} of the adapter is missing")
        return cls(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class CTCSpec:
    """vocabulary: one symbol per unit; the first is the blank, the others as in `text.Vocabulary`. adapter:
    the layers before the units, which make fewer frames. spaced: units are phones, with a space between them,
    as in `text.Vocabulary`. A stored spec may lack the last two."""

    vocabulary: tuple[str, ...]
    adapter: AdapterSpec | None = None
    spaced: bool = False

    def __post_init__(self) -> None:
        _check_names("vocabulary", self.vocabulary, least=2)
        if not isinstance(self.adapter, AdapterSpec | None):
            raise ValueError(f"adapter must be an object with its fields, not {self.adapter!r}")
        if not isinstance(self.spaced, bool):
            raise ValueError(f"spaced must be true or false, not {self.spaced!r}")

    @property
    def stride(self) -> int:
        """The outputs of the first of this many frames count; the others repeat them."""
        return 1 if self.adapter is None else self.adapter.stride

    def build(self, encoder: EncoderConfig, dropout: float = 0.0) -> CTCHead:
        from speech_ssl.model.heads.head import CTCHead

        return CTCHead(encoder.width, len(self.vocabulary), dropout, self.adapter)


@dataclass(frozen=True, kw_only=True, slots=True)
class EventsSpec:
    """labels: the possible labels. exclusive: exactly one in a clip (softmax), else any number (sigmoid).
    hidden: width of the layer before the outputs; 0: the head is linear. mixing: a sum of "normalized" or
    "plain" hidden states, or the "last" one alone. gelu: whether a GELU follows the hidden layer. timed:
    trained on targets for each frame; False: on labels of clips alone; None: unknown. A stored spec may lack
    the last three."""

    labels: tuple[str, ...]
    exclusive: bool = True
    pooling: EventPooling = "attentive"
    hidden: int = 256
    mixing: Mixing = "normalized"
    gelu: bool = True
    timed: bool | None = None

    def __post_init__(self) -> None:
        _check_names("labels", self.labels, least=2 if self.exclusive else 1)
        if self.pooling not in get_args(EventPooling):
            raise ValueError(f"pooling must be 'mean', 'max' or 'attentive', not {self.pooling!r}")
        if self.mixing not in get_args(Mixing):
            raise ValueError(f"mixing must be 'normalized', 'plain' or 'last', not {self.mixing!r}")
        if not isinstance(self.gelu, bool):
            raise ValueError(f"gelu must be true or false, not {self.gelu!r}")
        if not isinstance(self.timed, bool | None):
            raise ValueError(f"timed must be true or false, not {self.timed!r}")
        if not isinstance(self.exclusive, bool):
            raise ValueError(f"exclusive must be true or false, not {self.exclusive!r}")
        if not isinstance(self.hidden, int) or self.hidden < 0:
            raise ValueError(f"hidden must be at least 0, not {self.hidden!r}")

    @property
    def stride(self) -> int:
        return 1

    @property
    def frames_decide(self) -> bool:
        """Whether frame scores alone decide where a label is heard; if not, its clip must have it too. Labels
        of clips leave most frames untrained: many of them score high in clips without the label."""
        if self.exclusive:
            return False
        return self.pooling != "attentive" if self.timed is None else self.timed

    def build(self, encoder: EncoderConfig, dropout: float = 0.0) -> EventsHead:
        from speech_ssl.model.heads.head import EventsHead

        return EventsHead(encoder, self, dropout)


HeadSpec: TypeAlias = CTCSpec | EventsSpec
OLD_GELU = "bent"
"""The name of `gelu` in artifacts of format version 1."""
_LATER = {"mixing", "gelu", "timed", "adapter", "spaced"}
KINDS: dict[str, type[CTCSpec] | type[EventsSpec]] = {"ctc": CTCSpec, "events": EventsSpec}


def spec_to_dict(spec: HeadSpec) -> dict[str, Any]:
    kind = next(name for name, cls in KINDS.items() if isinstance(spec, cls))
    values = {k: v for k, v in asdict(spec).items() if v is not None and (k, v) != ("spaced", False)}
    return {"kind": kind} | {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def spec_from_dict(values: Mapping[str, Any]) -> HeadSpec:
    """The inverse of `spec_to_dict`; ignores other fields. Raises ValueError naming a missing or unknown
    one."""
    cls = KINDS.get(str(values.get("kind")))
    if cls is None:
        raise ValueError(f"kind {values.get('kind')!r} is not known: this version knows {', '.join(KINDS)}")
    if OLD_GELU in values:
        values = {"gelu": values[OLD_GELU], **values}
    names = [field.name for field in fields(cls) if field.name in values or field.name not in _LATER]
    if missing := [name for name in names if name not in values]:
        raise ValueError(f"field {missing[0]!r} is missing")
    given: dict[str, Any] = {name: values[name] for name in names}
    fitted: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    if isinstance(adapter := fitted.get("adapter"), Mapping):
        fitted["adapter"] = AdapterSpec.from_dict(adapter)
    return cls(**fitted)


def _check_names(field: str, names: Sequence[object], *, least: int) -> None:
    if not isinstance(names, tuple) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{field} must be a list of texts")
    if len(names) < least or len(set(names)) < len(names):
        raise ValueError(f"{field} needs at least {least} entries, each once")

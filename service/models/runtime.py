"""What the service needs of a model, wherever that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from service.settings import Precision
from speech_ssl import inference
from speech_ssl.inference.answers import Choice, Classification, TextDecoder, Transcript
from speech_ssl.inference.card import HeadTask
from speech_ssl.inference.chunking import Window
from speech_ssl.inference.levels import Meter
from speech_ssl.inference.window_output import WindowOutput
from speech_ssl.inference.windows import ClipOutput
from speech_ssl.types import Levels, Waveform


class ModelRuntime(Protocol):
    """`run_windows` is called in one thread, the others in any."""

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def window_s(self) -> float: ...
    @property
    def batch_s(self) -> float: ...

    def plan(self, num_samples: int) -> list[Window]:
        """Raises AudioError `too_short`."""

    def plan_of(self, wave: Waveform) -> list[Window]:
        """The same with the clip's level, which takes a while for a long one."""

    @property
    def meter(self) -> Meter | None:
        """What the model normalises clips by."""

    def run_windows(
        self,
        waves: Sequence[Waveform],
        layers: Sequence[int | None],
        heads: Sequence[str] = (),
        levels: Levels | None = None,
    ) -> list[WindowOutput]:
        """The frames (T, D) of each wave, from its own layer, and the outputs of heads. levels: of the clips
        that waves are windows of."""

    def check_layer(self, layer: int) -> int:
        """0..num_layers, from that or from a negative number. Raises ValueError."""

    @property
    def heads(self) -> Mapping[str, object]: ...

    def check_head(self, task: HeadTask, name: str | None = None) -> str:
        """The head for a task. Raises ValueError."""

    def transcript(self, whole: ClipOutput, head: str, decoder: TextDecoder | None = None) -> Transcript: ...
    def settled(self, whole: ClipOutput, head: str) -> int: ...
    def classification(self, whole: ClipOutput, head: str, choice: Choice) -> Classification: ...


@runtime_checkable
class Elsewhere(Protocol):
    """A runtime whose model is in another process, from `start` to `close`."""

    def start(self, changed: Callable[[], object]) -> None:
        """Load it; only then the rest of the runtime is there. changed: told when `running` may be another.
        Raises what loading raises, and OSError if it is closed meanwhile."""

    @property
    def running(self) -> bool: ...
    @property
    def error(self) -> Exception | None:
        """Why no process could take the place of the last one yet."""

    @property
    def stale(self) -> bool:
        """What it was loaded from is another model now."""

    def close(self) -> None:
        """At any time, in any thread: ends what runs and what is being loaded."""


Loader: TypeAlias = Callable[[], ModelRuntime]


def load_model(source: str, device: str, precision: Precision) -> inference.Runtime:
    """`speech_ssl.load`, in the process that computes: the service's own never imports PyTorch."""
    return inference.load(source, device, precision)

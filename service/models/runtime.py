"""What the service needs of a model, wherever that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from service.settings import Precision
from speech_ssl import inference
from speech_ssl.inference.card import ModelCard
from speech_ssl.inference.outputs import Layers, WindowOutput
from speech_ssl.types import Levels, Waveform


class ModelRuntime(Protocol):
    """`run_windows` is called in one thread at a time."""

    def card(self) -> ModelCard: ...

    def run_windows(
        self,
        waves: Sequence[Waveform],
        layers: Sequence[Layers],
        heads: Sequence[str] = (),
        levels: Levels | None = None,
    ) -> list[WindowOutput]:
        """The frames (T, D) of each wave, from its own layer, and the outputs of heads. levels: of the clips
        that waves are windows of."""


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

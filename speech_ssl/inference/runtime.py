"""The runtime: files or waves in, features and answers out. Other packages know a model only through it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from speech_ssl import audio
from speech_ssl.audio import Warn
from speech_ssl.checkpoints.artifact import Artifact, ArtifactError, load_artifact
from speech_ssl.checkpoints.opening import open_checkpoint
from speech_ssl.inference import answers
from speech_ssl.inference.answering import Answering
from speech_ssl.inference.answers import Analysis, Choice, Classification, TextDecoder, Transcript
from speech_ssl.inference.arithmetic import Precision
from speech_ssl.inference.card import TASKS, ModelCard, Task
from speech_ssl.inference.chunking import CONTEXT_S, WINDOW_S, Chunker, Window
from speech_ssl.inference.clips import Clip, checked_clips, naming
from speech_ssl.inference.engines.torch import TorchEngine, checked_device
from speech_ssl.inference.outputs import ClipOutput, Layers, WindowOutput
from speech_ssl.inference.units import WHOLE, dense
from speech_ssl.inference.windows import BATCH_S, LOOKAHEAD, WindowedPass
from speech_ssl.model.encoder import Encoder
from speech_ssl.text import Vocabulary
from speech_ssl.types import SAMPLE_RATE, AudioWarning, Features, Levels, Pooling, Waveform

if TYPE_CHECKING:
    from speech_ssl.inference.ctc.beam import BeamSearch


class Runtime(ModelCard):
    """A model, ready to encode. Synchronous, for one thread at a time.

    Clips longer than `window_s` are computed in overlapping windows, normalised as the whole clip is (for
    this, files of more than two minutes are decoded twice). Frames next to a cut come from the window that
    sees more context around them. The result differs from one pass over the whole clip, where each frame
    attends to all others: with the packaged model, on readings of 1.4 to 2.1 minutes, by 4 % (relative L2),
    and in the mean over time by 2 % (benchmarks/stitching.py).

    precision: the one in use; for "auto" the one that was selected, see `arithmetic.fitted`.

    Each call runs its own pass: for several answers about the same clips, call `analyze` once.
    """

    sample_rate = SAMPLE_RATE

    def __init__(
        self,
        artifact: Artifact,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        window_s: float = WINDOW_S,
        context_s: float = CONTEXT_S,
    ) -> None:
        encoder = artifact.encoder
        modules = {name: head.module for name, head in artifact.heads.items()}
        self._engine = TorchEngine(encoder, device, precision, modules)
        self.device, self.precision = self._engine.device, self._engine.precision
        chunker = Chunker.of(
            encoder,
            window_s=window_s,
            context_s=context_s,
            multiple=max((head.spec.stride for head in artifact.heads.values()), default=1),
        )
        super().__init__(
            name=artifact.name,
            sha256=artifact.sha256,
            width=encoder.config.width,
            num_layers=encoder.config.depth,
            batch_s=max(BATCH_S[self.device.type], chunker.window_s),
            chunker=chunker,
            heads={name: head.spec for name, head in artifact.heads.items()},
            heads_left_out=artifact.heads_left_out,
            ngrams={name: head.ngram for name, head in artifact.heads.items() if head.ngram is not None},
        )
        self.answering = Answering(self)

    def card(self) -> ModelCard:
        """The model's properties, for processes that do not hold the model."""
        return ModelCard(**{field.name: getattr(self, field.name) for field in fields(ModelCard)})

    @staticmethod
    def use_threads(count: int) -> None:
        """Set the number of threads for later passes, of all models in this process."""
        torch.set_num_threads(count)

    def encode_windows(
        self, waves: Sequence[Waveform], layers: Sequence[int], levels: Levels | None = None
    ) -> list[NDArray[np.float32]]:
        """One padded forward pass: all frames (T, D) of each wave, each at its own layer. levels: for each
        wave the level of its window; None: waves are clips."""
        if not waves:
            return []
        for wave in waves:
            self.plan(len(wave))
        return [passed.frames for passed in self.run_windows(waves, layers, levels=levels)]

    def run_windows(
        self,
        waves: Sequence[Waveform],
        layers: Sequence[Layers],
        heads: Sequence[str] = (),
        levels: Levels | None = None,
        units: Sequence[int] | None = None,
    ) -> list[WindowOutput]:
        """`encode_windows`, with the outputs of heads from the same pass. layers: None: no frames for that
        wave; several: (T, L, D). units: only these units of heads that transcribe; None: all, or in each
        frame the most probable ones of a vocabulary of more than 256."""
        chosen = [self._checked(layer) for layer in layers]
        return self._engine.run(waves, chosen, heads, levels, units)

    def _checked(self, layer: Layers) -> Layers:
        if isinstance(layer, tuple):
            return tuple(map(self.check_layer, layer))
        return None if layer is None else self.check_layer(layer)

    def encode(
        self, waves: Sequence[Clip], *, layer: int = -1, layers: Sequence[int] | None = None
    ) -> list[Features]:
        """Features of each clip, in order: `frames` (T, D).

        layers: several from one pass, instead of `layer`: `features.layers[6]` (T, D) is layer 6,
        `features.pooled("mean", layer=6)` its mean (D,). Negative numbers are keys of their own.

        Raises AudioError (a ValueError) that names the clip, ValueError for a layer that does not exist,
        OSError for a file that cannot be opened.
        """
        asked = [layer] if layers is None else list(layers)
        if not asked:
            raise ValueError("no layer was asked for: give some, such as layers=[0, -1]")
        chosen = tuple(map(self.check_layer, asked))
        wholes = self._wholes(waves, chosen[0] if len(chosen) == 1 else chosen)
        return [self._features(whole, asked) for whole in wholes]

    def transcribe(
        self, waves: Sequence[Clip], *, head: str | None = None, decoder: TextDecoder | None = None
    ) -> list[Transcript]:
        """The text of each clip, with the times of its words.

        head: which one, if the model has several that transcribe. decoder: from `beam_search`, or any other.
        Without it, the head's own language model is used; if it has none, or the extra `lm` is not installed,
        the best path. Raises as `encode`, and ValueError if the model has no such head.
        """
        name = self.check_head("transcription", head)
        wholes = self._wholes(waves, None, [name])
        return [self.answering.transcript(whole, name, decoder) for whole in wholes]

    def align(
        self, waves: Sequence[Clip], texts: Sequence[str], *, head: str | None = None
    ) -> list[Transcript]:
        """The times of the words of a known text in each clip. Raises as `transcribe`, and ValueError for
        texts that do not fit into their clips or have characters that the model does not know."""
        name = self.check_head("transcription", head)
        spec = self.answering.ctc(name)
        units = None
        if len(spec.vocabulary) > WHOLE:
            spec, units = answers.spelled(spec, texts)
        said = []
        for whole, text in zip(self._wholes(waves, None, [name], units), texts, strict=True):
            outputs, clock = dense(whole.passed.heads[name]), self.answering.clock(whole)
            aligned = answers.align_text(outputs, text, spec, clock, whole.passed.loudness)
            said.append(replace(aligned, warnings=whole.warnings))
        return said

    def beam_search(self, *, head: str | None = None, **options: Any) -> BeamSearch:
        """A decoder for `transcribe`, with the vocabulary of a head. options: those of `BeamSearch`: `lm`,
        `lexicon`, `beam` and weights. lm: by default the one that came with the head; None: none."""
        from speech_ssl.inference.ctc.beam import BeamSearch

        name = self.check_head("transcription", head)
        spec = self.answering.ctc(name)
        return BeamSearch(
            Vocabulary(spec.vocabulary, spec.spaced), **{"lm": self.ngrams.get(name), **options}
        )

    def classify(
        self,
        waves: Sequence[Clip],
        *,
        head: str | None = None,
        top_k: int | None = None,
        threshold: float = 0.5,
    ) -> list[Classification]:
        """The labels of each clip, the most probable first, at most `top_k` of them; and its events, where a
        label's frames reach `threshold`. If the head was trained on labels of clips alone, only for labels
        whose clip score reaches it too. Raises as `transcribe`."""
        name = self.check_head("classification", head)
        choice = Choice(top_k, threshold)
        wholes = self._wholes(waves, None, [name])
        return [self.answering.classification(whole, name, choice) for whole in wholes]

    def frame_scores(
        self, waves: Sequence[Clip], *, head: str | None = None
    ) -> list[tuple[NDArray[np.float32], NDArray[np.float64]]]:
        """For each clip the probabilities of labels in its frames (T, K), and the edges between frames in
        seconds (T + 1,), including both ends. Raises as `transcribe`."""
        return [(scores_TK, edges_s) for _, scores_TK, edges_s in self.classify_frames(waves, head=head)]

    def classify_frames(
        self, waves: Sequence[Clip], *, head: str | None = None
    ) -> list[tuple[Classification, NDArray[np.float32], NDArray[np.float64]]]:
        """For each clip what `classify` and `frame_scores` return, from one pass. Raises as `transcribe`."""
        name, say = self.check_head("classification", head), self.answering
        return [
            (say.classification(whole, name, Choice()), *say.frame_scores(whole, name))
            for whole in self._wholes(waves, None, [name])
        ]

    def analyze(  # noqa: PLR0913 - what each task may be asked
        self,
        waves: Sequence[Clip],
        *,
        tasks: Sequence[Task] = TASKS,
        layer: int = -1,
        speech_head: str | None = None,
        sounds_head: str | None = None,
        decoder: TextDecoder | None = None,
        top_k: int | None = None,
        threshold: float = 0.5,
    ) -> list[Analysis]:
        """The answers to several tasks, from one pass. speech_head, sounds_head: which ones, if the model has
        several that transcribe or classify. Raises as `encode` and `transcribe`."""
        wanted = self.choose(
            tasks,
            layer=layer,
            speech_head=speech_head,
            sounds_head=sounds_head,
            choice=Choice(top_k, threshold),
        )
        return [
            Analysis(
                None if wanted.layer is None else self._features(whole, [layer]),
                *self.answering.heard(whole, wanted, decoder),
            )
            for whole in self._wholes(waves, wanted.layer, wanted.heads)
        ]

    def _wholes(
        self,
        waves: Sequence[Clip],
        layer: Layers,
        heads: Sequence[str] = (),
        units: Sequence[int] | None = None,
    ) -> list[ClipOutput]:
        """Each clip's frames at a layer (None: no frames) and outputs, stitched from its windows."""
        clips = checked_clips(waves)
        for index, clip in enumerate(clips):
            if not isinstance(clip, str | Path):
                with naming(f"clip {index}"):
                    self.plan(len(clip))
        told: list[list[AudioWarning]] = [[] for _ in clips]
        windows = [self._windows(clip, warnings.append) for clip, warnings in zip(clips, told, strict=True)]
        stitched = self._pass(layer, heads, units).stitched(windows)
        return [one.clip(warnings) for one, warnings in zip(stitched, told, strict=True)]

    def _pass(
        self,
        layer: Layers,
        heads: Sequence[str] = (),
        units: Sequence[int] | None = None,
        lookahead: int = LOOKAHEAD,
    ) -> WindowedPass:
        return WindowedPass(self.run_windows, layer, heads, units, self.batch_s, lookahead * self.batch_s)

    def _features(self, whole: ClipOutput, asked: Sequence[int]) -> Features:
        x = whole.passed.frames
        frames = [x] if x.ndim == 2 else [np.ascontiguousarray(x[:, number]) for number in range(len(asked))]
        layers = dict(zip(asked, frames, strict=True))
        return Features(frames[-1], whole.duration_s, self.hop / SAMPLE_RATE, whole.warnings, layers)

    def stream(
        self, source: Clip, *, layer: int = -1, warn: Warn | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """The frames of one clip, window by window; memory does not grow with its length. `warn` is called
        with problems of a file's audio."""
        windows = self._windows(checked_clips([source])[0], warn)
        for part in self._pass(self.check_layer(layer), lookahead=1).in_order(windows):
            yield part.frames

    def pooled(
        self, source: Clip, how: Pooling = "mean", *, layer: int = -1, warn: Warn | None = None
    ) -> NDArray[np.float32]:
        """One vector (D,) for a clip; memory does not grow with its length. warn: as in `stream`."""
        windows = self._windows(checked_clips([source])[0], warn)
        (whole,) = self._pass(self.check_layer(layer), lookahead=1).stitched([windows], how)
        return whole.pooled

    def _windows(self, clip: Clip, warn: Warn | None) -> Iterator[tuple[Window, Waveform]]:
        if isinstance(clip, str | Path):
            with naming(str(clip)):
                yield from self.chunker.cut_file(audio.stream(clip, warn=warn), partial(audio.stream, clip))
        else:
            yield from self.chunker.cut_wave(clip)


def load(
    model: str | Path = "default",
    device: str = "auto",
    precision: Precision = "auto",
    *,
    language_model: bool = True,
) -> Runtime:
    """A runtime for an artifact's folder, a folder of transformers, a model of the Hugging Face hub by its id
    (OWNER/NAME, extra `hub`), or the packaged model, "default". device: "cpu", "cuda" or "cuda:N"; "auto":
    the first GPU if there is one. language_model: transcribe with the one that comes with the model, if there
    is one.

    Raises ValueError (ArtifactError if the model is at fault).
    """
    artifact = named_artifact(model, language_model=language_model)
    return Runtime(artifact, device=device, precision=precision)


def load_encoder(
    model: str | Path = "default", device: str = "auto", dtype: torch.dtype = torch.float32
) -> Encoder:
    """The encoder alone, as a torch module to build on: `encoder(wave_BS, lengths_B)` gives frames (B, T, D).

    In eval mode (no dropout). Its parameters are those that were trained, require gradients, and have the
    given dtype. model, device and errors: as in `load`. See docs/python.md.
    """
    encoder = named_artifact(model).encoder.eval().requires_grad_(True)
    return encoder.to(checked_device(device), dtype)


def named_artifact(model: str | Path, *, language_model: bool = False) -> Artifact:
    """The artifact from which `load` makes a runtime. Raises ArtifactError."""
    if model != "default":
        return open_checkpoint(model, language_model=language_model)
    folder = Path(str(files("speech_ssl") / "assets" / "default"))
    if not folder.is_dir():
        raise ArtifactError("this installation has no default model: name the folder of an artifact")
    return load_artifact(folder)

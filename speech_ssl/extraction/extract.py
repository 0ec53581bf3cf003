"""Batch extraction: a manifest in, Parquet out, on one machine; shards let any scheduler use many.

Decoder processes run ahead of the model; windows of similar length share a forward pass; finished rows
are committed every minute. Killed at any moment and run again, it does what is missing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from speech_ssl.data.manifest import Utterance, read_manifest
from speech_ssl.data.source import cut_short
from speech_ssl.extraction.decoding import Decoded, Decoders, DecodeTask, Event, Failed
from speech_ssl.extraction.parquet import Shard, Store
from speech_ssl.extraction.progress import ProgressLine
from speech_ssl.extraction.records import Record
from speech_ssl.extraction.rows import Row, Settings, Stamp
from speech_ssl.inference.outputs import PoolingOrNone, Stitcher, WindowOutput
from speech_ssl.inference.runtime import Runtime
from speech_ssl.inference.windows import LOOKAHEAD, Piece, WindowedPass
from speech_ssl.types import SAMPLE_RATE, AudioWarning

TEXT_COLUMNS = ("text", "speaker", "label")
COMMIT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Summary:
    """What one run did. done_before: rows of this shard that were there already. audio_s: of `clips`.
    warned: those of `clips` of which warnings.jsonl says something."""

    clips: int
    failures: int
    done_before: int
    audio_s: float
    wall_s: float
    warned: int = 0


@dataclass(frozen=True, slots=True)
class Extraction:
    """What to compute, and how.

    pooling: one vector a clip ("mean", "max") or all of its frames ("none"). workers: decoder
    processes, by default what the cores allow. commit_s: seconds of work that a crash may cost.
    """

    runtime: Runtime
    layer: int = -1
    pooling: PoolingOrNone = "mean"
    shard: Shard = Shard()
    workers: int | None = None
    commit_s: float = 60.0

    def __post_init__(self) -> None:
        self.runtime.check_layer(self.layer)
        if self.pooling not in ("mean", "max", "none"):
            raise ValueError(f"pooling must be 'mean', 'max' or 'none', not {self.pooling!r}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"at least one decoder process is needed, not {self.workers}")

    @property
    def settings(self) -> Settings:
        runtime = self.runtime
        return Settings(
            model=runtime.name,
            artifact_sha256=runtime.sha256,
            layer=runtime.check_layer(self.layer),
            pooling=self.pooling,
            precision=runtime.precision,
            width=runtime.width,
            hop=runtime.hop,
            window_frames=runtime.chunker.window,
            context_frames=runtime.chunker.context,
        )

    def run(self, manifest: str | Path, folder: str | Path) -> Summary:
        """Extract what the folder does not have yet. A clip that fails is noted and stops nothing.

        Raises ValueError for a manifest that cannot be read, or a folder of something else: other
        settings, or rows of other files under the same names.
        """
        utterances = read_manifest(manifest)
        columns = [name for name in TEXT_COLUMNS if any(getattr(u, name) for u in utterances)]
        mine = utterances[self.shard.index :: self.shard.count]
        ids = {utterance.id for utterance in mine}
        store = Store(Path(folder), self.settings, self.shard, ids=ids, columns=columns)
        try:
            _check_same_files(mine, store)
            news = _brought_up_to_date(mine, store, columns)
            done_before = len(store.done)
            # The longest first: batches of equal length, and no long file alone at the end.
            todo = sorted((u for u in mine if u.id not in store.done), key=lambda u: -u.duration_s)
            progress = ProgressLine("extract", sum(u.duration_s for u in todo))
            for line in news:
                progress.say(line)
            assembly = _Assembly(todo, self.pooling, store, progress)
            try:
                self._extract(todo, store, assembly)
            finally:
                progress.close()
                store.commit()
        finally:
            store.close()
        return Summary(
            clips=progress.clips,
            failures=progress.failures,
            done_before=done_before,
            audio_s=assembly.audio_s,
            wall_s=progress.elapsed_s,
            warned=assembly.warned,
        )

    def _extract(self, todo: list[Utterance], store: Store, assembly: _Assembly) -> None:
        runtime, layer = self.runtime, self.runtime.check_layer(self.layer)
        lookahead_s = LOOKAHEAD * runtime.batch_s
        committed = time.monotonic()
        workers = min(self.workers or _default_workers(runtime), max(len(todo), 1))
        jobs = assembly.jobs()
        with Decoders(jobs, runtime.chunker, workers=workers, ahead_s=lookahead_s) as events:
            windowed = WindowedPass(
                runtime.run_windows, layer, batch_s=runtime.batch_s, lookahead_s=lookahead_s
            )
            for piece, passed in windowed.over(assembly.pieces(events)):
                assembly.add(piece, passed)
                if store.pending_bytes >= COMMIT_BYTES or time.monotonic() - committed >= self.commit_s:
                    store.commit()
                    committed = time.monotonic()


@dataclass(slots=True)
class _Clip:
    """A clip that is being put together. `end` comes when its last window has been decoded."""

    stitcher: Stitcher
    end: Decoded | None = None


class _Assembly:
    """Puts the windows of clips together into rows, in whatever order they come."""

    def __init__(
        self, utterances: list[Utterance], pooling: PoolingOrNone, store: Store, progress: ProgressLine
    ) -> None:
        self._utterances, self._pooling = utterances, pooling
        self._store, self._progress = store, progress
        self._clips: dict[int, _Clip] = {}
        self._stamps: dict[int, Stamp | None] = {}
        self.audio_s = 0.0  # of finished clips
        self.warned = 0

    def jobs(self) -> Iterator[DecodeTask]:
        for number, utterance in enumerate(self._utterances):
            self._stamps[number] = Stamp.of(utterance.path)
            yield DecodeTask(number, str(utterance.path), utterance.start or 0.0, utterance.end)

    def pieces(self, events: Iterable[Event]) -> Iterator[Piece]:
        """Pass the windows on; take note of clips that end or fail."""
        for event in events:
            if isinstance(event, Piece):
                if event.index == 0:
                    self._clips[event.clip] = _Clip(Stitcher(self._pooling))
                yield event
            elif isinstance(event, Failed):
                self._fail(event)
            else:
                self._clips[event.clip].end = event
                self._finish(event.clip)

    def add(self, piece: Piece, passed: WindowOutput) -> None:
        """The model's output for a window."""
        clip = self._clips.get(piece.clip)
        if clip is None:  # it failed further on
            return
        clip.stitcher.add(piece.window, passed)
        self._progress.advance(self._audio_s(piece.window.keep))
        self._finish(piece.clip)

    def _finish(self, number: int) -> None:
        clip, utterance = self._clips[number], self._utterances[number]
        if clip.end is None or clip.stitcher.windows < clip.end.windows:
            return
        del self._clips[number]
        duration_s = clip.end.samples / SAMPLE_RATE
        row = Row(
            id=utterance.id,
            path=_path(utterance),
            duration_s=duration_s,
            num_frames=clip.stitcher.frames,
            values=clip.stitcher.vectors,
            texts=_texts(utterance, TEXT_COLUMNS),
            stamp=self._stamps.pop(number),
        )
        warnings = [
            Record(row.id, row.path, _text(warning.message), warning.code)
            for warning in _warnings(utterance, duration_s, clip.end.warnings)
        ]
        self._store.add(row, warnings)
        self.audio_s += duration_s
        self.warned += bool(warnings)
        self._progress.advance(0, clips=1)

    def _fail(self, event: Failed) -> None:
        clip, utterance = self._clips.pop(event.clip, None), self._utterances[event.clip]
        self._stamps.pop(event.clip)
        self._store.fail(Record(utterance.id, _path(utterance), _text(event.reason), event.code))
        counted_s = self._audio_s(clip.stitcher.frames) if clip else 0.0
        self._progress.advance(max(utterance.duration_s - counted_s, 0), failures=1)

    def _audio_s(self, frames: int) -> float:
        return frames * self._store.settings.hop / SAMPLE_RATE


def _check_same_files(utterances: Iterable[Utterance], store: Store) -> None:
    """A row is found again by its id, which another manifest may give to another file."""
    for utterance in utterances:
        row = store.done.get(utterance.id)
        if row is not None and row.path != _path(utterance):
            raise ValueError(
                f"{store.folder} holds a row {utterance.id!r} of {row.path}, not of {_path(utterance)}: "
                "choose another folder for another data set"
            )


def _brought_up_to_date(utterances: Iterable[Utterance], store: Store, columns: Sequence[str]) -> list[str]:
    """Take out the rows of files that have changed, and give others the texts that the manifest has now.
    Returns what there is to say of it. The row of a file that is gone stays."""
    stamps: dict[Path, Stamp | None] = {}
    changed: set[str] = set()
    texts: dict[str, dict[str, str]] = {}
    unknown = 0
    for utterance in utterances:
        row = store.done.get(utterance.id)
        if row is None:
            continue
        if utterance.path not in stamps:
            stamps[utterance.path] = Stamp.of(utterance.path)
        now = stamps[utterance.path]
        said = _texts(utterance, columns)
        if now and row.stamp and now != row.stamp:
            changed.add(utterance.id)
        elif tuple(said.values()) != row.texts:
            texts[utterance.id] = said
        unknown += row.stamp is None
    if changed or texts:
        store.mend(drop=changed, texts=texts)
    counted = {
        "rows are computed again: their files have changed": len(changed),
        "rows take over texts of the manifest that have changed": len(texts),
        "rows are of a version that did not note size and time of files: these may have changed": unknown,
    }
    return [f"{count} {what}" for what, count in counted.items() if count]


def _warnings(utterance: Utterance, duration_s: float, told: Sequence[AudioWarning]) -> list[AudioWarning]:
    """What the decoder told, and what the manifest lets us see."""
    short = cut_short(utterance, duration_s)
    known = any(warning.code == "truncated" for warning in told)
    return [*told, short] if short and not known else list(told)


def _texts(utterance: Utterance, columns: Sequence[str]) -> dict[str, str]:
    return {name: getattr(utterance, name) for name in columns}


def _path(utterance: Utterance) -> str:
    return _text(os.path.abspath(utterance.path))  # noqa: PTH100 - no look at the disk, for each of millions


def _text(path: str) -> str:
    """Bytes of a file's name that are no UTF-8 as backslashes: Parquet and JSON hold text."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _default_workers(runtime: Runtime) -> int:
    """On the CPU the model needs the cores; a decoder is some fifty times faster than it."""
    cores = len(os.sched_getaffinity(0))  # that this process may use, of a machine or a container
    return max(1, cores // 8) if runtime.device.type == "cpu" else max(1, min(cores - 1, 16))

"""What a run reads: manifests, batches to learn from, and whole clips to measure the finished model on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from speech_ssl import audio
from speech_ssl.checkpoints.artifact import Artifact
from speech_ssl.data.batching import DataConfig
from speech_ssl.data.loader import FILES, Loader, LoaderState, evaluation
from speech_ssl.data.manifest import Utterance, read_manifest
from speech_ssl.data.reading import Targets
from speech_ssl.data.source import Source, cut_short
from speech_ssl.inference.clips import Clip
from speech_ssl.inference.runtime import Runtime
from speech_ssl.runs.events import RunBegun
from speech_ssl.runs.notes import Notes
from speech_ssl.training.loop import Batches
from speech_ssl.training.ranks import Ranks
from speech_ssl.types import SAMPLE_RATE, Batch


def read_all(manifests: Sequence[Path | str]) -> list[Utterance]:
    return [utterance for path in manifests for utterance in read_manifest(Path(path))]


def begun(
    name: str, loader: Loader, training: Sequence[Utterance], held_out: Sequence[Utterance]
) -> RunBegun:
    hours = sum(u.duration_s for u in training) / 3600
    return RunBegun(name, len(training), hours, len(held_out), loader.too_short)


def fingerprint(
    utterances: Sequence[Utterance],
    init: Artifact | None,
    taught: Callable[[Utterance], Sequence[object]] = lambda _: (),
) -> dict[str, Any]:
    """What decides a run beside its numbers: the manifest, what of a row is taught, and the weights it
    starts from."""
    digest = hashlib.sha256()
    for utterance in utterances:
        fields = (
            utterance.id,
            utterance.duration_s,
            utterance.split,
            *taught(utterance),
        )
        digest.update(("\t".join(map(str, fields)) + "\n").encode("utf-8", "surrogateescape"))
    start = "" if init is None else init.sha256
    return {"utterances": len(utterances), "sha256": digest.hexdigest(), "init": start}


def loader_of(
    clips: Sequence[Utterance],
    data: DataConfig,
    seed: int,
    notes: Notes,
    source: Source,
    targets: Targets | None = None,
) -> Loader:
    """A loader that writes down what it leaves out, and what is wrong with what it uses."""
    on_failure, on_warning = notes
    return Loader(
        clips,
        data,
        seed=seed,
        source=source,
        on_failure=on_failure,
        on_warning=on_warning,
        targets=targets,
    )


def batches_of(loader: Loader, ranks: Ranks) -> Batches:
    """The loader in the form that the training loop reads."""

    def iterate(saved: dict[str, Any] | None) -> Generator[tuple[Batch, dict[str, Any]], None, None]:
        state = LoaderState() if saved is None else LoaderState.from_dict(saved)
        for batch, after in loader.iterate(state, rank=ranks.rank, world=ranks.world):
            yield batch, {**after.to_dict()}

    return iterate


def fixed_validation(
    utterances: Sequence[Utterance],
    data: DataConfig,
    notes: Notes | None,
    targets: Targets | None = None,
    *,
    source: Source = FILES,
) -> Callable[[], Iterable[Batch]]:
    """The same held-out batches each time; none if there are no utterances."""
    if not utterances:
        return lambda: ()
    on_failure, on_warning = notes or (None, None)
    return lambda: evaluation(
        utterances, data, source=source, on_failure=on_failure, on_warning=on_warning, targets=targets
    )


def readable(
    clips: Sequence[Utterance], runtime: Runtime, notes: Notes, at_once_s: float = 300.0
) -> Iterator[tuple[list[Utterance], list[Clip]]]:
    """Clips with their waves, all of each file or part, minutes at a time; those that cannot be read or are
    too short are left out. `notes` are told, also of what is wrong with the others."""
    some: list[tuple[Utterance, Clip]] = []
    for clip in clips:
        try:
            wave = audio.decode(
                clip.path, start_s=clip.start or 0.0, stop_s=clip.end, warn=partial(notes.warned, clip)
            )
            runtime.plan(len(wave))
        except (ValueError, OSError) as error:
            notes.skipped(clip, f"{clip.id}, of the test: {error}")
            continue
        if short := cut_short(clip, len(wave) / SAMPLE_RATE):
            notes.warned(clip, short)
        some.append((clip, wave))
        if sum(c.duration_s for c, _ in some) >= at_once_s:
            yield [c for c, _ in some], [w for _, w in some]
            some = []
    if some:
        yield [c for c, _ in some], [w for _, w in some]

"""What the command prints: a line or more for each file, progress, and complaints."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from speech_ssl.checkpoints.artifact import Artifact
    from speech_ssl.extraction.progress import ProgressLine
    from speech_ssl.inference import Runtime, Transcript
    from speech_ssl.inference.answers import Analysis
    from speech_ssl.types import AudioWarning, Pooling

PoolOption = Literal["mean", "max", "none"]


def each(what: str, files: Sequence[str], lines: Callable[[str, ProgressLine], Iterator[str]]) -> int:
    """Print the lines of each file. One that fails is named, and the others are done all the same."""
    from speech_ssl.extraction.progress import ProgressLine

    progress = ProgressLine(what, sum(map(_duration, files)))
    failed = 0
    for path in files:
        try:
            for line in lines(path, progress):
                progress.hide()
                print(line, flush=True)
            progress.advance(0, clips=1)
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            progress.hide()
            complain(message_of(error))
            failed += 1
    progress.close()
    return 2 if failed else 0


def plain_name(path: str) -> str:
    """A path on one line and in one column."""
    return path.translate({ord(c): repr(c)[1:-1] for c in "\t\n\r"})


def _duration(path: str) -> float:
    """Seconds by the header, to show progress by; 0 for a file that will fail anyway."""
    from speech_ssl import audio

    try:
        return audio.duration(path)
    except (ValueError, OSError):
        return 0.0


def told_of(artifact: Artifact) -> Iterator[str]:
    """What a conversion has to say of what it read."""
    training = artifact.config["training"]
    if stored_as := training.get("stored_as"):
        yield f"its weights were {stored_as}"
    if any(head.ngram is not None for head in artifact.heads.values()):
        yield "with its language model"
    if why := training.get("language_model_left_out"):
        yield f"without its language model, {why}"
    if not_applied := training.get("not_applied"):
        yield f"not applied: {', '.join(not_applied)}"
    for name, why in artifact.heads_left_out.items():
        yield f"without its head {name}, {why}"
    if left := training.get("left_out"):
        yield f"left out: {', '.join(left[:5])}{', ...' if len(left) > 5 else ''}"
    if assumed := training.get("assumed"):
        yield f"assumed, for it does not say: {', '.join(assumed)}"


def embedding(
    runtime: Runtime, layer: int, pool: PoolOption, as_json: bool, path: str, progress: ProgressLine
) -> Iterator[str]:
    """The lines of output for one file."""
    from speech_ssl.inference.outputs import Pool

    hop_s = runtime.hop / runtime.sample_rate

    warnings: list[AudioWarning] = []

    def frames() -> Iterator[NDArray[np.float32]]:
        for piece in runtime.stream(path, layer=layer, warn=warnings.append):
            progress.advance(len(piece) * hop_s)
            yield piece
        tell(warnings, progress)

    name = plain_name(path)
    about = {"path": path, "model": runtime.name, "layer": layer, "pooling": pool}
    if pool != "none":
        pooled = Pool(pool)
        for piece in frames():
            pooled.add(piece)
        vector = pooled.result()
        answer = {"embedding": vector.tolist(), "warnings": as_objects(warnings)}
        yield json.dumps(about | answer) if as_json else _tabbed((name,), vector)
    elif as_json:
        rows = [row.tolist() for piece in frames() for row in piece]
        yield json.dumps(about | {"hop_s": hop_s, "frames": rows, "warnings": as_objects(warnings)})
    else:
        for index, row in enumerate(row for piece in frames() for row in piece):
            yield _tabbed((name, f"{index * hop_s:.6g}"), row)


def analysis(
    runtime: Runtime,
    run: Callable[[list[str]], list[Analysis]],
    pool: Pooling,
    as_json: bool,
    path: str,
    progress: ProgressLine,
) -> Iterator[str]:
    """The lines of output for one file that `run` analyzes."""
    (found,) = run([path])
    parts = [part for part in (found.features, found.transcript, found.classification) if part is not None]
    progress.advance(parts[0].duration_s)
    tell(parts[0].warnings, progress)
    vector = None if found.features is None else found.features.pooled(pool)
    said, heard = found.transcript, found.classification
    if as_json:
        answer: dict[str, Any] = {"path": path, "model": runtime.name, "duration_s": parts[0].duration_s}
        if vector is not None:
            answer["embedding"] = vector.tolist()
        if said is not None:
            answer["transcription"] = {"text": said.text, "words": [asdict(word) for word in said.words]}
        if heard is not None:
            labels, events = map(asdict, heard.labels), map(asdict, heard.events)
            answer["classification"] = {"labels": list(labels), "events": list(events)}
        yield json.dumps(answer | {"warnings": as_objects(parts[0].warnings)}, ensure_ascii=False)
        return
    name = plain_name(path)
    if vector is not None:
        yield _tabbed((name, "embedding"), vector)
    if said is not None:
        yield f"{name}\ttranscription\t{said.text}"
    if heard is not None:
        yield from (f"{name}\tclassification\t{x.label}\t{x.score:.4f}" for x in heard.labels)


def spoken_json(path: str, runtime: Runtime, said: Transcript) -> str:
    about = {"path": path, "model": runtime.name, "duration_s": said.duration_s}
    answer = {"text": said.text, "words": [asdict(word) for word in said.words]}
    return json.dumps(about | answer | {"warnings": as_objects(said.warnings)}, ensure_ascii=False)


def _tabbed(head: tuple[str, ...], values: NDArray[np.float32]) -> str:
    """The shortest digits that give the same float32 again."""
    return "\t".join((*head, *map(str, values)))


def tell(warnings: Iterable[AudioWarning], progress: ProgressLine) -> None:
    """Each on a line of stderr."""
    for warning in warnings:
        progress.hide()
        complain(f"warning: {warning.message}")


def as_objects(warnings: Iterable[AudioWarning]) -> list[dict[str, str]]:
    """As JSON has them."""
    return [warning._asdict() for warning in warnings]


def passed_over_of(suffixes: Counter[str], most: int = 8) -> str:
    """How many files of which suffixes are no audio, the most frequent first; "" for none."""
    if not suffixes:
        return ""
    listed = [
        f"{count} {plain_name(suffix) or 'without a suffix'}" for suffix, count in suffixes.most_common(most)
    ]
    others = suffixes.total() - sum(count for _, count in suffixes.most_common(most))
    return f"; passed over: {', '.join([*listed, *([f'{others} others'] if others else [])])}"


def message_of(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def complain(message: str, hint: str = "") -> int:
    line = " ".join(message.split())
    print(f"speech-ssl: {line}{f' ({hint})' if hint else ''}", file=sys.stderr)
    return 2

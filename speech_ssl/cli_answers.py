"""The commands that answer about files: embed, transcribe, classify, analyze, align."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import speech_ssl
from speech_ssl.cli_options import (
    device_option,
    files_argument,
    head_option,
    json_option,
    layer_option,
    model_option,
    pool_option,
    precision_option,
    threshold_option,
    top_k_option,
)
from speech_ssl.cli_output import (
    PoolOption,
    analysis,
    as_objects,
    each,
    embedding,
    plain_name,
    spoken_json,
    tell,
)

if TYPE_CHECKING:
    from speech_ssl.extraction.progress import ProgressLine


@click.command()
@files_argument
@model_option
@layer_option
@pool_option
@json_option
@device_option
@precision_option
def embed(
    files: tuple[str, ...], model: str, layer: int, pool: PoolOption, as_json: bool, **options: Any
) -> int:
    """Print the embedding of each FILE.

    A line is the path and the values, separated by tabs; with --pool none there is a line a frame, of the
    path, the frame's start in seconds, and the values. A file that fails is named on stderr, the others
    are done all the same, and the exit status is 2.
    """
    runtime = speech_ssl.load(model, **options, language_model=False)
    layer = runtime.check_layer(layer)
    return each("embed", files, partial(embedding, runtime, layer, pool, as_json))


@click.command()
@files_argument
@model_option
@json_option
@head_option
@click.option("--lm", type=click.Path(path_type=Path), help="Word n-gram for a beam search: ARPA or KenLM.")
@click.option("--no-lm", is_flag=True, help="Without the language model that came with the model.")
@click.option("--lexicon", type=click.Path(path_type=Path), help="The only words to know, one a line.")
@click.option(
    "--beam", type=int, help="Search with so many hypotheses.  [default: 1, or 32 with a language model]"
)
@device_option
@precision_option
def transcribe(files: tuple[str, ...], model: str, as_json: bool, **options: Any) -> int:
    """Print what is said in each FILE.

    A line is the path and the text, separated by a tab; with --json also the words with their times. A file
    that fails is named on stderr, the others are done all the same, and the exit status is 2.

    A language model that came with the model is searched with, if the extra `lm` is installed.
    """
    chosen = {"language_model": not options["no_lm"] and options["lm"] is None}
    runtime = speech_ssl.load(model, options["device"], options["precision"], **chosen)
    head = runtime.check_head("transcription", options["head"])
    search = {name: value for name in ("lm", "lexicon", "beam") if (value := options[name]) is not None}
    decoder = runtime.beam_search(head=head, **search) if search else None
    if decoder is not None and decoder.skipped:
        said = f"{decoder.skipped} words are left out, as {decoder.example!r}: the model cannot spell them"
        print(f"{options['lexicon']}: {said}", file=sys.stderr)

    def lines(path: str, progress: ProgressLine) -> Iterator[str]:
        (said,) = runtime.transcribe([path], head=head, decoder=decoder)
        progress.advance(said.duration_s)
        tell(said.warnings, progress)
        yield spoken_json(path, runtime, said) if as_json else f"{plain_name(path)}\t{said.text}"

    return each("transcribe", files, lines)


@click.command()
@files_argument
@model_option
@json_option
@head_option
@top_k_option
@threshold_option
@device_option
@precision_option
def classify(files: tuple[str, ...], model: str, as_json: bool, **options: Any) -> int:
    """Print what is heard in each FILE.

    A line is the path, a label and its probability, separated by tabs; with --json all labels, and events
    with their times. A file that fails is named on stderr, the others are done, and the exit status is 2.
    """
    runtime = speech_ssl.load(model, options["device"], options["precision"], language_model=False)
    head = runtime.check_head("classification", options["head"])
    top_k = 1 if options["top_k"] is None and not as_json else options["top_k"]

    def lines(path: str, progress: ProgressLine) -> Iterator[str]:
        (heard,) = runtime.classify([path], head=head, top_k=top_k, threshold=options["threshold"])
        progress.advance(heard.duration_s)
        tell(heard.warnings, progress)
        if as_json:
            about = {"path": path, "model": runtime.name, "head": head}
            answer = asdict(heard) | {"warnings": as_objects(heard.warnings)}
            yield json.dumps(about | answer, ensure_ascii=False)
        else:
            yield from (f"{plain_name(path)}\t{label.label}\t{label.score:.4f}" for label in heard.labels)

    return each("classify", files, lines)


@click.command()
@files_argument
@model_option
@json_option
@click.option(
    "--tasks", help="Of embedding, transcription, classification.  [default: all that the model can]"
)
@layer_option
@click.option("--pool", type=click.Choice(["mean", "max"]), default="mean", show_default=True)
@click.option("--speech-head", help="Which head transcribes, where the model has several.")
@click.option("--sounds-head", help="Which head classifies, where the model has several.")
@top_k_option
@threshold_option
@device_option
@precision_option
def analyze(files: tuple[str, ...], model: str, as_json: bool, **options: Any) -> int:
    """Print several answers about each FILE, from one pass of the model.

    A line is the path, the task and its answer, separated by tabs: the values of an embedding, a text, a
    label and its probability. With --json it is what the service's /v1/audio/analyses answers. A file that
    fails is named on stderr, the others are done, and the exit status is 2.
    """
    runtime = speech_ssl.load(model, options["device"], options["precision"])
    tasks = runtime.tasks if options["tasks"] is None else options["tasks"].split(",")
    top_k = 1 if options["top_k"] is None and not as_json else options["top_k"]
    asked = {name: options[name] for name in ("layer", "speech_head", "sounds_head", "threshold")}
    runtime.choose(tasks, **{name: asked[name] for name in ("layer", "speech_head", "sounds_head")})
    run = partial(runtime.analyze, tasks=tasks, top_k=top_k, **asked)
    return each("analyze", files, partial(analysis, runtime, run, options["pool"], as_json))


@click.command()
@files_argument
@model_option
@json_option
@head_option
@click.option(
    "--text", help="What is said in the one FILE.  [default: what stands in FILE with the suffix .txt]"
)
@device_option
@precision_option
def align(files: tuple[str, ...], model: str, as_json: bool, **options: Any) -> int:
    """Print when each word of a known text is said in its FILE.

    A line is the path, start and end in seconds, and the word, separated by tabs. A file that fails is named
    on stderr, the others are done, and the exit status is 2.
    """
    if options["text"] is not None and len(files) > 1:
        raise ValueError(
            "--text is of one FILE: write the texts of several beside them, as clip.txt for clip.wav"
        )
    runtime = speech_ssl.load(model, options["device"], options["precision"], language_model=False)
    head = runtime.check_head("transcription", options["head"])

    def lines(path: str, progress: ProgressLine) -> Iterator[str]:
        text = options["text"] or Path(path).with_suffix(".txt").read_text(encoding="utf-8")
        (said,) = runtime.align([path], [text], head=head)
        progress.advance(said.duration_s)
        tell(said.warnings, progress)
        if as_json:
            yield spoken_json(path, runtime, said)
        else:
            name = plain_name(path)
            yield from (f"{name}\t{word.start:.3f}\t{word.end:.3f}\t{word.word}" for word in said.words)

    return each("align", files, lines)

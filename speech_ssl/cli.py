"""The `speech-ssl` command. Thin: it reads options, calls the library, prints.

A mistake of the user is one line on stderr and exit status 2, never a traceback.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

import speech_ssl
from speech_ssl.cli_output import (
    PoolOption,
    as_objects,
    complain,
    each,
    embedding,
    message_of,
    passed_over_of,
    plain_name,
    tell,
    told_of,
)

if TYPE_CHECKING:
    from speech_ssl.extraction.progress import ProgressLine

MODEL = "Folder of an artifact or of transformers, or OWNER/NAME of the Hugging Face hub."
_model = click.option("--model", default="default", show_default=True, help=MODEL)
_layer = click.option("--layer", default=-1, show_default=True, help="0 (what enters the first block) to N.")
_pool = click.option(
    "--pool",
    type=click.Choice(["mean", "max", "none"]),
    default="mean",
    show_default=True,
    help="One vector a clip, or (none) all of its frames.",
)
_json = click.option("--json", "as_json", is_flag=True, help="One JSON object a file.")
_head = click.option("--head", help="Which head to ask, where the model has several.")
_device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
_precision = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16", "int8"]),
    default="auto",
    show_default=True,
)


def main() -> None:
    """The entry point: `cli`, with its errors turned into one line."""
    _mend_streams()
    logging.basicConfig(format="speech-ssl: %(message)s", level=logging.WARNING)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads wait for each other (LOG.md)
    try:
        status = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as exit:
        status = exit.exit_code
    except (click.Abort, KeyboardInterrupt):
        status = 130
    except BrokenPipeError:  # `| head` has seen enough; the interpreter must not flush into the pipe again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1  # as click does
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        status = 2
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        status = complain(error.format_message(), f"see {context.command_path} --help" if context else "")
    except (ValueError, OSError) as error:
        status = complain(message_of(error))
    sys.exit(status if isinstance(status, int) else 0)


def _mend_streams() -> None:
    """Names of files are bytes, and a caller may have closed what we print to."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for as long as we live
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape" if name == "stdout" else "backslashreplace")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(speech_ssl.__version__, prog_name="speech-ssl", message="%(prog)s %(version)s")
def cli() -> None:
    """Speech representations: embed, transcribe and classify files, extract data sets, serve a model."""


@cli.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@_model
@_layer
@_pool
@_json
@_device
@_precision
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


@cli.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@_model
@_json
@_head
@click.option("--lm", type=click.Path(path_type=Path), help="Word n-gram for a beam search: ARPA or KenLM.")
@click.option("--no-lm", is_flag=True, help="Without the language model that came with the model.")
@click.option("--lexicon", type=click.Path(path_type=Path), help="The only words to know, one a line.")
@click.option(
    "--beam", type=int, help="Search with so many hypotheses.  [default: 1, or 32 with a language model]"
)
@_device
@_precision
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
        about = {"path": path, "model": runtime.name, "duration_s": said.duration_s}
        answer = {"text": said.text, "words": [asdict(word) for word in said.words]}
        answer["warnings"] = as_objects(said.warnings)
        line = f"{plain_name(path)}\t{said.text}"
        yield json.dumps(about | answer, ensure_ascii=False) if as_json else line

    return each("transcribe", files, lines)


@cli.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@_model
@_json
@_head
@click.option("--top-k", type=int, help="Tell only so many labels.  [default: 1; with --json all]")
@click.option("--threshold", default=0.5, show_default=True, help="Probability from which an event is told.")
@_device
@_precision
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


@cli.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@_model
@_layer
@_pool
@click.option("--shard", default="0/1", show_default=True, metavar="I/N", help="Part I (from 0) of N.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--workers", type=int, help="Decoder processes.  [default: by the cores]")
@click.option("--commit-seconds", default=60.0, show_default=True, help="Work that a crash may cost.")
@_device
@_precision
def extract(manifest: Path, out: Path, **options: Any) -> int:
    """Write embeddings of all clips of MANIFEST into the folder OUT as Parquet.

    Run it again to go on after an interruption, to try failed clips once more, or after files have changed.
    OUT/failures.jsonl says which clips failed and why, OUT/warnings.jsonl what is wrong with clips that have
    a row. --shard 0/4 to --shard 3/4 can run anywhere, at the same time.
    """
    if options["engine"] == "ray":
        raise ValueError("--engine ray is not available in this version: use --engine local and --shard")
    from speech_ssl.extraction.extract import Extraction
    from speech_ssl.extraction.parquet import Shard

    shard = Shard.parse(options["shard"])
    extraction = Extraction(
        speech_ssl.load(options["model"], options["device"], options["precision"], language_model=False),
        layer=options["layer"],
        pooling=options["pool"],
        shard=shard,
        workers=options["workers"],
        commit_s=options["commit_seconds"],
    )
    done = extraction.run(manifest, out)
    failed = f"; {done.failures} failed, see the failures in {out}" if done.failures else ""
    warned = f"; {done.warned} with warnings, see the warnings in {out}" if done.warned else ""
    before = f"; {done.done_before} were there before" if done.done_before else ""
    print(
        f"{done.clips} clips, {done.audio_s / 3600:.3f} h of audio in {done.wall_s:.1f} s: "
        f"{done.audio_s / max(done.wall_s, 1e-9):.1f}x real time{before}{failed}{warned}"
    )
    if done.failures and not done.clips + done.done_before:
        raise ValueError(f"every clip of {manifest} failed: are its paths right?")
    return 0


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False), metavar="OUT.tsv")
def manifest(folder: Path, out: Path) -> int:
    """Write a manifest of all audio files below FOLDER."""
    from speech_ssl.data.manifest import check_writable, write_manifest
    from speech_ssl.data.scanning import scan_folder
    from speech_ssl.extraction.progress import Tally

    check_writable(out)  # before the files are looked at, which may take hours
    tally = Tally("manifest", "files")
    scan = scan_folder(folder, tick=tally.tick)
    tally.close()
    for path, reason in scan.failures:
        complain(reason if str(path) in reason else f"{path}: {reason}")
    for warning in scan.warnings:
        complain(warning.message)
    passed_over = passed_over_of(scan.passed_over)
    if not scan.utterances:
        raise ValueError(f"{folder}: no audio files that can be read below it{passed_over}")
    write_manifest(out, scan.utterances)
    hours = sum(utterance.duration_s for utterance in scan.utterances) / 3600
    skipped = f"; {len(scan.failures)} files cannot be read and are left out" if scan.failures else ""
    print(f"{out}: {len(scan.utterances)} clips, {hours:.3f} h of audio{skipped}{passed_over}")
    return 0


@cli.command()
@click.argument("source", metavar="SRC")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False), metavar="OUT_DIR")
@click.option(
    "--to",
    "form",
    type=click.Choice(["artifact", "huggingface", "fairseq2"]),
    default="artifact",
    show_default=True,
    help="What to make of it: an artifact, a folder for transformers, a checkpoint for fairseq2.",
)
@click.option("--no-lm", is_flag=True, help="Without the language model of a checkpoint.")
def convert(source: str, out: Path, form: Literal["artifact", "huggingface", "fairseq2"], no_lm: bool) -> int:
    """Convert a checkpoint of another library, or an artifact, to OUT_DIR.

    SRC is an artifact, a folder of transformers, the id of a model of the Hugging Face hub, a file of
    fairseq, fairseq2 or torchaudio, or a name that fairseq2 knows. Nothing in it is executed.
    """
    from speech_ssl.checkpoints.opening import convert

    artifact = convert(source, out, form, language_model=not no_lm)
    size = sum(weights.numel() for weights in artifact.encoder.parameters())
    parts = [f"{artifact.name}: {size / 1e6:.1f} M parameters"]
    parts += [f"head {name}" for name in artifact.heads]
    print(f"{out}: {'; '.join([*parts, *told_of(artifact)])}")
    return 0


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(as_json: bool) -> int:
    """Print what a bug report needs: versions, this machine, what is chosen for it, and how fast it is.

    The exit status is 1 if something that is needed does not work; the lines called `problem` say what.
    """
    from speech_ssl.doctor import examine
    from speech_ssl.doctor_output import written

    report = examine()
    print(json.dumps(report, indent=2) if as_json else "\n".join(written(report)))
    return 1 if report["problems"] else 0


@cli.command()
@click.option("--model", help=f"{MODEL}  [default: SPEECH_SSL_MODEL, or the packaged model]")
@click.option("--host", help="Address to listen on.  [default: SPEECH_SSL_HOST, or 127.0.0.1]")
@click.option("--port", type=int, help="[default: SPEECH_SSL_PORT, or 8000]")
def serve(**options: Any) -> None:
    """Serve a model over HTTP. Further settings are environment variables, SPEECH_SSL_*."""
    from pydantic import ValidationError

    from service.__main__ import run
    from service.settings import PREFIX, Settings

    try:
        settings = Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise ValueError(f"--{name} or {PREFIX}{name.upper()}: {first['msg']}") from None
    run(settings)


if __name__ == "__main__":
    main()

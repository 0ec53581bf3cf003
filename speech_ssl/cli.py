"""The `speech-ssl` command. Thin: it reads options, calls the library, prints.

A mistake of the user is one line on stderr and exit status 2, never a traceback.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any, Literal

import click

import speech_ssl
from speech_ssl.cli_answers import align, analyze, classify, embed, transcribe
from speech_ssl.cli_options import (
    MODEL,
    device_option,
    layer_option,
    model_option,
    pool_option,
    precision_option,
)
from speech_ssl.cli_output import complain, message_of, passed_over_of, told_of


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


for command in (embed, transcribe, classify, analyze, align):
    cli.add_command(command)


@cli.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@model_option
@layer_option
@pool_option
@click.option("--shard", default="0/1", show_default=True, metavar="I/N", help="Part I (from 0) of N.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--workers", type=int, help="Decoder processes.  [default: by the cores]")
@click.option("--commit-seconds", default=60.0, show_default=True, help="Work that a crash may cost.")
@device_option
@precision_option
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
    from service import lacking

    if missing := lacking():
        raise ValueError(missing)
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

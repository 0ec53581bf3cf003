"""What all training recipes share: the command line, and the way from a manifest to an artifact."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from recipes.folders import open_folder
from recipes.skipped import Notes, telling_silence
from speech_ssl.checkpoints.artifact import Artifact, save_artifact
from speech_ssl.checkpoints.opening import pretraining_of
from speech_ssl.data.batching import DataConfig
from speech_ssl.data.loader import FILES, Loader, LoaderState, Targets, evaluation
from speech_ssl.data.manifest import Utterance, read_manifest
from speech_ssl.data.source import Sounding, Source
from speech_ssl.data.splits import split_utterances
from speech_ssl.inference.runtime import named_artifact
from speech_ssl.model.config import Convolutions
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.base import Objective
from speech_ssl.precision import Float, native
from speech_ssl.training.changes import parse_changes
from speech_ssl.training.checkpoint import BEST, LAST, RunState, load_checkpoint
from speech_ssl.training.health import Collapsed, NonFinite
from speech_ssl.training.loop import Batches, Probe, Stopped, stop_signals, train
from speech_ssl.training.ranks import Ranks, joined_ranks
from speech_ssl.training.run import Run
from speech_ssl.types import Batch

ENGINES = ("local", "fairseq2", "fairseq2-fsdp2")
"""Our own loop; or fairseq2's Trainer with DDP; or with FSDP2, for what is too large for one GPU."""


def command(*variants: Callable[[], Run], doc: str | None) -> Callable[..., None]:
    """The command line of a pre-training recipe: a variant, where to read and where to write.
    Hyper-parameters are no options: a variant is a function."""
    named = {variant.__name__: variant for variant in variants}

    def main(arguments: Sequence[str] | None = None) -> None:
        parser = recipe_parser(list(named), doc)
        parser.add_argument(
            "--probe", type=Path, help="manifest with labels: log how well they can be told from the features"
        )
        parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help="what runs the steps")
        options = parser.parse_args(arguments)
        run = named[options.variant]()
        with orderly_exit(), joined_ranks(options.device) as ranks:
            changes = asked_changes(options)
            pretrain(
                run,
                options.manifest,
                options.out,
                ranks,
                init=options.init,
                resume=options.resume,
                changes=changes,
                probe=options.probe,
                engine=options.engine,
            )

    return main


@contextmanager
def orderly_exit() -> Iterator[None]:
    """A user's mistake is one line and status 2; a failed run has status 1; a signal 128 and its number."""
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError) as error:  # an extra that is not installed
        _leave(2, error)
    except (Collapsed, NonFinite) as error:
        _leave(1, error)
    except Stopped as stopped:
        _leave(128 + stopped.signal, stopped)


def recipe_parser(variants: Sequence[str], doc: str | None) -> argparse.ArgumentParser:
    """What all recipes ask. argparse and not click: training machines need nothing for it."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("variant", choices=variants)
    parser.add_argument(
        "--manifest", type=Path, action="append", required=True, help="may be given repeatedly"
    )
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--init", help="artifact whose weights to start from, or 'default': the packaged one")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in --out from its last checkpoint"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="with --resume: change a number of the training from here on, such as peak_lr=3e-4",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    return parser


def asked_changes(options: argparse.Namespace) -> dict[str, Any]:
    """Of --set. Raises ValueError without --resume, and for what cannot change."""
    if options.set and not options.resume:
        raise ValueError(
            "--set changes a run that is resumed: give --resume too, or write a variant of the recipe"
        )
    return parse_changes(options.set)


def _leave(status: int, error: Exception) -> None:
    print(f"error: {error}" if status < 128 else f"{error}: continue with --resume", file=sys.stderr)
    sys.exit(status)


def pretrain(  # noqa: PLR0913 - what the command line asks
    run: Run,
    manifests: Sequence[Path],
    out: Path,
    ranks: Ranks,
    *,
    init: str | None,
    resume: bool,
    changes: Mapping[str, Any] = MappingProxyType({}),
    probe: Path | None = None,
    engine: str = ENGINES[0],
) -> None:
    """Train `run` on the manifests' training split and leave the best weights in `out`/artifact, those
    so far if a signal stops it."""
    run_steps = trainer_of(engine)
    utterances = [utterance for path in manifests for utterance in read_manifest(path)]
    training, held_out = split_utterances(utterances)
    artifact = None if init is None else named_artifact(init)
    inputs = fingerprint(utterances, artifact)
    if engine != ENGINES[0]:  # its checkpoints are of another kind
        inputs["engine"] = engine
    torch.manual_seed(run.train.seed)
    if artifact is not None:  # waves as it knows them
        mine, theirs = run.encoder.frontend, artifact.encoder.config.frontend
        if isinstance(mine, Convolutions) and isinstance(theirs, Convolutions):
            waves = {"normalize_wave": theirs.normalize_wave, "wave_eps": theirs.wave_eps}
            run = replace(run, encoder=run.encoder.changed(frontend=waves))
    objective = run.objective.build(Encoder(run.encoder))
    if artifact is not None:
        start_from(objective, artifact)
    ranks.share(run.train.batches_per_step)
    data = run.data
    assert isinstance(data, DataConfig)
    notes = Notes.into(out, aloud=ranks.first)
    loader = loader_of(training, data, run.train.seed, notes, Sounding())
    watch = _online_probe(probe) if ranks.first else None
    # Last: what is refused above leaves no folder.
    run = open_folder(out, run, inputs, ranks, resume=resume, changes=changes, here=auto_of(engine, ranks))
    if ranks.first:
        describe(run, loader, training, held_out)
    valid = fixed_validation(held_out, data, notes if ranks.first else None, source=Sounding())
    with (
        leaving_artifact(ranks, lambda: leave_pretrained(objective, run, out)),
        telling_silence(loader, ranks),
    ):
        run_steps(objective, batches_of(loader, ranks), valid, run.train, out=out, ranks=ranks, probe=watch)


def trainer_of(engine: str) -> Callable[..., RunState]:
    """The function of one of ENGINES. Raises ValueError where its library is not installed."""
    if engine == ENGINES[0]:
        return train
    try:
        from speech_ssl.training.fairseq2 import engine as fairseq2
    except ImportError as error:
        raise ValueError(
            f"--engine {engine} needs fairseq2 ({error}): make an environment with it by "
            "scripts/install-fairseq2, and run with .venv-fairseq2/bin/python"
        ) from None
    return partial(fairseq2.train, sharded=engine == ENGINES[2])


def auto_of(engine: str, ranks: Ranks) -> Float:
    """What precision "auto" stands for. fairseq2's trainer is not given our loss scaling."""
    best = native(ranks.device)
    return "fp32" if best == "fp16" and engine != ENGINES[0] else best


def _online_probe(manifest: Path | None) -> Probe | None:
    if manifest is None:
        return None
    from speech_ssl.evaluation.probes.online import OnlineProbe

    probe = OnlineProbe(read_manifest(manifest))
    return lambda objective: probe(objective.encoder)


@contextmanager
def leaving_artifact(ranks: Ranks, leave: Callable[[], object]) -> Iterator[None]:
    """Around a training: the first rank leaves an artifact when it is over, or stopped by a signal."""
    try:
        yield
    except Stopped:
        with stop_signals():  # torchrun sends another when the first process leaves
            if ranks.first:
                leave()
            ranks.meet()
        raise
    if ranks.first:
        leave()


def best_weights(objective: Objective, out: Path) -> RunState:
    """Load the best weights of the run in `out`, or the last ones if none were good in validation."""
    best = out / BEST if (out / BEST).exists() else out / LAST
    return load_checkpoint(best, objective)


def leave_pretrained(objective: Objective, run: Run, out: Path) -> None:
    """The best weights as an artifact."""
    chosen = best_weights(objective, out)
    save_pretrained(objective, out / "artifact", run, chosen.step, chosen.best)
    print(f"the weights of step {chosen.step} are in {out / 'artifact'}", file=sys.stderr)


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


def start_from(objective: Objective, artifact: Artifact) -> None:
    """Copy an artifact's encoder into the objective, and its pre-training parts if all of them fit."""
    mine, theirs = objective.encoder.config.architecture(), artifact.encoder.config.architecture()
    if mine != theirs:
        name = next(k for k in mine if mine[k] != theirs[k])
        raise ValueError(
            f"{artifact.folder} holds another encoder than this variant: {name} is {theirs[name]}, "
            f"wanted {mine[name]}"
        )
    objective.encoder.load_state_dict(artifact.encoder.state_dict())
    extra, wanted = pretraining_of(artifact), pretraining_parts(objective)
    if {k: v.shape for k, v in extra.items()} == {k: v.shape for k, v in wanted.items()}:
        objective.load_state_dict(extra, strict=False)


def pretraining_parts(objective: Objective) -> dict[str, torch.Tensor]:
    """What the objective has beside its encoder: quantizer, projections."""
    return {k: v for k, v in objective.state_dict().items() if not k.startswith("encoder.")}


def save_pretrained(objective: Objective, folder: Path, run: Run, step: int, best: float | None) -> None:
    save_artifact(
        objective.encoder,
        folder,
        name=run.name,
        training={"recipe": run.to_dict(), "step": step, f"valid_{objective.best_by}": best},
        licence="as the audio it was trained on allows",
        extra=pretraining_parts(objective),
    )


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


def describe(run: Run, loader: Loader, training: Sequence[Utterance], held_out: Sequence[Utterance]) -> None:
    hours = sum(u.duration_s for u in training) / 3600
    print(
        f"{run.name}: {len(training)} clips ({hours:.2f} h) to train on, {len(held_out)} held out; "
        f"{loader.too_short} left out as too short",
        file=sys.stderr,
    )

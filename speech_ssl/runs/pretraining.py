"""Pre-training: from manifests to an artifact with the best weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from speech_ssl.checkpoints.artifact import Artifact, save_artifact
from speech_ssl.checkpoints.opening import pretraining_of
from speech_ssl.data.batching import DataConfig
from speech_ssl.data.loader import Loader
from speech_ssl.data.manifest import read_manifest
from speech_ssl.data.source import Sounding
from speech_ssl.data.splits import split_utterances
from speech_ssl.inference.runtime import named_artifact
from speech_ssl.model.config import Convolutions, EncoderConfig
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.base import Objective
from speech_ssl.precision import Float, native
from speech_ssl.runs.events import ArtifactSaved, Listener, silent
from speech_ssl.runs.folders import best_weights, leaving_artifact, open_folder
from speech_ssl.runs.notes import Notes, telling_silence
from speech_ssl.runs.reading import batches_of, begun, fingerprint, fixed_validation, loader_of, read_all
from speech_ssl.training.checkpoint import RunState, last_step
from speech_ssl.training.loop import Probe, train
from speech_ssl.training.ranks import Ranks, alone
from speech_ssl.training.run import Run

ENGINES = ("local", "fairseq2", "fairseq2-fsdp2")
"""Our own loop; or fairseq2's Trainer with DDP; or with FSDP2, for what is too large for one GPU."""


def pretrain(  # noqa: PLR0913 - all that there is to ask
    run: Run,
    manifests: Sequence[Path | str],
    out: Path | str,
    ranks: Ranks | None = None,
    *,
    init: str | None = None,
    teachers: Sequence[str] = (),
    resume: bool = False,
    changes: Mapping[str, Any] = MappingProxyType({}),
    probe: Path | str | None = None,
    engine: str = ENGINES[0],
    tell: Listener = silent,
) -> Path:
    """Train `run` on the manifests' training split and leave the best weights in `out`/artifact, those
    so far if a signal stops it. Returns that folder.

    init: artifact to start from, or "default". teachers: artifacts to learn from, for methods that need some.
    changes: numbers of a resumed run's training that differ from
    here on. probe: manifest with labels. ranks: of `joined_ranks` under torchrun; None is this process alone,
    on a GPU if there is one. tell: is called with each event. Raises ValueError or OSError for what cannot be
    done as asked; Stopped, Collapsed or NonFinite as `training.loop.train`.
    """
    out, ranks = Path(out), ranks or alone()
    tell = tell if ranks.first else silent
    run_steps = trainer_of(engine)
    utterances = read_all(manifests)
    training, held_out = split_utterances(utterances)
    artifact = None if init is None else named_artifact(init)
    inputs = fingerprint(utterances, artifact)
    taught_by = [named_artifact(name) for name in teachers]
    inputs |= {"teachers": [teacher.sha256 for teacher in taught_by]} if taught_by else {}
    if engine != ENGINES[0]:  # its checkpoints are of another kind
        inputs["engine"] = engine
    torch.manual_seed(run.train.seed)
    encoder = run.encoder if artifact is None else hearing_as(run.encoder, artifact.encoder.config)
    run = replace(run, encoder=encoder)
    objective = run.objective.build(Encoder(encoder))
    objective.learn_from([teacher.encoder for teacher in taught_by])
    if artifact is not None:
        start_from(objective, artifact)
    ranks.share(run.train.batches_per_step)
    data = run.data
    assert isinstance(data, DataConfig)
    notes = Notes.into(out, tell)
    loader = loader_of(training, data, run.train.seed, notes, Sounding())
    watch = _online_probe(probe) if ranks.first else None
    # Last: what is refused above leaves no folder.
    here = auto_of(engine, ranks)
    run = open_folder(out, run, inputs, ranks, resume=resume, changes=changes, tell=tell, here=here)
    tell(begun(run.name, loader, training, held_out))
    valid = fixed_validation(held_out, data, notes if ranks.first else None, source=Sounding())
    with (
        leaving_artifact(ranks, lambda _: leave_pretrained(objective, run, out, tell)),
        telling_silence(loader, tell),
    ):
        batches = batches_of(loader, ranks)
        prepare(objective, loader, run, out, ranks)
        run_steps(objective, batches, valid, run.train, out=out, ranks=ranks, probe=watch, tell=tell)
    return out / "artifact"


def prepare(objective: Objective, loader: Loader, run: Run, out: Path, ranks: Ranks) -> None:
    """Let the objective fit what it needs, if the run has no step yet. Every rank reads the same batches."""
    if last_step(out) > 0:
        return
    objective.to(ranks.device)
    generator = torch.Generator(ranks.device).manual_seed(run.train.seed)
    with closing(batches_of(loader, replace(ranks, rank=0, world=1))(None)) as stream:
        objective.prepare((batch.to(ranks.device) for batch, _ in stream), generator)


def hearing_as(mine: EncoderConfig, its: EncoderConfig) -> EncoderConfig:
    """`mine`, with waves as an artifact knows them."""
    here, there = mine.frontend, its.frontend
    if not (isinstance(here, Convolutions) and isinstance(there, Convolutions)):
        return mine
    return mine.changed(frontend={"normalize_wave": there.normalize_wave, "wave_eps": there.wave_eps})


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


def _online_probe(manifest: Path | str | None) -> Probe | None:
    if manifest is None:
        return None
    from speech_ssl.evaluation.probes.online import OnlineProbe

    probe = OnlineProbe(read_manifest(Path(manifest)))
    return lambda objective: probe(objective.encoder)


def leave_pretrained(objective: Objective, run: Run, out: Path, tell: Listener) -> None:
    """The best weights as an artifact."""
    chosen = best_weights(objective, out)
    save_pretrained(objective, out / "artifact", run, chosen.step, chosen.best)
    tell(ArtifactSaved(out / "artifact", chosen.step))


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

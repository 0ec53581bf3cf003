"""The study of label efficiency: real trainings, resumed, and what they leave for the reader."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from recipes.label_efficiency import smoke, tiny
from speech_ssl.checkpoints.artifact import load_artifact
from speech_ssl.data.manifest import Utterance, read_manifest, write_manifest
from speech_ssl.evaluation.labels.efficiency import load_trials
from speech_ssl.runs import StudyPlan, command, efficiency
from speech_ssl.runs.command import named_manifests
from speech_ssl.runs.efficiency import divided, of_arm, read_curve
from tests.narrow import save_narrow


def rows(count: int, **columns: object) -> list[Utterance]:
    """Rows of two labels; columns are values for all, or functions of the number."""
    made = []
    for number in range(count):
        fields = {k: v(number) if callable(v) else v for k, v in columns.items()}
        path = Path(f"{number}.wav")
        made.append(Utterance(path, 1.0, str(path), **{"label": "ab"[number % 2], **fields}))  # type: ignore[arg-type]
    return made


def ids(utterances: object) -> set[str]:
    return {u.id for u in utterances}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "utterances",
    [
        rows(100, split=lambda n: "dev" if n % 5 == 0 else "train"),
        rows(100, split="train", speaker=lambda n: f"s{n % 10}"),
        rows(100),
    ],
    ids=["splits", "speakers", "neither"],
)
def test_no_test_clip_is_learned_from(utterances: list[Utterance]) -> None:
    parts = divided(utterances)
    train, valid, test = map(ids, (parts.train, parts.valid, parts.test))
    assert not train & valid and not train & test and not valid & test
    assert len(train | valid | test) == 100 and len(test) == 20 and len(valid) == 8


def test_test_speakers_are_not_heard_in_training() -> None:
    parts = divided(rows(100, split="train", speaker=lambda n: f"s{n % 10}"))
    heard = {u.speaker for u in [*parts.train, *parts.valid]}
    assert len(heard) == 8 and not heard & {u.speaker for u in parts.test}


def test_a_given_test_split_is_preferred_to_dev() -> None:
    parts = divided(rows(30, split=lambda n: ("train", "dev", "test")[n % 3]))
    assert ids(parts.test) == {f"{n}.wav" for n in range(2, 30, 3)}


def test_the_arms_differ_as_they_should(tiny_artifact: Path) -> None:
    artifact, plan = load_artifact(tiny_artifact), tiny()
    frozen, scratch = (of_arm(plan.tuning, arm, artifact) for arm in ("frozen", "scratch"))
    assert frozen.run(artifact).objective.head_only == 1  # type: ignore[attr-defined]
    assert (frozen.train.steps, scratch.train.steps) == (
        plan.tuning.train.steps // 2,
        2 * plan.tuning.train.steps,
    )
    run = scratch.run(None)
    assert run.objective.head_only == 0 and run.objective.train_frontend  # type: ignore[attr-defined]
    assert run.encoder.feature_grad_scale == 1 and run.encoder.width == artifact.encoder.config.width
    finetuned = of_arm(plan.tuning, "finetuned", artifact).run(artifact)
    assert finetuned.objective == plan.tuning.objective and finetuned.objective.train_frontend
    assert finetuned.encoder == artifact.encoder.config


@pytest.fixture(scope="module")
def manifest(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "length.tsv"
    chosen = sorted(read_manifest(prompts / "manifest.tsv"), key=lambda u: u.duration_s)[20:140:5]
    labelled = [replace(u, label="short" if i < 12 else "long", split="") for i, u in enumerate(chosen)]
    write_manifest(path, labelled)
    return path


def brief() -> StudyPlan:
    plan = smoke()
    data = replace(plan.tuning.data, batch_s=8.0, workers=0)
    return replace(plan, tuning=replace(plan.tuning, data=data), shares=(0.5,))


def test_a_study_can_be_interrupted_and_ends_in_a_report(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = save_narrow(tmp_path / "narrow")
    out = tmp_path / "study"
    options = ["brief", "--manifest", f"length={manifest}", "--init", str(narrow), "--out", str(out)]
    options += ["--device", "cpu"]
    main = command.label_efficiency(brief, doc="")
    tune, calls = efficiency.tune, []

    def second_fails(*arguments: object) -> dict[str, object]:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return tune(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(efficiency, "tune", second_fails)
    with pytest.raises(KeyboardInterrupt):
        main(options)
    assert len(load_trials(out)) == 1
    main(options)
    trials = load_trials(out)
    assert len(calls) == 4 and {trial.arm for trial in trials} == {"scratch", "frozen", "finetuned"}
    for trial in trials:
        assert trial.metric == "accuracy" and 0 <= trial.value <= 1 and trial.guessing is not None
        start, *steps = trial.curve
        assert [point.step for point in trial.curve] == [*range(0, trial.steps + 1, 2)]
        assert start.train_loss is None and start.valid_metric is not None
        assert all(p.train_loss is not None and p.valid_metric is not None for p in steps)
        assert trial.confusion is not None and sum(map(sum, trial.confusion.counts)) == 5
    assert not list((out / "runs").iterdir())
    assert "length" in (out / "report.html").read_text()
    with (out / "results.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3
    main(options)
    assert len(calls) == 4  # nothing was left to do

    def longer() -> StudyPlan:
        return replace(brief(), tuning=replace(brief().tuning, train=replace(brief().tuning.train, steps=6)))

    with pytest.raises(SystemExit):
        command.label_efficiency(longer, doc="")(["longer", *options[1:]])
    assert len(calls) == 4  # trials of another study are not passed off as its own


def test_a_curve_joins_losses_of_a_step(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(
        '{"kind": "train", "step": 2, "loss": 1.5}\n'
        '{"kind": "valid", "step": 2, "loss": 1.7, "accuracy": 0.5}\n'
        '{"kind": "collapse", "step": 2, "message": "x"}\n{"kind": "train", "step": 4, "loss": 1.0}\n'
    )
    assert [tuple(point) for point in read_curve(path)] == [(2, 1.5, 1.7, 0.5), (4, 1.0, None, None)]


def test_manifests_have_names() -> None:
    found = named_manifests([Path("a=x/m.tsv"), Path("y/moods.tsv")])
    assert found == {"a": Path("x/m.tsv"), "moods": Path("y/moods.tsv")}
    with pytest.raises(ValueError, match="two manifests are called m"):
        named_manifests([Path("x/m.tsv"), Path("y/m.tsv")])

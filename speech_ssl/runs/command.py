"""The command lines of recipes: a variant, where to read and where to write. Hyper-parameters are no options:
a variant is a function."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from speech_ssl.evaluation.labels.efficiency import check_task
from speech_ssl.evaluation.probes.tasks import (
    Task,
    emotion,
    events,
    intent,
    keyword,
    speaker,
    verification,
)
from speech_ssl.runs.comparison import ComparisonPlan, compare
from speech_ssl.runs.console import Console
from speech_ssl.runs.efficiency import StudyPlan, study
from speech_ssl.runs.finetuning import finetune
from speech_ssl.runs.folders import RefusedByFirst
from speech_ssl.runs.hearing import HearPlan, hear, lines
from speech_ssl.runs.pretraining import ENGINES, pretrain
from speech_ssl.runs.probing import probe
from speech_ssl.runs.tuning import FineTuning
from speech_ssl.training.changes import parse_changes
from speech_ssl.training.health import Collapsed, NonFinite
from speech_ssl.training.loop import Stopped
from speech_ssl.training.ranks import joined_ranks
from speech_ssl.training.run import Run

Main: TypeAlias = Callable[..., None]
"""Of the words of a command line; without them, of this process's."""


def pretraining(*variants: Callable[[], Run], doc: str | None) -> Main:
    named = {variant.__name__: variant for variant in variants}

    def main(arguments: Sequence[str] | None = None) -> None:
        parser = _parser(list(named), doc)
        parser.add_argument(
            "--probe", type=Path, help="manifest with labels: log how well they can be told from the features"
        )
        parser.add_argument(
            "--teacher", action="append", default=[], help="artifact to learn from, for methods that need one"
        )
        parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help="what runs the steps")
        given = parser.parse_args(arguments)
        run = named[given.variant]()
        with orderly_exit(), joined_ranks(given.device) as ranks:
            pretrain(
                run,
                given.manifest,
                given.out,
                ranks,
                init=given.init,
                teachers=given.teacher,
                resume=given.resume,
                changes=_changes(given),
                probe=given.probe,
                engine=given.engine,
                tell=Console(),
            )

    return main


def transcription(*variants: Callable[[], FineTuning], doc: str | None) -> Main:
    def own(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--vocabulary", type=Path, help="file with the characters to know, one a line")

    return _finetuning(variants, doc, "ctc", own)


def sound_events(*variants: Callable[[], FineTuning], doc: str | None) -> Main:
    def own(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--folds", dest="folded", choices=["split", "speaker"], help="cross-validate by this column"
        )

    return _finetuning(variants, doc, "events", own)


def _finetuning(
    variants: Sequence[Callable[[], FineTuning]],
    doc: str | None,
    head: str,
    own: Callable[[argparse.ArgumentParser], None],
) -> Main:
    """own: adds the recipe's options, which `finetune` takes by their names."""
    named = {variant.__name__: variant for variant in variants}

    def main(arguments: Sequence[str] | None = None) -> None:
        parser = _parser(list(named), doc)
        parser.add_argument("--head", default=head, help="its name in the artifact (default: %(default)s)")
        parser.add_argument("--lang", help="use the clips of this language alone (column 'lang')")
        own(parser)
        given = parser.parse_args(arguments)
        options = vars(given)
        with orderly_exit(), joined_ranks(given.device) as ranks:
            finetune(
                named[given.variant](),
                given.manifest,
                given.out,
                ranks,
                init=given.init,
                head=given.head,
                lang=given.lang,
                vocabulary=options.get("vocabulary"),
                folded=options.get("folded"),
                resume=given.resume,
                changes=_changes(given),
                tell=Console(),
            )

    return main


def label_efficiency(*variants: Callable[[], StudyPlan], doc: str | None) -> Main:
    named = {variant.__name__: variant for variant in variants}

    def main(arguments: Sequence[str] | None = None) -> None:
        given = _parser(list(named), doc).parse_args(arguments)
        with orderly_exit(), joined_ranks(given.device) as ranks:
            if given.set:
                raise ValueError("--set changes one run, and a study is many: write a variant of the recipe")
            init = given.init or "default"
            manifests = named_manifests(given.manifest)
            report = study(named[given.variant](), manifests, given.out, ranks, init=init, tell=Console())
            print(f"the report is {report}")

    return main


def named_manifests(given: Sequence[Path]) -> dict[str, Path]:
    """NAME=PATH, or a path whose name is the task's. Raises ValueError for a name that is given twice."""
    found: dict[str, Path] = {}
    for text in map(str, given):
        name, equals, path = text.partition("=")
        if not equals:
            name, path = Path(text).stem, text
        check_task(name)
        if name in found:
            raise ValueError(f"two manifests are called {name}: write --manifest NAME=PATH")
        found[name] = Path(path)
    return found


def probing(*variants: Callable[[], Sequence[Task]], doc: str | None) -> Main:
    named = {variant.__name__: variant for variant in variants}

    def main(arguments: Sequence[str] | None = None) -> None:
        parser = _bare_parser(list(named), doc)
        parser.add_argument("--manifest", action="append", required=True, help="may be given repeatedly")
        parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
        parser.add_argument(
            "--init", default="default", help="artifact to probe (default: the packaged model)"
        )
        parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
        given = parser.parse_args(arguments)
        with orderly_exit():
            tasks = _tried(named[given.variant](), given.manifest, sure=given.variant != "all")
            probe(tasks, given.out, init=given.init, device=given.device, tell=Console())

    return main


def hearing(*variants: Callable[[], HearPlan], doc: str | None) -> Main:
    named = {variant.__name__: variant for variant in variants}

    def main(arguments: Sequence[str] | None = None) -> None:
        parser = _bare_parser(list(named), doc)
        parser.add_argument("--manifest", type=Path, required=True)
        parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
        parser.add_argument(
            "--init", default="default", help="NAME or NAME:layer=L of a model (default: the packaged one)"
        )
        parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
        given = parser.parse_args(arguments)
        with orderly_exit():
            found = hear(
                named[given.variant](),
                given.manifest,
                given.out,
                init=given.init,
                device=given.device,
                tell=Console(),
            )
            print("\n".join(lines(found)))

    return main


def comparison(*variants: Callable[[], ComparisonPlan], doc: str | None) -> Main:
    named = {variant.__name__: variant for variant in variants}
    tasks = {
        task.name: task for task in (keyword(), events(), emotion(), intent(), speaker(), verification())
    }

    def main(arguments: Sequence[str] | None = None) -> None:
        parser = _bare_parser(list(named), doc)
        parser.add_argument("--manifest", action="append", required=True, help="to pre-train on; repeatedly")
        parser.add_argument("--out", type=Path, required=True, help="the folder to write to, or go on in")
        parser.add_argument(
            "--task",
            action="append",
            required=True,
            help=f"TASK=M.tsv, repeatedly; the first makes the curves. TASK: {', '.join(tasks)}",
        )
        parser.add_argument("--only", action="append", default=[], help="a method by its name; repeatedly")
        parser.add_argument("--seed", action="append", type=int, default=[], help="another one; repeatedly")
        parser.add_argument("--budget-s", type=float, help="seconds of training of each method")
        parser.add_argument("--teacher", action="append", default=[], help="for methods that learn from some")
        given = parser.parse_args(arguments)
        with orderly_exit():
            plan = _chosen(named[given.variant](), given.only, given.seed, given.budget_s)
            exams = _tried(list(tasks.values()), given.task, sure=False)
            page = compare(plan, given.manifest, exams, given.out, teachers=given.teacher, tell=Console())
            print(f"the report is {page}")

    return main


def _chosen(
    plan: ComparisonPlan, only: Sequence[str], seeds: Sequence[int], budget_s: float | None
) -> ComparisonPlan:
    """The plan with what the command line asks of it. Raises ValueError for an unknown method."""
    names = [run.name for run in plan.methods]
    if unknown := sorted(set(only) - set(names)):
        raise ValueError(f"there is no method {unknown[0]!r}: it is one of {', '.join(names)}")
    methods = tuple(run for run in plan.methods if not only or run.name in only)
    budget = plan.budget_s if budget_s is None else budget_s
    if not 0 < budget < float("inf"):
        raise ValueError(f"--budget-s must be a number above 0, not {budget}")
    return replace(plan, methods=methods, seeds=tuple(seeds) or plan.seeds, budget_s=budget)


def _tried(tasks: Sequence[Task], manifests: Sequence[str], *, sure: bool) -> list[tuple[Task, Path]]:
    """All tasks on each manifest; unless `sure`, manifests say which task they are for."""
    if sure:
        return [(task, Path(path)) for path in manifests for task in tasks]
    named = {task.name: task for task in tasks}
    tried = []
    for given in manifests:
        name, equals, path = given.partition("=")
        if not (equals and name in named):
            raise ValueError(
                f"say which task it is for: --manifest TASK={given}, TASK one of {', '.join(named)}"
            )
        tried.append((named[name], Path(path)))
    return tried


@contextmanager
def orderly_exit() -> Iterator[None]:
    """A user's mistake is one line and status 2; a failed run has status 1; a signal 128 and its number."""
    try:
        yield
    except RefusedByFirst:  # which says why
        sys.exit(2)
    except (ValueError, OSError, ImportError) as error:  # an extra that is not installed
        _leave(2, error)
    except (Collapsed, NonFinite) as error:
        _leave(1, error)
    except Stopped as stopped:
        _leave(128 + stopped.signal, stopped)


def _leave(status: int, error: Exception) -> None:
    print(f"error: {error}" if status < 128 else f"{error}: continue with --resume", file=sys.stderr)
    sys.exit(status)


def _bare_parser(variants: Sequence[str], doc: str | None) -> argparse.ArgumentParser:
    """argparse and not click: training machines need nothing for it."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("variant", choices=variants)
    return parser


def _parser(variants: Sequence[str], doc: str | None) -> argparse.ArgumentParser:
    """What all recipes that train ask."""
    parser = _bare_parser(variants, doc)
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


def _changes(given: argparse.Namespace) -> dict[str, Any]:
    """Of --set. Raises ValueError without --resume, and for what cannot change."""
    if given.set and not given.resume:
        raise ValueError(
            "--set changes a run that is resumed: give --resume too, or write a variant of the recipe"
        )
    return parse_changes(given.set)

"""The report: whole, well-formed, readable without pictures, and with no number that is not a trial's."""

from __future__ import annotations

import csv
import dataclasses
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import resources, util
from pathlib import Path

import numpy as np
import pytest

from speech_ssl.evaluation.labels.__main__ import main
from speech_ssl.evaluation.labels.efficiency import (
    ARMS,
    Confusion,
    Point,
    Study,
    Trial,
    load_trials,
    save_study,
    save_trial,
)
from speech_ssl.evaluation.labels.figures import LIGHT, Limits, curves_panel, share_panel, svg
from speech_ssl.evaluation.labels.summary import Saving, summarise
from speech_ssl.evaluation.labels.words import (
    change,
    confusion_sentence,
    ends,
    headline,
    listed,
    missing_lines,
    number,
    saving_sentence,
    task_statement,
    verdict_sentences,
)

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

CLASSES = ("<yes>", "no & never")
VOID = {"meta", "link", "img", "br", "hr", "input"}


def make_trials() -> list[Trial]:
    """Two tasks; the second has an error rate, neither curves nor confusions, and is not finished."""
    generator = np.random.default_rng(3)
    trials = []
    for task, higher in (("two_words", True), ("texts", False)):
        for i, arm in enumerate(ARMS):
            for share in (0.05, 1.0):
                for seed in range(3):
                    if not higher and (arm, seed) == ("frozen", 2):
                        continue
                    value = float(0.4 + 0.1 * i + 0.2 * share + generator.normal(0, 0.01))
                    curve = tuple(
                        Point(s, 1 / (1 + s), 0.5 + 0.01 * s, min(value, 0.02 * s)) for s in range(0, 50, 10)
                    )
                    confusion = Confusion(CLASSES, ((8, 2), (seed, 10))) if higher else None
                    trials.append(
                        Trial(
                            task=task,
                            arm=arm,
                            share=share,
                            labels=round(2000 * share),
                            seed=seed,
                            metric="accuracy" if higher else "CER",
                            value=value if higher else 1 - value,
                            higher_is_better=higher,
                            best_step=30,
                            steps=40,
                            seconds=100.0,
                            curve=curve if higher else (),
                            confusion=confusion,
                            guessing=0.5 if higher else None,
                        )
                    )
    return trials


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    for trial in make_trials():
        save_trial(folder, trial)
    tasks = {"two_words": "Yes & no.", "texts": "Sentences."}
    save_study(folder, Study(tasks, (0.05, 1.0), (0, 1, 2), command="python -m recipes.x --out A > B"))
    assert main([str(folder)]) == 0
    return folder


class Page(HTMLParser):
    """Checks nesting as it reads; keeps the elements, and the text outside of style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.cells[-1] += f" {data}"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(study: Path) -> Page:
    return Page((study / "report.html").read_text(encoding="utf-8"))


def test_the_page_is_one_file_that_asks_for_nothing(study, page):
    text = (study / "report.html").read_text()
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.elements}
    sources = [value for _, attributes in page.elements for key, value in attributes.items() if key == "src"]
    assert sources and all(source.startswith("data:image/svg+xml;base64,") for source in sources)


def test_the_page_can_be_read_without_eyes_and_mouse(page):
    # A chart for each task; for one, two curves and three confusions, in two rows each; each on light and
    # on dark ground.
    assert len(page.all("img")) == 2 * (2 + 4 + 6)
    assert all(len(image["alt"]) > 40 and image["width"] and image["height"] for image in page.all("img"))
    identities = [a["id"] for _, a in page.elements if "id" in a]
    assert len(identities) == len(set(identities))
    targets = [a["href"].removeprefix("#") for a in page.all("a")]
    named = [a["aria-labelledby"] for a in page.all("section")]
    assert set(targets + named) <= set(identities)
    regions = [a for _, a in page.elements if "scroll" in (a.get("class") or "")]
    assert regions and all(a["tabindex"] == "0" and a["aria-label"] for a in regions)
    assert page.all("html")[0]["lang"] == "en"
    assert [tag for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)][:2] == ["h1", "h2"]


def test_what_users_wrote_is_escaped(study):
    text = (study / "report.html").read_text()
    assert "Yes &amp; no." in text and "--out A &gt; B" in text and "no &amp; never" in text


def test_every_value_in_the_tables_is_a_trials(study, page):
    trials = load_trials(study)
    allowed = set()
    for task in summarise(trials).tasks:
        values = [v for c in task.cells for v in (*c.values, c.mean)] + [v.difference for v in task.verdicts]
        allowed |= {f"{abs(100 * value):.1f}" for value in values}
    shown = re.findall(r"\d+\.\d", " ".join(page.cells))
    assert len(shown) == 3 * 12 + 8 + 34 and set(shown) <= allowed  # means, ranges, verdicts, trials
    cells = [" ".join(cell.split()) for cell in page.cells]
    (frozen,) = [t for t in trials if t.key == ("two_words", "frozen", 0.05, 1)]
    assert f"{100 * frozen.value:.1f}%" in cells


def test_the_sentences_are_on_the_page(study, page):
    text = " ".join(" ".join(page.words).split())
    plan = Study({"two_words": "", "texts": ""}, (0.05, 1.0), (0, 1, 2))
    summary = summarise(load_trials(study), plan)
    said = [headline(summary), *map(task_statement, summary.tasks), *missing_lines(summary.missing)]
    said += [line for task in summary.tasks for line in verdict_sentences(task)]
    assert all(line in text for line in said)
    assert "2 of 36 planned trials are missing" in text
    assert "Texts, frozen: 5% (seed 2), 100% (seed 2)" in text


def test_results_csv_has_a_row_for_each_trial(study):
    with (study / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 34
    expected = {
        t.key.name: (t.value, t.labels, t.metric, str(t.higher_is_better)) for t in load_trials(study)
    }
    found = {
        f"{r['task']}-{r['arm']}-{float(r['share']):g}-{r['seed']}": (
            float(r["value"]),
            int(r["labels"]),
            r["metric"],
            r["higher_is_better"],
        )
        for r in rows
    }
    assert found == expected
    assert {r["guessing"] for r in rows} == {"0.5", ""}


def test_pictures_are_written(study):
    names = {path.name for path in (study / "figures").iterdir()}
    kinds = {f"{kind}-two_words.png" for kind in ("share", "curves", "confusion")}
    assert names == kinds | {"share-texts.png"}
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in (study / "figures").iterdir())


def test_one_trial_is_enough_for_a_report(tmp_path: Path):
    bare = dataclasses.replace(make_trials()[0], curve=(), confusion=None)
    save_trial(tmp_path, bare)
    assert main([str(tmp_path)]) == 0
    text = " ".join(Page((tmp_path / "report.html").read_text()).words)
    assert "has enough seeds for a verdict yet" in text and "missing" in text
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["share-two_words.png"]


@pytest.mark.parametrize(("points", "value"), [(0, 0.0), (1, 1.0), (2, 0.5)])
def test_values_that_are_all_the_same_can_be_drawn(points: int, value: float) -> None:
    curve = tuple(Point(number, value, value, value) for number in range(points))
    same = {"value": value, "curve": curve, "guessing": value}
    trials = [dataclasses.replace(t, **same) for t in make_trials() if t.higher_is_better and t.share == 1]
    (task,) = summarise(trials).tasks
    panels = [share_panel(task)]
    panels += [curves_panel(trials[0], trials[1:3], Limits.of(trials))] if points else []
    for panel in panels:
        assert svg(panel, LIGHT).rstrip().endswith("</svg>")


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2 and main([str(tmp_path)]) == 2
    assert "holds no finished trial" in capsys.readouterr().err
    command = [sys.executable, "-m", "speech_ssl.evaluation.labels"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("usage:")


# Sentences


def test_numbers_are_written_as_readers_write_them():
    assert number(0.1234, "accuracy") == "12.3%" and number(0.1234, "mAP") == "0.123"
    assert change(0.05, "CER") == "+5.0 points" and change(-0.05, "mAP") == "\u22120.050"
    assert change(-0.0001, "CER") == "\u00b10.0 points"
    assert (listed(["a"]), listed("ab"), listed("abc")) == ("a", "a and b", "a, b and c")


@pytest.mark.parametrize(
    ("labels", "at_most", "most", "by_seed", "said"),
    [
        (250.0, False, 1000, (3.0, 5.0), "about 250 labels for the 90.0%"),
        (250.0, False, 1000, (3.0, 5.0), "4.0 times fewer (3.0 to 5.0 times seed by seed)"),
        (10.0, True, 1000, (100.0,), "at most 10 labels"),
        (10.0, True, 1000, (100.0,), "at least 100.0 times fewer."),
        (250.0, False, 1000, (4.0, None), "1 of 2 seeds reach it, 4.0 times"),
        (990.0, False, 1000, (1.0, 1.0), "no fewer."),
        (None, False, 1000, (None,), "does not reach the 90.0% that scratch reaches with all 1,000 labels."),
        (None, False, 250, (None,), "with 250 or fewer, the most that it was trained on so far."),
    ],
)
def test_labels_saved_in_words(labels, at_most, most, by_seed, said):
    saving = Saving("finetuned", 0.9, 1000, most, labels, at_most, by_seed)
    assert said in saving_sentence(saving, "accuracy")


def curve(train: list[float], valid: list[float]) -> list[Point]:
    return [Point(10 * i, t, v) for i, (t, v) in enumerate(zip(train, valid, strict=True))]


@pytest.mark.parametrize(
    ("train", "valid", "overfits"),
    [
        ([2.0, 1.0, 0.1, 0.01], [2.0, 1.5, 1.8, 2.5], True),
        ([2.0, 1.0, 0.5, 0.4], [2.0, 1.2, 0.9, 0.8], False),
        ([2.0, 1.0, 0.5, 0.4], [2.0, 0.5, 0.08, 0.12], False),  # small wiggles of a small loss
        ([2.0, 1.0, 1.5, 2.0], [2.0, 1.5, 1.8, 2.5], False),  # both rise: it diverges
    ],
)
def test_overfitting_is_told_from_noise(train, valid, overfits):
    found = ends(curve(train, valid))
    assert found is not None and found.overfits == overfits
    assert found.lowest.valid_loss == min(valid)
    assert ends([Point(1, 0.5)]) is None


def test_confusions_in_words():
    said = confusion_sentence(Confusion(("a", "b"), ((6, 2), (1, 1))))
    assert said.startswith(
        "7 of 10 test clips are right; most often \u201cb\u201d is taken for \u201ca\u201d (50%"
    )
    assert confusion_sentence(Confusion(("a",), ((3,),))) == "3 of 3 test clips are right."


def test_the_command_that_the_page_tells_is_there() -> None:
    template = (resources.files("speech_ssl") / "assets" / "label_report.html").read_text(encoding="utf-8")
    (module,) = re.findall(r"python -m (\S+)", template)
    assert util.find_spec(f"{module}.__main__")

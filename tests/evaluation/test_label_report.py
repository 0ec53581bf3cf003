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
from speech_ssl.evaluation.labels.figures import confusion_figure, curves_figure, share_figure, shown
from speech_ssl.evaluation.labels.summary import Saving, Verdict, summarise
from speech_ssl.evaluation.labels.words import change, number, saving_line, verdict_line, verdict_lines

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
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)


def test_the_page_can_be_read_without_eyes_and_mouse(page):
    assert len(page.all("img")) == 3 + 1  # a chart for each task; for one, curves and confusions
    assert all(len(image["alt"]) > 40 and image["width"] and image["height"] for image in page.all("img"))
    assert len(page.all("table")) == len(page.all("caption")) == 2
    assert all(heading["scope"] in ("row", "col") for heading in page.all("th"))
    assert page.all("html")[0]["lang"] == "en"
    assert [tag for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)][:2] == ["h1", "h2"]


def test_what_users_wrote_is_escaped(study):
    text = (study / "report.html").read_text()
    assert "Yes &amp; no." in text and "--out A &gt; B" in text


def test_every_value_in_the_tables_is_a_trials(study, page):
    trials = load_trials(study)
    allowed = set()
    for task in summarise(trials).tasks:
        allowed |= {f"{100 * v:.1f}" for c in task.cells for v in (c.low, c.mean, c.high)}
    shown = re.findall(r"\d+\.\d", " ".join(page.cells))
    assert len(shown) == 3 * 12 and set(shown) <= allowed  # means and ranges
    cells = [" ".join(cell.split()) for cell in page.cells]
    values = [100 * t.value for t in trials if t.key[:3] == ("two_words", "frozen", 0.05)]
    assert f"{np.mean(values):.1f}% ({min(values):.1f}\u2013{max(values):.1f}%, 3 seeds)" in cells
    assert sum("2 seeds" in cell for cell in cells) == 2


def test_the_verdicts_and_what_is_missing_are_on_the_page(study, page):
    text = " ".join(" ".join(page.words).split())
    plan = Study({"two_words": "", "texts": ""}, (0.05, 1.0), (0, 1, 2))
    summary = summarise(load_trials(study), plan)
    lines = [line for task in summary.tasks for line in verdict_lines(task)]
    assert len(lines) == 2 * (4 + 2) and all(line in text for line in lines)
    assert "2 of 36 planned trials are missing" in text
    assert ", ".join(key.name for key in summary.missing) == "texts-frozen-0.05-2, texts-frozen-1-2"
    assert "texts-frozen-0.05-2, texts-frozen-1-2" in text


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
    assert "(one seed)" in text and "missing" in text
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["share-two_words.png"]


@pytest.mark.parametrize(("points", "value"), [(0, 0.0), (1, 1.0), (2, 0.5)])
def test_values_that_are_all_the_same_can_be_drawn(points: int, value: float) -> None:
    curve = tuple(Point(number, value, value, value) for number in range(points))
    same = {"value": value, "curve": curve, "guessing": value}
    trials = [dataclasses.replace(t, **same) for t in make_trials() if t.higher_is_better and t.share == 1]
    (task,) = summarise(trials).tasks
    pictures = [share_figure(task), curves_figure(trials), confusion_figure(trials)]
    assert [picture is not None for picture in pictures] == [True, points > 0, True]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures if picture)


def test_figures_show_the_fewest_labels_that_all_arms_have_and_the_most():
    trials = [t for t in make_trials() if t.higher_is_better]
    keys = [[t.key[1:] for t in group] for group in shown(trials[::-1], ("scratch", "finetuned"))]
    ends = [(arm, share) for share in (0.05, 1.0) for arm in ("scratch", "finetuned")]
    assert keys == [[(arm, share, seed) for seed in range(3)] for arm, share in ends]
    scratch = [dataclasses.replace(trials[0], share=0.01), *trials]  # a share that the others do not have
    assert {t.share for group in shown(scratch, ARMS) for t in group} == {0.05, 1.0}
    assert [group[0].arm for group in shown(scratch, ARMS)] == [*ARMS, *ARMS]
    assert shown([], ARMS) == []


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2 and main([str(tmp_path)]) == 2
    assert "holds no finished trial" in capsys.readouterr().err
    command = [sys.executable, "-m", "speech_ssl.evaluation.labels"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("usage:")


# Lines


def test_numbers_are_written_as_readers_write_them():
    assert number(0.1234, "accuracy") == "12.3%" and number(0.1234, "mAP") == "0.123"
    assert change(0.05, "CER") == "+5.0 points" and change(-0.05, "mAP") == "\u22120.050"
    assert change(-0.0001, "CER") == "\u00b10.0 points"


@pytest.mark.parametrize(
    ("labels", "at_most", "most", "by_seed", "said"),
    [
        (250.0, False, 1000, (3.0, 5.0), "about 250 labels for the 90.0%"),
        (250.0, False, 1000, (3.0, 5.0), "4.0 times fewer (by seed: 3.0, 5.0)"),
        (10.0, True, 1000, (100.0,), "at most 10 labels"),
        (10.0, True, 1000, (100.0,), "at least 100.0 times fewer"),
        (250.0, False, 1000, (4.0, None), "(by seed: 4.0, not reached)"),
        (990.0, False, 1000, (1.0, 1.0), ", no fewer"),
        (None, False, 1000, (None,), "does not reach the 90.0% of scratch with all 1,000 labels"),
        (None, False, 250, (None,), "(so far trained on at most 250)"),
    ],
)
def test_labels_saved_in_words(labels, at_most, most, by_seed, said):
    saving = Saving("finetuned", 0.9, 1000, most, labels, at_most, by_seed)
    line = saving_line(saving, "accuracy")
    assert said in line and ("so far" in line) == (most < 1000)


def test_verdicts_in_words():
    clear = Verdict("finetuned", 0.05, 0.1, 0.082, 0.118, "helps")
    assert (
        verdict_line(clear, "accuracy")
        == "fine-tuned, 5%: helps, +10.0 points (95% interval +8.2 to +11.8 points)"
    )
    few = Verdict("frozen", 1.0, -0.1, None, None, "too few seeds")
    assert verdict_line(few, "mAP") == "frozen, 100%: too few seeds, \u22120.100"


def test_the_command_that_the_page_tells_is_there() -> None:
    template = (resources.files("speech_ssl") / "assets" / "label_report.html").read_text(encoding="utf-8")
    (module,) = re.findall(r"python -m (\S+)", template)
    assert util.find_spec(f"{module}.__main__")

"""What the documents, the package and the image promise, held against the code."""

from __future__ import annotations

import csv
import fnmatch
import importlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
import pytest
import soundfile
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import speech_ssl

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    *(path for path in sorted(ROOT.glob("*.md")) if path.name != "LOG.md"),  # it tells of commands that were
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "examples" / "README.md",
]


# Documents


def shell_lines(text: str) -> Iterator[str]:
    """The command lines of fenced shell blocks, continuation lines joined."""
    for block in re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from (line for line in block.replace("\\\n", " ").splitlines() if line.strip())


def words(line: str) -> list[str]:
    return shlex.split(line, comments=True)


def options_of(command: click.Command) -> set[str]:
    return {
        opt for p in command.params if isinstance(p, click.Option) for opt in (*p.opts, *p.secondary_opts)
    }


def problems_of_command(line: str, cli: click.Group) -> list[str]:
    """What is wrong with a documented command line; nothing for programs that are not ours."""
    parts = words(line)
    if parts and parts[0].startswith("scripts/"):
        return [] if (ROOT / parts[0]).stat().st_mode & 0o111 else [f"{parts[0]} cannot be run"]
    if parts[:1] == ["speech-ssl"]:
        return problems_of_subcommand(parts[1:], cli)
    if parts[:2] == ["python", "-m"] and parts[2].startswith("recipes."):
        recipe = importlib.import_module(parts[2])
        return [] if callable(getattr(recipe, parts[3], None)) else [f"{parts[2]} has no {parts[3]}"]
    return []


def problems_of_subcommand(parts: list[str], cli: click.Group) -> list[str]:
    command = cli.commands.get(parts[0])
    if command is None:
        return [f"no command {parts[0]}"]
    given = {part.split("=")[0] for part in parts[1:] if part.startswith("--")}
    return [
        f"{parts[0]} has no option {option}" for option in sorted(given - options_of(command) - {"--help"})
    ]


@pytest.fixture(scope="module")
def cli() -> click.Group:
    from speech_ssl.cli import cli

    return cli


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documented_commands_exist(document, cli):
    lines = list(shell_lines(document.read_text()))
    assert [(line, bad) for line in lines for bad in problems_of_command(line, cli)] == []


def test_readme_shows_the_two_commands(cli):
    lines = list(shell_lines((ROOT / "README.md").read_text()))
    assert {"scripts/serve", "scripts/test"} <= {words(line)[0] for line in lines if words(line)}
    shown = {words(line)[1] for line in lines if words(line)[:1] == ["speech-ssl"]}
    assert shown == set(cli.commands), "the README shows each command once at least"


def test_a_wrong_command_is_found(cli):
    assert problems_of_command("speech-ssl embd clip.wav", cli)
    assert problems_of_command("speech-ssl embed clip.wav --layr 3", cli)
    assert problems_of_command("python -m recipes.pretrain_wav2vec2 gigantic --manifest m --out d", cli)
    assert list(shell_lines("```sh\na \\\n  b\n```\n```python\nc\n```\n")) == ["a    b"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (document.parent / target).exists()] == []


def test_changelog_begins_with_this_version():
    versions = re.findall(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == speech_ssl.__version__ == version("speech-ssl")


# Dependencies


OTHER_TORCH = {"fairseq2"}
"""Extras for an environment of their own, with a torch of their own: `constraints-NAME.txt` pins that."""


def pins(extra: str = "") -> dict[str, str]:
    lines = (ROOT / f"constraints{extra}.txt").read_text().splitlines()
    rows = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(row) == 2 and not set("/@ ;") & set("".join(row)) for row in rows), "only name==version"
    return {canonicalize_name(name): pinned for name, pinned in rows}


def requirements(*extras: str) -> list[Requirement]:
    """What the package itself needs, and these extras; without any, all that share one environment."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    groups = [optional[extra] for extra in extras or optional.keys() - OTHER_TORCH]
    return [Requirement(text) for group in (project["dependencies"], *groups) for text in group]


@pytest.mark.parametrize("extra", ["", *OTHER_TORCH])
def test_every_dependency_is_pinned_within_its_range(extra):
    pinned = pins(f"-{extra}" if extra else "")
    for requirement in requirements(*filter(None, [extra])):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), str(requirement)
    assert pinned["torch"] == pinned["torchaudio"], "a pair"


# Prompts


def prompt_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_prompts_are_speech_as_the_manifest_says(prompts):
    rows = prompt_rows(prompts)
    on_disk = {str(path.relative_to(prompts)) for path in prompts.rglob("*.flac")}
    assert {row["path"] for row in rows} == on_disk and len(rows) == 150
    for row in rows:
        wave, rate = soundfile.read(prompts / row["path"])
        assert (rate, wave.ndim) == (16_000, 1)
        assert len(wave) / rate == pytest.approx(float(row["duration_s"]), abs=1e-3)
        assert 0.05 < np.sqrt(np.mean(wave**2)) < 0.3 and np.abs(wave).max() < 1, row["path"]
        assert 0.5 < len(row["text"]) / float(row["duration_s"]) < 25, row["text"]


def test_no_prompt_of_dev_is_heard_in_train(prompts):
    said = {"train": set(), "dev": set()}
    for row in prompt_rows(prompts):
        said[row["split"]].add(" ".join(re.findall(r"\w+", row["text"].lower())))
    assert len(said["dev"]) == 22 and not said["train"] & said["dev"]


def test_prompts_are_small_and_attributed(prompts):
    assert sum(path.stat().st_size for path in prompts.rglob("*")) < 5e6
    text = (prompts / "ATTRIBUTION.md").read_text()
    for needed in (
        "Allison Smith",
        "creativecommons.org/licenses/by-sa/3.0",
        "1.6.1-1",
        "Changes",
        "warranties",
    ):
        assert needed in text


# What is shipped


def copy_tree(folder: Path, without: list[str]) -> None:
    """Copy the sources that git knows, but for the patterns."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        parents = [name, *map(str, Path(name).parents)]
        if (ROOT / name).is_file() and not any(fnmatch.fnmatch(p, w) for p in parents for w in without):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def test_image_serves_without_training_code(tmp_path):
    """What .dockerignore keeps out of the image is not needed to import all that serves."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    copy_tree(tmp_path, without=[line for line in lines if line and not line.startswith("#")])
    assert not (tmp_path / "speech_ssl" / "training").exists() and (tmp_path / "service").exists()
    code = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'Editable' not in repr(f)];"
        "import speech_ssl.extraction.extract as it, speech_ssl.cli, service.server; print(it.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)


def test_image_is_told_settings_that_exist():
    from service.settings import Settings

    named = set(re.findall(r"SPEECH_SSL_([A-Z_]+)=", (ROOT / "Dockerfile").read_text()))
    assert named and {name.lower() for name in named} <= set(Settings.model_fields)


def test_wheel_holds_assets_and_type_marker(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    copy_tree(source, without=["tests", "benchmarks"])
    code = f"from setuptools.build_meta import build_wheel; print(build_wheel({str(out)!r}))"
    out.mkdir()
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    import zipfile

    names = set(zipfile.ZipFile(next(out.glob("*.whl"))).namelist())
    prompts = "speech_ssl/assets/prompts"
    wanted = {
        "service/playground/static/index.html",
        "speech_ssl/py.typed",
        "speech_ssl/assets/MODEL_CARD.md",
        f"{prompts}/manifest.tsv",
        f"{prompts}/ATTRIBUTION.md",
        f"{prompts}/audio/hello.flac",
    }
    assert wanted <= names
    assert not any(name.startswith(("tests/", "benchmarks/", "scripts/")) for name in names)

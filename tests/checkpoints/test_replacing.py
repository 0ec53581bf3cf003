"""What an artifact may take the place of, and that nothing else is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from speech_ssl.checkpoints.artifact import load_artifact, save_artifact
from speech_ssl.checkpoints.opening import convert
from speech_ssl.checkpoints.replacing import ArtifactError, check_replaceable, new_folder
from speech_ssl.model.encoder import Encoder
from tests.checkpoints.hub_server import files_in
from tests.narrow import save_narrow


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return load_artifact(save_narrow(tmp_path_factory.mktemp("encoder") / "narrow")).encoder


def save(encoder: Encoder, folder: Path, name: str = "model") -> Path:
    return save_artifact(encoder, folder, name=name, training={}, licence="MIT")


def with_files(**files: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        for name, text in files.items():
            path = folder / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return fill


TRANSFORMERS = json.dumps({"model_type": "wav2vec2", "architectures": ["Wav2Vec2Model"]})
PRECIOUS: dict[str, tuple[Callable[[Path], None], bool]] = {
    "a folder of transformers with a training in it": (
        with_files(config_dot_json=TRANSFORMERS, checkpoint__optimizer_dot_pt="x", notes_dot_txt="n"),
        False,
    ),
    "a folder of transformers": (with_files(config_dot_json=TRANSFORMERS, model_dot_safetensors="x"), False),
    "a thesis and an empty object": (with_files(config_dot_json="{}", thesis_dot_tex="years"), False),
    "a list": (with_files(config_dot_json="[1]"), False),
    "no JSON": (with_files(config_dot_json="{"), False),
    "a version of something else": (with_files(config_dot_json='{"format_version": 1}'), False),
    "files of something else": (with_files(config_dot_json='{"files": {"thesis.tex": 1}}'), False),
    "an artifact and notes": (with_files(notes_dot_txt="n"), True),
    "an artifact and a folder": (with_files(more__notes_dot_txt="n"), True),
    "an artifact and a hidden file": (with_files(_dot_git="n"), True),
}


@pytest.mark.parametrize("case", PRECIOUS)
def test_nothing_but_an_artifact_is_replaced(encoder: Encoder, tmp_path: Path, case: str) -> None:
    fill, of_ours = PRECIOUS[case]
    folder = tmp_path / "out"
    if of_ours:
        save(encoder, folder)
    fill(folder)
    source = save(encoder, tmp_path / "source")
    before = files_in(tmp_path)
    for attempt in (lambda: save(encoder, folder), lambda: convert(source, folder)):
        with pytest.raises(ArtifactError, match="choose another folder") as refused:
            attempt()
        assert "\n" not in str(refused.value) and str(folder) in str(refused.value)
        assert ("beside an artifact" in str(refused.value)) is of_ours
        assert files_in(tmp_path) == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


@pytest.mark.parametrize("form", ["huggingface", "fairseq2"])
def test_an_export_replaces_nothing(encoder: Encoder, tmp_path: Path, form: str) -> None:
    """Not even an artifact; and that is said before the source is read."""
    folder = save(encoder, tmp_path / "out")
    before = files_in(tmp_path)
    with pytest.raises(ArtifactError, match="is not empty: choose another folder"):
        convert(tmp_path / "nothing", folder, form)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="is not empty"):
        convert(tmp_path / "nothing", folder / "config.json", form)  # type: ignore[arg-type]
    assert files_in(tmp_path) == before


def test_a_link_stays_and_what_it_points_to_is_replaced(encoder: Encoder, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    save(encoder, disk / "artifact")
    link, circle, later = tmp_path / "link", tmp_path / "circle", tmp_path / "later"
    link.symlink_to(disk / "artifact")
    later.symlink_to(disk / "not-yet")
    save(encoder, link, name="newer")
    assert link.is_symlink() and load_artifact(disk / "artifact").name == load_artifact(link).name == "newer"
    save(encoder, later)
    assert later.is_symlink() and (disk / "not-yet" / "config.json").is_file()
    assert sorted(path.name for path in disk.iterdir()) == ["artifact", "not-yet"]
    (disk / "artifact" / "notes.txt").write_text("n")
    with pytest.raises(ArtifactError, match="'notes.txt' beside an artifact"):
        check_replaceable(link)
    circle.symlink_to(circle)
    with pytest.raises(ArtifactError, match="a symbolic link to nowhere"):
        save(encoder, circle)


def test_what_comes_while_it_is_written_is_kept(encoder: Encoder, tmp_path: Path) -> None:
    folder = save(encoder, tmp_path / "out")
    with pytest.raises(ArtifactError, match="'notes.txt' beside"), new_folder(folder) as new:
        (new / "config.json").write_text("{}")
        (folder / "notes.txt").write_text("n")
    assert load_artifact(folder).name == "model" and (folder / "notes.txt").read_text() == "n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_artifact_of_another_version_is_one(encoder: Encoder, tmp_path: Path) -> None:
    folder = save(encoder, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format_version": 2}))
    save(encoder, folder)
    assert load_artifact(folder).name == "model"

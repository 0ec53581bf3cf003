"""Whole walks on real speech: every door gives the same vectors, and training leads to them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import torch

import speech_ssl
from speech_ssl import audio
from speech_ssl.checkpoints.artifact import load_artifact, save_artifact
from speech_ssl.cli import cli
from speech_ssl.data.batching import DataConfig
from speech_ssl.data.loader import Loader, LoaderState
from speech_ssl.data.manifest import read_manifest
from speech_ssl.extraction.parquet import read_rows
from speech_ssl.objectives.wav2vec2 import Wav2Vec2Config
from tests.service.support import ROOT, Process, encoded, serving, tone

LAYER = 2


@pytest.fixture(scope="module")
def folder(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's files: prompts as they are, one at another rate in stereo, and one of two windows, of
    which the first is the quieter."""
    folder = tmp_path_factory.mktemp("recordings")
    paths = sorted((prompts / "audio").glob("*.flac"))
    for path in paths[:3]:
        (folder / path.name).write_bytes(path.read_bytes())
    wave = audio.decode(paths[3])
    time_s = np.arange(0, len(wave) / 16000, 1 / 44100)
    loud = np.interp(time_s, np.arange(len(wave)) / 16000, wave)
    soundfile.write(folder / "stereo.wav", np.stack([loud, loud / 2], axis=1), 44100)
    long = np.concatenate([audio.decode(path) for path in paths])[: 25 * 16000]
    long[: len(long) // 2] *= 0.03
    soundfile.write(folder / "long.flac", long, 16000)
    return folder


@pytest.fixture(scope="module")
def service(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Started by the command."""
    log = tmp_path_factory.mktemp("walk") / "log"
    process = Process(["speech_ssl.cli", "serve", "--model", str(tiny_artifact), "--port", "0"], log)
    try:
        yield process.ready()
    finally:
        process.close()


def command(*args: object) -> int:
    return int(cli.main(list(map(str, args)), standalone_mode=False))


def test_every_door_gives_the_same_vectors(
    folder: Path,
    tiny_artifact: Path,
    service: httpx.Client,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """Python, HTTP upload to JSON, manifest to Parquet, and the command, on the same files."""
    paths = sorted(folder.iterdir())
    runtime = speech_ssl.load(tiny_artifact)
    features = runtime.encode(paths, layer=LAYER)
    expected = np.stack([each.pooled() for each in features])
    assert len(runtime.plan(25 * 16000)) == 2

    files = [("file", (path.name, path.read_bytes())) for path in paths]
    answer = service.post("/v1/embeddings", files=files, data={"layer": str(LAYER)})
    assert answer.status_code == 200, answer.text
    over_http = [item["embedding"] for item in answer.json()["data"]]
    np.testing.assert_allclose(np.array(over_http, np.float32), expected, atol=1e-5)
    seconds = sum(each.duration_s for each in features)
    assert answer.json()["usage"]["seconds"] == pytest.approx(seconds, abs=0.01)

    manifest, out = tmp_path / "m.tsv", tmp_path / "out"
    assert command("manifest", folder, manifest) == 0
    assert command("extract", manifest, out, "--model", tiny_artifact, "--layer", LAYER) == 0
    rows = {Path(row["path"]).name: row for row in read_rows(out).to_pylist()}
    assert sorted(rows) == [path.name for path in paths]
    for path, each, vector in zip(paths, features, expected, strict=True):
        row = rows[path.name]
        np.testing.assert_allclose(np.array(row["embedding"], np.float32), vector, atol=1e-5)
        assert (row["num_frames"], row["duration_s"]) == (len(each.frames), each.duration_s)

    capsys.readouterr()
    assert command("embed", *paths, "--model", tiny_artifact, "--layer", LAYER) == 0
    values = [line.split("\t")[1:] for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_allclose(np.array(values, np.float32), expected, atol=1e-5)


@pytest.mark.numerical
def test_from_files_to_a_loss_to_an_artifact_to_vectors(prompts: Path, tiny_artifact: Path, tmp_path: Path):
    utterances = read_manifest(prompts / "manifest.tsv")
    config = DataConfig(batch_s=8.0, crop_s=2.0, workers=0)
    batch, _ = next(Loader(utterances, config, seed=1).iterate(LoaderState()))
    assert len(batch.lengths_B) >= 2 and batch.seconds <= 8.0

    with torch.random.fork_rng():
        torch.manual_seed(0)
        objective = Wav2Vec2Config().build(load_artifact(tiny_artifact).encoder)

    def loss() -> torch.Tensor:
        result = objective(batch, generator=torch.Generator().manual_seed(7))
        assert result.count > 0
        return result.total / result.count

    before = loss().item()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-4)
    for _ in range(5):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < before - 0.05  # on its own batch, with the same draws

    trained = save_artifact(
        objective.encoder, tmp_path / "a", name="walk", training={"steps": 5}, licence="x"
    )
    path = utterances[0].path
    features = speech_ssl.load(trained).encode([path])[0]
    wave = torch.from_numpy(audio.decode(path))[None]
    with torch.no_grad():
        frames = objective.encoder.eval()(wave, torch.tensor([wave.shape[1]])).x_BTD[0]
    np.testing.assert_allclose(features.frames, frames.numpy(), atol=1e-5)
    untrained = speech_ssl.load(tiny_artifact).encode([path])[0]
    assert np.abs(features.frames - untrained.frames).max() > 0.01


class Walk:
    """The files around the model that are entered in threads which start while it is looked at, in order; and
    chains of calls that leave one of them and come back to it."""

    HANDED_DOWN = ("receive", "send")
    """What ASGI hands down to be called from below: each wrapper's is called back."""

    def __init__(self) -> None:
        self.files: dict[str, None] = {}
        self.returns: dict[str, None] = {}
        self.looking = False
        self._names: dict[str, str | None] = {}

    def __enter__(self) -> Walk:
        threading.setprofile(self._seen)
        return self

    def __exit__(self, *_: object) -> None:
        threading.setprofile(None)

    def _name(self, frame: FrameType) -> str | None:
        file = frame.f_code.co_filename
        if file not in self._names:
            path = Path(file)
            ours = any(path.is_relative_to(ROOT / package) for package in ("service", "speech_ssl/inference"))
            self._names[file] = path.relative_to(ROOT).as_posix() if ours else None
        return self._names[file]

    def _seen(self, frame: FrameType, event: str, _: Any) -> None:
        if not self.looking or event != "call" or (name := self._name(frame)) is None:
            return
        self.files.setdefault(name)
        chain, above = [name], frame.f_back
        while above is not None:
            file = self._name(above)
            if file is not None and file != chain[-1]:
                chain.append(file)
            if file == name and len(chain) > 1:
                break
            if above.f_code.co_name in self.HANDED_DOWN:
                return
            above = above.f_back
        if chain.count(name) > 1 and frame.f_code.co_name not in self.HANDED_DOWN:
            self.returns.setdefault(f"{' <- '.join(chain)} ({frame.f_code.co_name})")


def test_an_upload_passes_few_files_and_each_of_them_once(answering_artifact: Path) -> None:
    """From the connection to the answer, in all threads, without the model, whose files are its parts, and
    the decoder, a process of its own. A limit may be raised for a file that has something of its own to do,
    not for one that hands things along."""
    runtime, clip = speech_ssl.load(answering_artifact), encoded(tone(1.0))
    with Walk() as walk, serving(runtime) as client:
        for route, most in (("/v1/embeddings", 22), ("/v1/audio/analyses", 28)):
            for walk.looking in (False, True):  # the first one starts what is started once
                answer = client.post(route, files={"file": ("a.wav", clip)})
                assert answer.status_code == 200, answer.text
            walk.looking = False
            files = list(walk.files)
            walk.files.clear()
            assert 15 < len(files) <= most, f"{route}: {len(files)} files\n" + "\n".join(files)
    assert not walk.returns, "\n".join(walk.returns)

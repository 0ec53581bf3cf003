"""Models of the hub by the real huggingface_hub and the real command, from a server on this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from speech_ssl.checkpoints.conversion import ConversionError
from speech_ssl.checkpoints.opening import convert
from speech_ssl.checkpoints.transformers.hub import fetched
from tests import warm
from tests.checkpoints.hub_server import (
    EXPIRED,
    NARROW,
    TOKEN,
    Cut,
    Hub,
    Repository,
    files_in,
    unreachable,
)
from tests.checkpoints.transformers_models import made, saved

pytest.importorskip("huggingface_hub")
pytest.importorskip("transformers")
Ended = subprocess.CompletedProcess[str]
WANTED = {
    "README.md",
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "vocab.json",
}
UNWANTED = (
    ".gitattributes",
    "adapter.deu.safetensors",
    "adapter_model.safetensors",
    "checkpoint-500/model.safetensors",
    "checkpoint-500/optimizer.pt",
    "modeling_custom.py",
    "pytorch_model.bin",
    "tf_model.h5",
)


class Sources:
    """Folders of transformers, and the artifacts that they make."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.new = self._saved("new", hidden_size=32)
        self.old = self._saved("old", hidden_size=16)
        self.large = self._saved("large", hidden_size=384, intermediate_size=1536)

    def _saved(self, name: str, **options: int) -> Path:
        folder = saved(made("Wav2Vec2", "ForCTC", **options), self.root / name)
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
        (folder / "processor_config.json").write_text('{"processor_class": "Wav2Vec2Processor"}')
        return folder

    def pickled(self) -> dict[str, bytes]:
        """The new one, as models were saved before there was safetensors."""
        torch.save(load_file(self.new / "model.safetensors"), self.root / "pytorch_model.bin")
        files = files_in(self.new) | {"pytorch_model.bin": (self.root / "pytorch_model.bin").read_bytes()}
        del files["model.safetensors"]
        return files


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture
def hub(sources: Sources) -> Iterator[Hub]:
    new, old = files_in(sources.new), files_in(sources.old)
    with Hub() as hub:
        extra = dict.fromkeys(UNWANTED, b"not to be fetched")
        tagged = Repository({"main": new | extra, "refs/pr/3": old | extra})
        hub.repositories["someone/model"] = tagged
        hub.repositories["someone/gated"] = Repository({"main": new}, gated=True)
        unwanted = dict.fromkeys(("training_args.bin", "adapter_model.safetensors"), b"not to be fetched")
        pickled = sources.pickled() | unwanted
        hub.repositories["someone/pickled"] = Repository({"main": pickled})
        yield hub
        assert not hub.elsewhere()


class Here:
    """The command, with a cache of its own and no way to anywhere but the hub."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.folder = folder
        kept = {
            name: value
            for name, value in os.environ.items()
            if not re.match(r"(?i)HF_|HUGGING|.*_proxy", name)
        }
        self.environment = kept | {
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HTTP_PROXY": hub.address,
            "HTTPS_PROXY": hub.address,
            "NO_PROXY": "127.0.0.1",
        }

    def run(self, *args: object, **environment: str) -> Ended:
        return warm.run(["speech_ssl.cli", *args], env=self.environment | environment, cwd=self.folder)

    def converted(self, name: str, out: str, **environment: str) -> Path:
        done = self.run("convert", name, out, **environment)
        assert (done.returncode, done.stderr) == (0, "")
        return self.folder / out


@pytest.fixture
def here(hub: Hub, tmp_path: Path) -> Here:
    return Here(hub, tmp_path)


def refused(done: Ended) -> str:
    """The only line that it said."""
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    return line


REPOSITORIES = {"model", "pickled", "gated", "large", "damaged"}


def same(artifact: Path, folder: Path, tmp_path: Path) -> bool:
    """Whether it is what the folder makes, but for the name, which is the repository's, and the commit."""
    convert(folder, tmp_path / f"of-{folder.name}")
    ours, theirs = (files_in(each) for each in (artifact, tmp_path / f"of-{folder.name}"))
    configs = [json.loads(each.pop("config.json")) for each in (ours, theirs)]
    names = [config.pop("name") for config in configs]
    told = configs[0]["training"].pop("hub")
    assert told["model"] == f"someone/{names[0]}" and re.fullmatch("[0-9a-f]{40}", told["commit"])
    assert names[0] in REPOSITORIES and configs[0]["licence"] == "mit"
    return ours == theirs and configs[0] == configs[1]


def test_once_from_the_hub_and_then_from_the_cache(
    hub: Hub, here: Here, sources: Sources, tmp_path: Path
) -> None:
    assert same(here.converted("someone/model", "first"), sources.new, tmp_path)
    assert hub.fetched() == WANTED
    hub.asked.clear()
    held, nowhere = unreachable()
    with held:
        offline = here.converted("someone/model", "offline", HF_ENDPOINT=nowhere, HF_HUB_OFFLINE="1")
        down = here.converted("someone/model", "down", HF_ENDPOINT=nowhere)
    assert files_in(offline) == files_in(down) == files_in(tmp_path / "first") and not hub.asked


def test_a_revision(hub: Hub, here: Here, sources: Sources, tmp_path: Path) -> None:
    told = json.loads((here.converted("someone/model@refs/pr/3", "out") / "config.json").read_bytes())
    assert told["training"]["hub"]["commit"] == hub.repositories["someone/model"].commit("refs/pr/3")
    assert same(here.folder / "out", sources.old, tmp_path)
    assert hub.fetched() == WANTED


def test_a_pickle_is_fetched_by_convert_alone(hub: Hub, here: Here, sources: Sources, tmp_path: Path) -> None:
    line = refused(here.run("embed", "clip.wav", "--model", "someone/pickled"))
    assert re.search(r"someone/pickled: has no model.safetensors.*`speech-ssl convert`", line)
    assert hub.fetched() == WANTED - {"model.safetensors"}
    assert same(here.converted("someone/pickled", "out"), sources.new, tmp_path)
    assert hub.fetched() == WANTED - {"model.safetensors"} | {"pytorch_model.bin"}


@pytest.mark.parametrize(
    "name, said",
    [
        ("someone/none", r"no such model.*, or a private one.*HF_TOKEN"),
        ("someone/model@v9", r"has no revision 'v9'.*branch"),
        ("someone/gated", r"ask for access at .*/someone/gated .*HF_TOKEN"),
    ],
)
def test_what_the_hub_does_not_give(name: str, said: str, here: Here) -> None:
    line = refused(here.run("convert", name, "out"))
    assert line.startswith(f"speech-ssl: {name}: cannot be fetched from the Hugging Face hub")
    assert re.search(said, line), line
    assert not (here.folder / "out").exists()


def test_no_name_of_the_hub() -> None:
    """Its client sees that without asking."""
    with pytest.raises(ConversionError, match=r"some--one/model: .*no such folder here, and not a name"):
        fetched("some--one/model", pickles=False)


def test_with_a_token(here: Here, sources: Sources, tmp_path: Path) -> None:
    for token, status in ((EXPIRED, "Invalid credentials"), (NARROW, "Forbidden")):
        denied = refused(here.run("convert", "someone/model", "out", HF_TOKEN=token))
        assert re.search(f"someone/model: .*{status}.*: log in .*set HF_TOKEN$", denied), denied
    assert same(here.converted("someone/gated", "out", HF_TOKEN=TOKEN), sources.new, tmp_path)


def test_out_of_reach(here: Here) -> None:
    held, nowhere = unreachable()
    with held:
        down = refused(here.run("convert", "someone/model", "out", HF_ENDPOINT=nowhere))
        offline = refused(
            here.run("convert", "someone/model", "out", HF_ENDPOINT=nowhere, HF_HUB_OFFLINE="1")
        )
    assert "no network to it" in down and "Connection refused" in down and "network" in down
    assert "HF_HUB_OFFLINE" in offline and "without" in offline


def test_cut_off_for_good(hub: Hub, here: Here, sources: Sources, tmp_path: Path) -> None:
    """What is not whole is not taken for a model by the next run."""
    hub.cuts["model.safetensors"] = Cut(offset=50_000, times=100, reset=True)
    line = refused(here.run("convert", "someone/model", "out"))
    assert re.search("someone/model: cannot be fetched .*reset.*: try again", line), line
    hub.cuts.clear()
    assert same(here.converted("someone/model", "out"), sources.new, tmp_path)


def test_cut_off_once(hub: Hub, here: Here, sources: Sources, tmp_path: Path) -> None:
    """It goes on from where it was, and says nothing about it."""
    files = files_in(sources.large)
    hub.repositories["someone/large"] = Repository({"main": files})
    hub.cuts["model.safetensors"] = Cut(offset=len(files["model.safetensors"]) - 1, times=1)
    assert same(here.converted("someone/large", "out"), sources.large, tmp_path)
    assert hub.ranges() == [f"bytes={10 * 2**20}-"] and hub.cuts["model.safetensors"].times == 0


def test_a_damaged_file(hub: Hub, here: Here, sources: Sources, tmp_path: Path) -> None:
    """What it says to remove is what keeps the mended one from being fetched."""
    whole = files_in(sources.new)
    damaged = whole | {"model.safetensors": whole["model.safetensors"][:60_000]}
    hub.repositories["someone/damaged"] = Repository({"main": damaged})
    line = refused(here.run("convert", "someone/damaged", "out"))
    assert (found := re.search(r"someone/damaged: .*model.safetensors.*not whole.*remove (\S+)", line)), line
    assert Path(found[1]).is_relative_to(here.folder / "home")
    shutil.rmtree(found[1])
    hub.repositories["someone/damaged"] = Repository({"main": whole})
    assert same(here.converted("someone/damaged", "out"), sources.new, tmp_path)

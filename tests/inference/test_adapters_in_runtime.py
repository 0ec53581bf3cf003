"""Heads with an adapter, whose outputs stand for several frames: in windows, in words, as text settles."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.v1.partial_text import Settling
from speech_ssl.checkpoints.artifact import Artifact, Head, add_head, load_artifact
from speech_ssl.inference import Runtime
from speech_ssl.inference.answers import Clock, align_text, settled, transcribe
from speech_ssl.inference.ctc.word_times import of_every
from speech_ssl.model.heads.specs import AdapterSpec, CTCSpec
from tests.inference.posteriors import LETTERS, on_path, path_of
from tests.narrow import save_narrow

pytestmark = pytest.mark.numerical

HOP, FIELD = 320, 400
SYMBOLS = LETTERS.symbols
BLOCKS = AdapterSpec(kind="blocks", layers=1, width=16, heads=2, ffn_width=20)
ADAPTERS = {2: BLOCKS, 8: AdapterSpec(kind="convolutions", layers=3, width=12)}
strides = pytest.mark.parametrize("stride", ADAPTERS)


def spec_of(stride: int) -> CTCSpec:
    return CTCSpec(vocabulary=SYMBOLS, adapter=ADAPTERS.get(stride))


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, round(16_000 * seconds)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def own_randomness() -> Iterator[None]:
    """Other tests draw as if these were not there."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Artifact]:
    """By stride. Their outputs vary, and a space is not rare."""
    made = {}
    for stride in ADAPTERS:
        folder = save_narrow(tmp_path_factory.mktemp("artifacts") / f"narrow{stride}")
        spec = spec_of(stride)
        torch.manual_seed(0)
        module = spec.build(load_artifact(folder).encoder.config)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))
            module.logits.bias[1] += 0.5
        made[stride] = load_artifact(add_head(folder, folder, "ctc", Head(spec, module, {}, "CC0")))
    return made


def whole_of(runtime: Runtime, wave: np.ndarray) -> Any:
    return runtime._wholes([wave], None, ["ctc"])[0]


@strides
@pytest.mark.parametrize("more", [0, 1, 7])
def test_windows_agree_on_which_frames_have_outputs(
    artifacts: dict[int, Artifact], stride: int, more: int
) -> None:
    runtime = Runtime(artifacts[stride], window_s=1.5, context_s=0.3)
    wave = noise(7.3)[: 7 * 16_000 + more * HOP]
    outputs_TV = whole_of(runtime, wave).passed.heads["ctc"]
    count = runtime.chunker.frame_count(len(wave))
    assert np.array_equal(outputs_TV, np.repeat(outputs_TV[::stride], stride, axis=0)[:count])
    first, plan = 0, runtime.plan_of(wave)
    assert len(plan) > 5
    for window in plan:
        part = wave[window.start : window.stop]
        (own,) = runtime.run_windows([part], [None], ["ctc"], [window.level])
        kept = own.heads["ctc"][::stride][window.skip // stride :][: -(-window.keep // stride)]
        joined = outputs_TV[first : first + window.keep][::stride]
        np.testing.assert_allclose(joined, kept, atol=1e-4)
        first += window.keep
    assert first == count and len(np.unique(outputs_TV, axis=0)) == -(-count // stride)


@strides
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_clip_has_the_same_outputs_in_any_company(
    artifacts: dict[int, Artifact], stride: int, precision: Any
) -> None:
    runtime = Runtime(artifacts[stride], precision=precision)
    waves = [noise(seconds) for seconds in (0.025, 0.06, 0.51, 1.3)]
    together = runtime.run_windows(waves, [None] * len(waves), ["ctc"])
    for wave, one in zip(waves, together, strict=True):
        (alone,) = runtime.run_windows([wave], [None], ["ctc"])
        difference = np.abs(alone.heads["ctc"] - one.heads["ctc"]).max()
        assert difference <= 1e-4


def test_windows_of_other_models_stay_as_they_are(artifacts: dict[int, Artifact]) -> None:
    """Only heads with an adapter ask for multiples."""
    without = replace(artifacts[2], heads={})
    assert Runtime(without).chunker.multiple == 1 and Runtime(without).chunker.window == 999
    assert [Runtime(artifacts[stride]).chunker.multiple for stride in (2, 8)] == [2, 8]


@strides
def test_text_settles_as_in_the_whole(artifacts: dict[int, Artifact], stride: int) -> None:
    """Piece by piece, cut at spaces, it is the text of the whole clip."""

    class Aside:
        async def aside(self, work: Callable[[], Any]) -> Any:
            return work()

    runtime = Runtime(artifacts[stride], window_s=1.5, context_s=0.3)
    wave = noise(9.1)
    whole = whole_of(runtime, wave)
    count = len(whole.passed.loudness)
    path = np.random.default_rng(0).choice([0, 0, 1, 2, 3, 4], -(-count // stride)).tolist()
    outputs_TV = np.repeat(on_path(path, len(SYMBOLS)), stride, axis=0)[:count]
    whole = replace(whole, passed=whole.passed._replace(heads={"ctc": outputs_TV}))
    settling = Settling(Aside(), runtime.answering, "ctc")  # type: ignore[arg-type]

    async def told() -> int:
        first, pieces, plan = 0, 0, runtime.plan(len(wave))
        for window in plan:
            part = whole.passed.kept(first, window.keep)
            first += window.keep
            pieces += bool(await settling.more(part, whole.duration_s, last=window is plan[-1]))
        return pieces

    assert asyncio.run(told()) > 2
    assert settling.told == runtime.answering.transcript(whole, "ctc").text and " " in settling.told


def test_what_is_settled_ends_where_outputs_do() -> None:
    path = path_of("--ab c- d-a-", LETTERS)
    repeated = np.repeat(on_path(path, len(SYMBOLS)), 8, axis=0)
    assert settled(repeated, spec_of(8)) == 8 * 7
    assert settled(repeated[:-7], spec_of(8)) == 8 * 7


@strides
def test_words_are_where_their_outputs_are(stride: int) -> None:
    """Output k is centred on frame k * stride: its word lies around that, and is as with a clock of long
    hops."""
    path = path_of("----aabb---- ---c-c-d-----", LETTERS)
    log_probs = on_path(path, len(SYMBOLS))
    repeated = np.repeat(log_probs, stride, axis=0)[: stride * len(path) - stride + 1]
    duration_s = (HOP * (len(repeated) - 1) + FIELD) / 16_000
    clock = Clock(HOP / 16_000, FIELD / 16_000, duration_s)
    said = transcribe(repeated, spec_of(stride), clock, None)
    assert said.text == "ab ccd"
    slow = replace(clock, hop_s=stride * HOP / 16_000)
    plain = replace(spec_of(stride), adapter=None)
    assert said == transcribe(log_probs, plain, slow, None)
    assert align_text(repeated, "ab ccd", spec_of(stride), clock).words == said.words
    spikes = [(4, 7), (16, 20)]
    for word, (first, last) in zip(said.words, spikes, strict=True):
        begin, end = ((k * stride * HOP + FIELD / 2) / 16_000 for k in (first, last))
        assert word.start <= begin and end <= word.end
        assert max(begin - word.start, word.end - end) <= 0.6 * stride * HOP / 16_000 + 0.1


def test_the_first_word_does_not_begin_before_the_clip() -> None:
    repeated = np.repeat(on_path(path_of("aa-b-", LETTERS), len(SYMBOLS)), 8, axis=0)
    said = transcribe(repeated, spec_of(8), Clock(0.02, 0.025, 0.825), None)
    assert said.words[0].start == 0 and said.words[0].end <= 0.825


@strides
def test_words_end_where_it_is_quiet(artifacts: dict[int, Artifact], stride: int) -> None:
    """Two bursts of noise with silence around them; of each an output in its middle says a letter."""
    runtime = Runtime(artifacts[stride])
    long_hop = stride * HOP
    bursts, wave = [(1.01, 1.37), (2.03, 2.42)], np.zeros(4 * 16_000, dtype=np.float32)
    path = [0] * -(-runtime.chunker.frame_count(len(wave)) // stride)
    for start, stop in bursts:
        at = slice(round(16_000 * start), round(16_000 * stop))
        wave[at] = noise(4)[at]
        path[round((8_000 * (start + stop) - FIELD / 2) / long_hop)] = SYMBOLS.index("a")
    path[round((16_000 * 1.7 - FIELD / 2) / long_hop)] = SYMBOLS.index(" ")
    whole = whole_of(runtime, wave)
    heads = {"ctc": np.repeat(on_path(path, len(SYMBOLS)), stride, axis=0)[: len(whole.passed.loudness)]}
    said = runtime.answering.transcript(replace(whole, passed=whole.passed._replace(heads=heads)), "ctc")
    assert said.text == "a a"
    for word, (start, stop) in zip(said.words, bursts, strict=True):
        assert word.start == pytest.approx(start, abs=0.006) and word.end == pytest.approx(stop, abs=0.006)


@given(stride=st.sampled_from([2, 4, 8]), frames=st.integers(1, 40))
def test_loudness_is_regrouped_around_the_middles_of_outputs(stride: int, frames: int) -> None:
    """Each quarter of a frame stays at its time; beyond the ends it is as at the ends."""
    loudness_TE = np.arange(4.0 * frames, dtype=np.float32).reshape(frames, 4)
    found = of_every(stride, loudness_TE)
    assert found.shape == (-(-frames // stride), 4 * stride)
    for k, row in enumerate(found):
        for part, value in enumerate(row):
            at = 4 * k * stride + 2 - 2 * stride + part  # quarters: the middle of frame k * stride is at + 2
            assert value == min(max(at, 0), 4 * frames - 1)
    assert of_every(stride, np.empty((0, 0), dtype=np.float32)).size == 0


def test_an_adapter_takes_part_in_an_artifact(artifacts: dict[int, Artifact], tmp_path: Path) -> None:
    assert artifacts[8].heads["ctc"].spec == spec_of(8)
    runtime = Runtime(artifacts[8])
    assert runtime.card().heads["ctc"].stride == 8

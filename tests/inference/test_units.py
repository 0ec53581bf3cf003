"""Vocabularies of thousands of units: the same answers, in memory that their size does not decide."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest

from speech_ssl import audio
from speech_ssl.inference import Runtime
from speech_ssl.inference.answers import align_text, settled, transcribe
from speech_ssl.inference.ctc import beam, beam_words
from speech_ssl.inference.ctc.beam import BeamSearch
from speech_ssl.inference.engines import torch as engines
from speech_ssl.inference.units import KEPT, TopUnits, best_path, blanks, dense
from speech_ssl.model.heads.specs import CTCSpec
from speech_ssl.text import BLANK, SPACE, Vocabulary
from speech_ssl.types import Waveform
from tests.inference.posteriors import LogProbs, log_softmax, random_log_probs
from tests.narrow import narrow_runtime

MANY = (BLANK, SPACE, *map(chr, range(0x4E00, 0x4E00 + 3_000)))
SPEC = CTCSpec(vocabulary=MANY)


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return narrow_runtime(window_s=4.0, context_s=0.5, specs={"ctc": SPEC})


@pytest.fixture(scope="module")
def wave(prompts: Path) -> Waveform:
    paths = sorted((prompts / "audio").glob("*.flac"))
    return np.concatenate([audio.decode(path) for path in paths[:20]])[: 12 * 16_000]


@pytest.fixture(scope="module")
def whole_TV(wave: Waveform) -> LogProbs:
    """All units of all frames."""
    runtime = narrow_runtime(window_s=4.0, context_s=0.5, specs={"ctc": SPEC})
    (whole,) = runtime._wholes([wave], None, ["ctc"], range(len(MANY)))
    return dense(whole.passed.heads["ctc"])


def spoken(frames: int, units: int, seed: int) -> LogProbs:
    """A sure unit in each fourth frame, blanks around it, and noise."""
    rng = np.random.default_rng(seed)
    logits_TV = 1.5 * rng.normal(size=(frames, units))
    logits_TV[np.arange(frames), np.where(np.arange(frames) % 4, 0, rng.integers(1, units, frames))] += 11
    return log_softmax(logits_TV)


def test_the_likeliest_units_are_kept_of_each_frame(runtime: Runtime, wave: Waveform, whole_TV: LogProbs):
    (whole,) = runtime._wholes([wave], None, ["ctc"])
    kept = whole.passed.heads["ctc"]
    assert isinstance(kept, TopUnits) and kept.shape == whole_TV.shape
    assert whole.passed.nbytes < 520 * len(kept) < whole_TV.nbytes / 20
    best_T, best_log_prob_T = best_path(kept)
    assert np.array_equal(best_T, whole_TV.argmax(1))
    np.testing.assert_allclose(best_log_prob_T, whole_TV.max(1), atol=1e-5)
    np.testing.assert_allclose(blanks(kept), whole_TV[:, 0], atol=1e-5)
    again_TV = dense(kept)
    np.testing.assert_allclose(np.exp(again_TV, dtype=np.float64).sum(1), 1, atol=1e-3)
    likely = whole_TV >= np.sort(whole_TV, axis=1)[:, -KEPT, None]
    np.testing.assert_allclose(again_TV[likely], whole_TV[likely], atol=1e-5)


def test_the_answers_are_those_of_all_units(runtime: Runtime, wave: Waveform, whole_TV: LogProbs):
    (whole,) = runtime._wholes([wave], None, ["ctc"])
    clock, loudness_TE = runtime.answering.clock(whole), whole.passed.loudness
    kept = whole.passed.heads["ctc"]
    assert settled(kept, SPEC) == settled(whole_TV, SPEC)
    for decoder in (None, BeamSearch(Vocabulary(MANY), beam=4)):
        found, expected = (transcribe(x, SPEC, clock, decoder, loudness_TE) for x in (kept, whole_TV))
        assert found.text == expected.text and len(found.text) > 20
        assert [(w.word, w.start, w.end) for w in found.words] == [
            (w.word, pytest.approx(w.start), pytest.approx(w.end)) for w in expected.words
        ]
        assert [w.score for w in found.words] == pytest.approx([w.score for w in expected.words], rel=1e-3)


def test_a_known_text_is_aligned_by_its_own_units(runtime: Runtime, wave: Waveform, whole_TV: LogProbs):
    """However unlikely they are."""
    text = f"{MANY[7]}{MANY[2_000]} {MANY[3]}"
    (found,) = runtime.align([wave], [text])
    (whole,) = runtime._wholes([wave], None, ["ctc"])
    expected = align_text(whole_TV, text, SPEC, runtime.answering.clock(whole), whole.passed.loudness)
    assert found.words == [replace(w, score=pytest.approx(w.score, rel=1e-3)) for w in expected.words]
    with pytest.raises(ValueError, match="the vocabulary has no 'x'"):
        runtime.align([wave], ["x"])


@pytest.mark.parametrize("seed", range(3))
def test_a_beam_search_finds_with_the_likeliest_what_it_finds_with_all(
    monkeypatch: pytest.MonkeyPatch, seed: int
):
    log_probs_TV = spoken(60, len(MANY), seed)
    few = BeamSearch(Vocabulary(MANY), beam=8).n_best(log_probs_TV, 3)
    for module in (beam, beam_words):
        monkeypatch.setattr(module, "WHOLE", len(MANY))
    every = BeamSearch(Vocabulary(MANY), beam=8).n_best(log_probs_TV, 3)
    assert [h.text for h in few] == [h.text for h in every]
    assert [h.score for h in few] == pytest.approx([h.score for h in every], abs=0.01)


@pytest.mark.parametrize("units", [30, 400])
def test_words_add_the_same_to_few_units_as_to_many(monkeypatch: pytest.MonkeyPatch, units: int):
    """A lexicon, with contexts that hold what each unit adds, and with those that are asked for some."""
    vocabulary = Vocabulary((BLANK, SPACE, *map(chr, range(97, 97 + units))))
    log_probs_TV = random_log_probs(40, len(vocabulary.symbols), 3)
    lexicon = ["ab", "abc", "b", "cab", "dd"]
    found = []
    for whole in (1, 1_000):
        for module in (beam, beam_words):
            monkeypatch.setattr(module, "WHOLE", whole)
        monkeypatch.setattr(beam, "KEPT", len(vocabulary.symbols))
        found.append(BeamSearch(vocabulary, beam=6, lexicon=lexicon).n_best(log_probs_TV, 6))
    assert [h.text for h in found[0]] == [h.text for h in found[1]]
    assert [h.score for h in found[0]] == pytest.approx([h.score for h in found[1]])


def test_a_beam_search_takes_little_memory():
    """Of a vocabulary of 3,000 units 10 s took 300 MB: each prefix that ever was kept what all units add."""
    log_probs_TV = spoken(500, len(MANY), 0)
    search = BeamSearch(Vocabulary(MANY))
    tracemalloc.start()
    try:
        assert len(search(log_probs_TV).text) > 100
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6


def test_what_leaves_the_beam_is_forgotten():
    """But for what those in the beam have grown out of."""
    log_probs_TV = random_log_probs(500, 4, 0, 3.0)
    search = BeamSearch(Vocabulary((BLANK, *" ab")), beam=8)
    kept = search._begin()
    for row_V in log_probs_TV.astype(np.float64):
        kept = search._step(kept, row_V, search._all)
    before = len(kept.grown)
    kept.forget()
    ancestors = set()
    for prefix in kept.prefixes:
        while prefix.parent is not None:
            ancestors.add(prefix)
            prefix = prefix.parent
    assert set(kept.grown.values()) == ancestors and len(ancestors) < before / 3


def test_a_batch_of_outputs_is_not_held_by_a_part_of_it(runtime: Runtime, wave: Waveform):
    (passed,) = runtime.run_windows([wave[:32_000]], [None], ["ctc"])
    kept = passed.heads["ctc"]
    assert isinstance(kept, TopUnits)
    assert kept.units_TK.dtype == np.uint16 and kept.log_probs_TK.base is None
    through_a_pipe = ForkingPickler.loads(ForkingPickler.dumps(passed))
    assert np.array_equal(through_a_pipe.heads["ctc"].dense(), kept.dense())
    assert engines.WindowOutput.joined([passed, passed]).heads["ctc"].shape == (2 * len(kept), len(MANY))

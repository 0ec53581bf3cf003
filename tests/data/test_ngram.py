"""The n-gram: probabilities that sum to 1, KenLM's reading of them, and the formula by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speech_ssl.data import ngram
from speech_ssl.data.manifest import read_manifest
from speech_ssl.data.ngram import write_arpa
from speech_ssl.text import normalize
from tests.arpa import Arpa

WORDS = st.lists(st.sampled_from([*"abcd"]), max_size=6)
CORPORA = st.lists(WORDS.map(" ".join), min_size=1, max_size=8).filter(any)


def arpa_of(texts: list[str], folder: Path, order: int) -> Arpa:
    write_arpa(texts, folder / "lm.arpa", order=order)
    return Arpa(folder / "lm.arpa")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=CORPORA, order=st.integers(2, 4))
def test_the_words_after_every_context_sum_to_1(tmp_path: Path, texts: list[str], order: int) -> None:
    lm = arpa_of(texts, tmp_path, order)
    to_come = [word for word in lm.words if word != "<s>"]
    contexts = [(), ("<s>",), ("e",), *lm.probability]
    for context in contexts:
        if context[-1:] != ("</s>",):
            total = sum(math.exp(lm.log_prob(word, context)) for word in to_come)
            assert total == pytest.approx(1, abs=2e-6), context


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    texts=CORPORA,
    order=st.integers(2, 4),
    said=st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), max_size=5),
)
def test_kenlm_reads_the_same(tmp_path: Path, texts: list[str], order: int, said: list[str]) -> None:
    kenlm = pytest.importorskip("kenlm")
    lm = arpa_of(texts, tmp_path, order)
    config = kenlm.Config()
    config.show_progress, config.arpa_complain = False, kenlm.ARPALoadComplain.NONE
    model = kenlm.Model(str(tmp_path / "lm.arpa"), config)
    scores = [score for score, _, _ in model.full_scores(" ".join(said), bos=True, eos=True)]
    assert [score * math.log(10) for score in scores] == pytest.approx(lm.steps(said), abs=1e-4)


def test_a_corpus_by_hand(tmp_path: Path) -> None:
    """Bigrams of "a b", "a b", "a c": discount 2 of 2 + 2 * 2; unigrams count the words before."""
    lm = arpa_of(["a b", "a b", "a c"], tmp_path, 2)
    # Counts: <s> a 3, a b 2, a c 1, b </s> 2, c </s> 1: n1 = 2, n2 = 2. Continuations: a 1, b 1, c 1, </s> 2.
    discount, below = 2 / (2 + 2 * 2), 3 / (3 + 2 * 1)
    uniform = 1 / 5  # a, b, c, </s>, <unk>
    weight = below * 4 / 5

    def unigram(count: int) -> float:
        return (count - below) / 5 + weight * uniform

    expected = {("b",): unigram(1), ("</s>",): unigram(2), ("<unk>",): weight * uniform}
    expected["a", "b"] = (2 - discount) / 3 + discount * 2 / 3 * unigram(1)
    expected["<s>", "a"] = (3 - discount) / 3 + discount / 3 * unigram(1)
    for gram, probability in expected.items():
        assert math.exp(lm.probability[gram]) == pytest.approx(probability, rel=1e-6)
    assert math.exp(lm.backoff["a",]) == pytest.approx(discount * 2 / 3, rel=1e-6)
    assert math.exp(lm.log_prob("a", ("a",))) == pytest.approx(discount * 2 / 3 * unigram(1), rel=1e-6)
    assert lm.announced == {1: 6, 2: 5}


def test_what_follows_often_is_probable_and_a_longer_context_tells_more(tmp_path: Path) -> None:
    texts = ["red wine please", "red wine please", "white wine sir", "white wine sir", "wine"]
    lm = arpa_of(texts, tmp_path, 3)
    assert lm.log_prob("please", ("red", "wine")) > lm.log_prob("sir", ("red", "wine")) + 1
    assert lm.log_prob("please", ("wine",)) == pytest.approx(lm.log_prob("sir", ("wine",)))
    assert lm.announced == {1: 8, 2: 10, 3: 7}


@pytest.mark.parametrize(
    ("texts", "order", "message"),
    [
        (["a b"], 1, "order must be 2 to 6, not 1"),
        (["a b"], 7, "order must be 2 to 6, not 7"),
        ([], 3, "no words to estimate"),
        (["", "  "], 3, "no words to estimate"),
        (["a <unk> b"], 3, "'<unk>' is a mark"),
    ],
)
def test_what_cannot_be_estimated(tmp_path: Path, texts: list[str], order: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_arpa(texts, tmp_path / "lm.arpa", order=order)
    assert not (tmp_path / "lm.arpa").exists()


def test_the_command_reads_the_training_rows(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lm.arpa"
    assert ngram.main([str(prompts / "manifest.tsv"), str(out), "--order", "2"]) == 0
    assert "128 texts" in capsys.readouterr().out
    rows = read_manifest(prompts / "manifest.tsv")
    train = {word for row in rows if row.split == "train" for word in normalize(row.text).split()}
    assert set(Arpa(out).words) == train | {"<s>", "</s>", "<unk>"}
    assert Arpa(out).order == 2


@pytest.mark.parametrize("arguments", [["no.tsv", "out.arpa"], ["MANIFEST", "no/folder/out.arpa"]])
def test_the_command_says_what_is_wrong_in_one_line(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    manifest, out = arguments
    manifest = str(prompts / "manifest.tsv") if manifest == "MANIFEST" else str(tmp_path / manifest)
    assert ngram.main([manifest, str(tmp_path / out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1

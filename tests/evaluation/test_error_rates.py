"""Error rates against an edit distance of our own, closed forms, and what empty texts are."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_ssl.evaluation.metrics.error_rates import Errors, Stretch, differences, error_rates
from speech_ssl.text import normalize

WORDS = st.lists(st.sampled_from(["a", "A", "b,", "b", "cat", "...", "\u00e9t\u00e9"]), max_size=6).map(
    " ".join
)
PAIRS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5).filter(
    lambda pairs: any(normalize(reference) for reference, _ in pairs)
)


def edit_distance(old: Sequence[str], new: Sequence[str]) -> int:
    """Levenshtein distance by its recurrence."""
    row = list(range(len(new) + 1))
    for i, was in enumerate(old, start=1):
        above, row = row, [i]
        for j, is_now in enumerate(new, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (was != is_now)))
    return row[-1]


def check(errors: Errors, pairs: list[tuple[Sequence[str], Sequence[str]]]) -> None:
    assert errors.total == sum(len(old) for old, _ in pairs)
    assert errors.count == sum(edit_distance(old, new) for old, new in pairs)
    assert errors.insertions - errors.deletions == sum(len(new) - len(old) for old, new in pairs)
    assert min(errors.substitutions, errors.deletions, errors.insertions) >= 0


@settings(deadline=None)
@given(PAIRS)
def test_sums_of_edit_distances(pairs: list[tuple[str, str]]) -> None:
    rates = error_rates(*zip(*pairs, strict=True))
    normal = [(normalize(reference), normalize(hypothesis)) for reference, hypothesis in pairs]
    assert rates.utterances == len(pairs)
    check(rates.words, [(old.split(), new.split()) for old, new in pairs])
    check(rates.characters, pairs)
    check(rates.normalized_words, [(old.split(), new.split()) for old, new in normal])
    check(rates.normalized_characters, normal)
    assert rates.wer == rates.words.count / rates.words.total
    assert rates.cer == rates.characters.count / rates.characters.total
    assert rates.normalized_wer == rates.normalized_words.count / rates.normalized_words.total
    assert rates.normalized_cer == rates.normalized_characters.count / rates.normalized_characters.total


@settings(deadline=None)
@given(PAIRS, st.randoms(use_true_random=False))
def test_the_order_of_utterances_changes_nothing(pairs: list[tuple[str, str]], random) -> None:
    shuffled = random.sample(pairs, len(pairs))
    assert error_rates(*zip(*pairs, strict=True)) == error_rates(*zip(*shuffled, strict=True))


def test_counts_by_hand() -> None:
    rates = error_rates(["Hello, big World!", "so it is"], ["hello world", "so it was not"])
    assert rates.words == Errors(total=6, substitutions=3, deletions=1, insertions=1)
    assert rates.normalized_words == Errors(total=6, substitutions=1, deletions=1, insertions=1)
    assert rates.wer == 5 / 6 and rates.normalized_wer == 0.5
    assert rates.characters.total == len("Hello, big World!") + len("so it is")
    assert rates.normalized_characters.total == len("hello big world") + len("so it is")


def test_equal_texts_have_no_errors_and_normal_forms_forgive() -> None:
    same = error_rates(["It is so.", "Yes"], ["It is so.", "Yes"])
    assert same.wer == same.cer == same.normalized_wer == same.normalized_cer == 0
    loose = error_rates(["It\u2019s SO."], ["it's so"])
    assert loose.wer == 1 and loose.cer > 0 and loose.normalized_wer == loose.normalized_cer == 0


def test_the_corpus_is_summed_before_it_is_divided() -> None:
    rates = error_rates(["a b c d e f g h i", "a"], ["a b c d e f g h i", "b"])
    assert rates.wer == 0.1  # and not the mean of 0 and 1


def test_empty_texts() -> None:
    rates = error_rates(["a b", "", "", "c"], ["", "x y z", "", "c"])
    assert rates.words == Errors(total=3, substitutions=0, deletions=2, insertions=3)
    assert rates.characters == Errors(total=4, substitutions=0, deletions=3, insertions=5)
    assert rates.wer > 1
    vanishing = error_rates(["...", "yes"], ["oh", "yes"])  # nothing is left of the dots
    assert vanishing.normalized_words == Errors(total=1, substitutions=0, deletions=0, insertions=1)


def test_whitespace_is_one_space_between_words() -> None:
    rates = error_rates([" a\t b\n"], ["a b "])
    assert rates.wer == rates.cer == 0 and rates.characters.total == 3


@pytest.mark.parametrize(
    ("references", "hypotheses", "reason"),
    [
        (["a"], ["a", "b"], "1 references but 2 hypotheses"),
        ([], [], "the references have no words:"),
        (["", " \t"], ["a", ""], "the references have no words:"),
        (["?", ""], ["a", ""], "no words once normalised"),
        ("text", ["text"], "references must be a list of texts"),
        (["text"], "text", "hypotheses must be a list of texts"),
        (["text"], [None], "hypotheses must be a list of texts"),
    ],
)
def test_refusals(references, hypotheses, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refusal:
        error_rates(references, hypotheses)
    assert "\n" not in str(refusal.value)


@settings(deadline=None)
@given(WORDS, WORDS)
def test_runs_make_up_both_texts_with_the_fewest_errors(reference: str, hypothesis: str) -> None:
    runs = differences(reference, hypothesis)
    assert " ".join(run.reference for run in runs if run.reference) == reference
    assert " ".join(run.hypothesis for run in runs if run.hypothesis) == hypothesis
    assert all((run.reference == run.hypothesis) == (run.kind == "equal") for run in runs)
    errors = sum(
        max(len(run.reference.split()), len(run.hypothesis.split())) for run in runs if run.kind != "equal"
    )
    assert errors == edit_distance(reference.split(), hypothesis.split())


def test_runs_by_hand() -> None:
    assert differences("the cat  sat on it", "the cat sits on it now") == [
        Stretch("equal", "the cat", "the cat"),
        Stretch("substitute", "sat", "sits"),
        Stretch("equal", "on it", "on it"),
        Stretch("insert", "", "now"),
    ]
    assert differences("gone", "") == [Stretch("delete", "gone", "")]
    assert differences("", "") == []


@pytest.mark.parametrize("call", [lambda: error_rates(["a"], ["a"]), lambda: differences("a", "a")])
def test_without_jiwer_the_extra_is_named(call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs jiwer: install the `eval` extra"):
        call()

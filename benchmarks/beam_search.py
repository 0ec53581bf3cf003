"""Prefix beam search beside that of published packages: whether it is exact, and how long it takes.

    python -m benchmarks.beam_search [--beam 32] [--utterances 10] [--tiny]

Exact: of 100 random cases of 5 frames and 3 characters, how often a beam that holds everything finds the text
whose paths are the most probable together, as summed over all paths. Time: of one utterance of 10 s, 500
frames of 32 units, made of the texts of the shipped prompts' dev rows with spikes, blanks and confusions:
without a language model, with a trigram of all rows, and with one of the train rows, which does not know half
of the words. WER is that of these made-up utterances: it shows what a search makes of a language model, not
how well a model hears. Ends with status 1 if ours is not exact.

What is not installed has no row: flashlight-text (through torchaudio), pyctcdecode (pins numpy below 2:
--no-deps, with pygtrie), ctc-beam-decoder, fast-ctc-decode. The trigrams need the extra `lm`.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import speech_ssl
from speech_ssl.data.manifest import read_manifest
from speech_ssl.data.ngram import write_arpa
from speech_ssl.data.splits import given_splits
from speech_ssl.inference.ctc.beam import LM_WEIGHT, WORD_SCORE, BeamSearch
from speech_ssl.text import BLANK, Vocabulary, normalize

CHARACTERS = " 'abcdefghijklmnopqrstuvwxyz123"
VOCABULARY = Vocabulary((BLANK, *CHARACTERS))
FRAMES = 500
ALL, NEVER = 5000, -1e4  # a beam that holds everything; a log-probability that prunes nothing

LogProbs = NDArray[np.float32]
Decode = Callable[[LogProbs], str]
Build = Callable[["Setting"], Decode]


@dataclass(frozen=True)
class Setting:
    characters: str
    beam: int
    exact: bool = False
    arpa: Path | None = None
    words: tuple[str, ...] = ()


def ours(setting: Setting) -> Decode:
    search = BeamSearch(Vocabulary((BLANK, *setting.characters)), beam=setting.beam, lm=setting.arpa)
    return lambda log_probs_TV: search(log_probs_TV).text


def flashlight(setting: Setting) -> Decode:
    """With a language model it needs a lexicon: the words of that."""
    import torch
    from torchaudio.models.decoder import ctc_decoder

    tokens = [BLANK, *setting.characters.replace(" ", "|")]
    if " " not in setting.characters:
        tokens.append("|")
    with tempfile.TemporaryDirectory() as folder:
        lexicon = Path(folder) / "lexicon.txt"
        lexicon.write_text("".join(f"{word} {' '.join(word)} |\n" for word in setting.words))
        search = ctc_decoder(
            lexicon=str(lexicon) if setting.arpa else None,
            tokens=tokens,
            lm=str(setting.arpa) if setting.arpa else None,
            beam_size=setting.beam,
            beam_threshold=-NEVER if setting.exact else 50,
            lm_weight=LM_WEIGHT,
            word_score=WORD_SCORE,
            log_add=True,
            blank_token=BLANK,
            sil_token="|",
        )

    def decode(log_probs_TV: LogProbs) -> str:
        missing = np.full((len(log_probs_TV), len(tokens) - log_probs_TV.shape[1]), NEVER, np.float32)
        best = search(torch.from_numpy(np.concatenate([log_probs_TV, missing], axis=1))[None])[0][0]
        if setting.arpa:
            return " ".join(best.words)
        return "".join(tokens[t] for t in best.tokens.tolist()).replace("|", " ").strip()

    return decode


def pyctcdecode(setting: Setting) -> Decode:
    from pyctcdecode import build_ctcdecoder

    return kensho(setting, build_ctcdecoder)


def ctc_beam_decoder(setting: Setting) -> Decode:
    from ctc_beam_decoder import build_ctcdecoder

    return kensho(setting, build_ctcdecoder)


def kensho(setting: Setting, build: Any) -> Decode:
    search = build(
        ["", *setting.characters],
        kenlm_model_path=str(setting.arpa) if setting.arpa else None,
        alpha=LM_WEIGHT,
        beta=WORD_SCORE,
    )
    nothing_pruned = {"beam_prune_logp": NEVER, "token_min_logp": NEVER} if setting.exact else {}
    return lambda log_probs_TV: search.decode_beams(log_probs_TV, beam_width=setting.beam, **nothing_pruned)[
        0
    ][0]


def fast_ctc_decode(setting: Setting) -> Decode:
    from fast_ctc_decode import beam_search

    if setting.arpa:
        raise NotImplementedError
    cut = 0.0 if setting.exact else 1e-3
    return lambda log_probs_TV: beam_search(
        np.exp(log_probs_TV), "N" + setting.characters, setting.beam, cut
    )[0]


SEARCHES = {
    "ours": ours,
    "flashlight-text": flashlight,
    "pyctcdecode": pyctcdecode,
    "ctc-beam-decoder": ctc_beam_decoder,
    "fast-ctc-decode": fast_ctc_decode,
}


def most_probable(log_probs_TV: LogProbs, vocabulary: Vocabulary) -> str:
    """By the definition: the paths of each text summed."""
    sums: dict[str, float] = {}
    for path in itertools.product(range(len(vocabulary.symbols)), repeat=len(log_probs_TV)):
        log_prob = sum(float(row[unit]) for row, unit in zip(log_probs_TV, path, strict=True))
        text = vocabulary.collapse(path)
        sums[text] = float(np.logaddexp(sums.get(text, -np.inf), log_prob))
    return max(sums, key=sums.__getitem__)


def log_softmax(logits_TV: NDArray[np.float64]) -> LogProbs:
    return np.asarray(logits_TV - np.logaddexp.reduce(logits_TV, axis=-1, keepdims=True), dtype=np.float32)


def tiny_cases(cases: int) -> tuple[list[LogProbs], list[str]]:
    rng, vocabulary = np.random.default_rng(0), Vocabulary((BLANK, *"abc"))
    waves = [log_softmax(rng.normal(size=(5, 4))) for _ in range(cases)]
    return waves, [most_probable(log_probs_TV, vocabulary) for log_probs_TV in waves]


def made_up(texts: Sequence[str], rng: np.random.Generator) -> tuple[LogProbs, str]:
    """10 s in which random texts are said: a spike every 3 to 5 frames, one in ten rather unclear."""
    logits_TV = rng.normal(size=(FRAMES, len(VOCABULARY.symbols)))
    logits_TV[:, 0] += 7
    said, at = "", 3
    while True:
        text = (" " if said else "") + texts[rng.integers(len(texts))]
        if at + 5 * len(text) >= FRAMES:
            return log_softmax(logits_TV), said
        for unit in VOCABULARY.encode(text):
            logits_TV[at, 0] -= 4
            logits_TV[at, unit] += rng.choice([10, 4], p=[0.9, 0.1])
            logits_TV[at, rng.integers(1, logits_TV.shape[1])] += 4
            at += rng.integers(3, 6)
        said += text


def word_errors(heard: str, said: str) -> int:
    row = list(range(len(said.split()) + 1))
    for i, word in enumerate(heard.split(), 1):
        last, row[0] = row[0], i
        for j, other in enumerate(said.split(), 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (word != other))
    return row[-1]


def measure(decode: Decode, utterances: Sequence[tuple[LogProbs, str]]) -> str:
    seconds, errors, words = [], 0, 0
    for log_probs_TV, said in utterances:
        began = time.process_time()
        heard = decode(log_probs_TV)
        seconds.append(time.process_time() - began)
        errors, words = errors + word_errors(heard, said), words + len(said.split())
    return f"{statistics.median(seconds):.3f} s, WER {errors / words:.1%}"


def trigram(plain: Setting, texts: Sequence[str], path: Path) -> Setting:
    write_arpa(texts, path)
    return replace(plain, arpa=path, words=tuple(sorted({word for text in texts for word in text.split()})))


def tried(action: Callable[[Build], str], build: Build) -> str:
    try:
        return action(build)
    except NotImplementedError:
        return "-"
    except (ImportError, RuntimeError):  # torchaudio's, without flashlight-text
        return "not installed"
    except ValueError as error:
        return str(error)[:22]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="CTC prefix beam search beside published packages.")
    parser.add_argument("--beam", type=int, default=32)
    parser.add_argument("--utterances", type=int, default=10)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--tiny", action="store_true", help="few cases, to see that it runs")
    options = parser.parse_args(arguments)
    cases, number = (3, 1) if options.tiny else (options.cases, options.utterances)
    rows = read_manifest(Path(speech_ssl.__file__).parent / "assets" / "prompts" / "manifest.tsv")
    train, dev = ([normalize(row.text) for row in some] for some in given_splits(rows)[:2])
    rng = np.random.default_rng(0)
    utterances = [made_up(dev, rng) for _ in range(number)]
    tiny, right = tiny_cases(cases)

    def exact(build: Build) -> str:
        decode = build(Setting("abc", ALL, exact=True))
        return str(sum(decode(case) == text for case, text in zip(tiny, right, strict=True)))

    heads = ("no language model", "trigram of all rows", "of the train rows")
    print(f"beam {options.beam:<13}exact of {cases:<5}" + "".join(f"{head:24}" for head in heads))
    all_exact = False
    with tempfile.TemporaryDirectory() as folder:
        plain = Setting(CHARACTERS, options.beam)
        settings = [plain, trigram(plain, train + dev, Path(folder) / "all.arpa")]
        settings.append(trigram(plain, train, Path(folder) / "train.arpa"))
        for name, build in SEARCHES.items():
            found = tried(exact, build)
            times = [tried(lambda b, s=s: measure(b(s), utterances), build) for s in settings]
            print(f"{name:18}{found:14}" + "".join(f"{time:24}" for time in times), flush=True)
            all_exact |= name == "ours" and found == str(cases)
    return 0 if all_exact else 1


if __name__ == "__main__":
    sys.exit(main())

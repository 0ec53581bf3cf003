"""SentencePiece models of characters. `golden/characters.model` was made by sentencepiece 0.2.3:
`SentencePieceTrainer.train(model_type="char", bos_id=0, pad_id=1, eos_id=2, unk_id=3, character_coverage=1.0,
normalization_rule_name="identity", ...)` on four lines, and PIECES is what its own `id_to_piece` says."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech_ssl.checkpoints.artifact import ArtifactError
from speech_ssl.checkpoints.fairseq2.sentencepiece import read_units
from speech_ssl.text import Vocabulary

GOLDEN = Path(__file__).parent / "golden" / "characters.model"
PIECES = [*("<s>", "<pad>", "</s>", "<unk>", "▁"), *"otaelnpdghrsuwé'bcfijkmqvxyzàçù中字文符"]


def test_pieces_are_sentencepieces() -> None:
    units = read_units(GOLDEN)
    assert units.symbols == ("<blank>", *PIECES[1:4], " ", *PIECES[5:])
    assert (units.blank, units.blank_index) == ("<s>", 0)
    vocabulary = Vocabulary(units.symbols)
    assert vocabulary.silent == {0, 1, 2, 3}
    path = [
        0,
        2,
        *(PIECES.index(letter) for letter in "t"),
        0,
        PIECES.index("t"),
        4,
        3,
        PIECES.index("字"),
        1,
    ]
    assert vocabulary.collapse(path) == "tt 字"


def message(*pieces: tuple[str, int | None]) -> bytes:
    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    parts = b""
    for text, kind in pieces:
        told = b"" if kind is None else bytes([3 << 3, kind])
        parts += field(1, field(1, text.encode()) + b"\x15\x00\x00\x80\x3f" + told)
    return parts + field(2, b"\x08\x01")


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "has 0 pieces"),
        (message(("<s>", 3)), "has 1 pieces"),
        (message(("<s>", 3), ("▁the", None)), "'▁the': only models of characters"),
        (message(("<s>", 3), ("a", None), ("a", 1)), "a piece occurs twice"),
        (b"\x0a\x05ab", "not a SentencePiece model"),
        (b"\xff" * 40, "not a SentencePiece model"),
        (b"\x0a\x03\x0a\x01\xff", "not a SentencePiece model"),
        (b"\x0b", "not a SentencePiece model"),
        (b"\x0a\x02\x08\x01", "not a SentencePiece model"),
        (b"some text", "not a SentencePiece model"),
    ],
)
def test_what_is_something_else(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "t.model").write_bytes(content)
    with pytest.raises(ArtifactError, match=said) as refused:
        read_units(tmp_path / "t.model")
    assert "\n" not in str(refused.value) and "t.model" in str(refused.value)


def test_symbols_without_text_are_silent(tmp_path: Path) -> None:
    (tmp_path / "t.model").write_bytes(
        message(("pad", 3), ("unknown", 2), ("<0x41>", 6), ("b", 4), ("c", None))
    )
    units = read_units(tmp_path / "t.model")
    assert units.symbols == ("<blank>", "<unknown>", "<0x41>", "b", "c")
    assert Vocabulary(units.symbols).silent == {0, 1, 2}


@given(st.binary(max_size=60), st.integers(0, 508), st.integers(0, 508))
def test_damage_is_told_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, new: bytes, at: int, cut: int
) -> None:
    content = GOLDEN.read_bytes()
    damaged = content[:at] + new + content[at + len(new) :]
    path = tmp_path_factory.mktemp("m") / "t.model"
    for each in (damaged, content[:cut]):
        path.write_bytes(each)
        try:
            assert len(read_units(path).symbols) >= 2
        except ArtifactError as error:
            assert "\n" not in str(error)

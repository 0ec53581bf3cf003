"""The units of a character-level SentencePiece model, such as Omnilingual ASR's, for CTC.

The file is one protocol buffers message (google/sentencepiece, `sentencepiece_model.proto`): the repeated
field 1 is a piece, with its text in field 1 and its type in field 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from speech_ssl.checkpoints.conversion import ConversionError
from speech_ssl.checkpoints.transformers.tokenizer import Units
from speech_ssl.text import BLANK, SPACE

PIECE, TEXT, TYPE = 1, 1, 3
NORMAL, USER_DEFINED = 1, 4
WORD_START = "▁"


def read_units(path: Path) -> Units:
    """The first piece is the blank, as in fairseq2. Pieces that stand for no text, such as `</s>`, are
    computed but never appear in texts. Raises ConversionError."""
    try:
        symbols = [_symbol(text, kind) for text, kind in _pieces(path.read_bytes())]
    except (ValueError, IndexError):  # includes UnicodeDecodeError
        raise ConversionError(f"{path}: not a SentencePiece model") from None
    if len(symbols) < 2:
        raise ConversionError(
            f"{path}: not a SentencePiece model of characters: it has {len(symbols)} pieces"
        )
    blank, *others = symbols
    if part := next((each for each in others if WORD_START in each), None):
        raise ConversionError(f"{path}: has pieces such as {part!r}: only models of characters are supported")
    ours = (BLANK, *others)
    if len(set(ours)) < len(ours):
        raise ConversionError(f"{path}: a piece occurs twice")
    return Units(ours, blank, 0)


def _symbol(text: str, kind: int) -> str:
    if kind not in (NORMAL, USER_DEFINED):
        return text if text.startswith("<") and text.endswith(">") else f"<{text}>"
    return SPACE if text == WORD_START else text


def _pieces(message: bytes) -> Iterator[tuple[str, int]]:
    for number, value in _fields(message):
        if number == PIECE and isinstance(value, bytes):
            fields = dict(_fields(value))
            text, kind = fields.get(TEXT, b""), fields.get(TYPE, NORMAL)
            if not isinstance(text, bytes) or not isinstance(kind, int):
                raise ValueError("a piece without text")
            yield text.decode(), kind


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field. Raises ValueError or IndexError for bytes that are no message."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"wire type {wire}")
        length, place = _varint(message, place) if wire == 2 else (8 if wire == 1 else 4, place)
        if place + length > len(message):
            raise ValueError("cut off")
        yield number, message[place : place + length]
        place += length


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number that does not end")

"""The reader of JSON: what it reads is what Python's own reads; what is wrong or too much costs little."""

from __future__ import annotations

import base64
import binascii
import json
import random
import tracemalloc
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.errors import ServiceError
from service.v1 import json_reader, requests
from service.v1.json_reader import LONG, MAX_DEPTH, MAX_NUMBER, MAX_VALUES, PIECE, Numbers, json_object
from service.v1.requests import unwrapped

MIB, SIZE = 1 << 20, 1 << 18
LIST = b"0.5," * 100


def plain(value: Any) -> Any:
    """Lists again, with floats that compare."""
    if isinstance(value, Numbers):
        return value.values.tolist()
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value


def narrowed(value: Any) -> Any:
    """As `plain`, of what Python's own reader reads: lists of numbers in float32."""
    if isinstance(value, dict):
        return {name: narrowed(each) for name, each in value.items()}
    if isinstance(value, list):
        if value and set(map(type, value)) <= {int, float}:
            with np.errstate(over="ignore"):
                return np.array(value, dtype=np.float64).astype(np.float32).tolist()
        return [narrowed(each) for each in value]
    return value


texts = st.text(max_size=20) | st.text('[]{}",\\:0 ', max_size=40)
numbers = st.lists(st.integers(-(10**6), 10**6) | st.floats(allow_nan=False), max_size=80)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | texts | numbers,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)
objects = st.dictionaries(texts, values, max_size=5)


def same(data: bytes) -> bool:
    """Whether both take it; fails if they read different things."""
    try:
        expected = json.loads(data.decode())
    except (ValueError, RecursionError):
        expected = None
    try:
        found = json_object(data)
    except ServiceError as error:
        assert error.status == 400
        return False
    assert repr(narrowed(plain(found))) == repr(narrowed(expected)), "of repr: NaN is the same as itself"
    return True


@settings(max_examples=40, deadline=None)
@given(value=objects, ascii=st.booleans(), indent=st.none() | st.integers(0, 3))
def test_it_reads_what_json_is(value: dict[str, Any], ascii: bool, indent: int | None) -> None:
    assert same(json.dumps(value, ensure_ascii=ascii, indent=indent).encode())


@settings(max_examples=60, deadline=None)
@given(value=objects, seed=st.integers(0, 2**32))
@example(value={"a": [1] * LONG}, seed=0)
def test_what_is_damaged_is_not_read_as_something_else(value: dict[str, Any], seed: int) -> None:
    data, rng = bytearray(json.dumps(value).encode()), random.Random(seed)
    for _ in range(rng.choice((1, 1, 3))):
        at = rng.randrange(len(data) + 1)
        data[at : at + rng.randrange(3)] = rng.choice(
            (b"", b'"', b"[", b"]", b"}", b"\\", b",", b"0", b"\xe9")
        )
    same(bytes(data))


@pytest.mark.parametrize("size", [LONG, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
def test_long_lists_are_arrays_however_they_are_cut(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_reader, "PIECE", 1_000)
    wanted = np.random.default_rng(size).normal(size=size // 8).astype(np.float32)
    for separators in ((", ", ": "), (",", ":"), (" ,\n\t", ":")):
        data = json.dumps({"a": [wanted.tolist()], "b": "]"}, separators=separators).encode()
        found = json_object(data)
        (row,) = found["a"]
        assert row.values.dtype == np.float32 and found["b"] == "]"
        np.testing.assert_array_equal(row.values, wanted)
    for end in (b",", b",,1", b", ", b"x", b",-", b",1.", b",01", b",+1", b",0x1", b",1 2", b",Nan"):
        with pytest.raises(ServiceError) as refused:
            json_object(b'{"a":[' + b"1," * (size // 2) + b"1.5" + end + b"]}")
        assert "not JSON" in refused.value.message, end


def test_numbers_that_float32_has_not() -> None:
    listed = b"1e400, -1e39, NaN, Infinity, 1e-400, " + b"9" * 400 + b", 0.1" + b", 0" * 50
    found = json_object(b'{"a": [' + listed + b"]}")["a"].values
    np.testing.assert_array_equal(found[:7], np.float32([np.inf, -np.inf, np.nan, np.inf, 0, np.inf, 0.1]))


WRONG = {
    "nothing": (b"", "not JSON"),
    "open": (b"{", "not JSON"),
    "a list": (b"[]", "not a JSON object"),
    "a list of numbers": (b"[" + LIST + b"0]", "not a JSON object"),
    "a list for a name": (b"{[" + LIST + b"0]: 1}", "not JSON"),
    "two lists": (b'{"a": [' + LIST + b"0][" + LIST + b"0]}", "not JSON"),
    "two values": (b'{"a": 1} {"a": 2}', "not JSON"),
    "a text without end": (b'{"a": "b', "not JSON"),
    "an escape without end": (b'{"a": "b\\', "not JSON"),
    "a control character": (b'{"a": "\n"}', "not JSON"),
    "an escape that there is not": (b'{"a": "\\x41"}', "not JSON"),
    "Latin-1": ('{"a": "é"}'.encode("latin-1"), "not JSON"),
    "Latin-1 beside texts": (b'{"a": \xe9}', "not JSON"),
    "an encoded surrogate": (b'{"a": "\xed\xa0\x80"}', "not JSON"),
    "UTF-16": ('{"a": "b"}'.encode("utf-16"), "not JSON"),
    "UTF-16 without a mark": ('{"a": "b"}'.encode("utf-16-le"), "not JSON"),
    "UTF-32": ('{"a": "b"}'.encode("utf-32-be"), "not JSON"),
    "a byte order mark": (b'\xef\xbb\xbf{"a": "b"}', "not JSON"),
    "zero bytes": (bytes(100), "not JSON"),
    "a field twice": (b'{"a": 1, "b": 2, "a": 1}', "field twice"),
    "a field twice, escaped": (b'{"a": 1, "\\u0061": 1}', "field twice"),
    "a field twice, inside": (b'{"a": [{"b": 1, "b": 1}]}', "field twice"),
    "5,000 digits": (b'{"a": ' + b"1" * 5_000 + b"}", "too many digits"),
    "a long number in a long list": (b'{"a": [' + b"1" * (2 * PIECE) + b",1]}", f"{MAX_NUMBER} characters"),
    "100,000 brackets": (b"[" * 100_000, "values"),
    "2,000 brackets": (b"[" * 2_000, "too deep"),
    "deeper than is needed": (b'{"a":' * (MAX_DEPTH + 2) + b"1" + b"}" * (MAX_DEPTH + 2), "too deep"),
    "lists in a list": (b'{"input": [' + b"[]," * 5_000 + b"[]]}", "values"),
    "objects in a list": (b'{"input": [' + b"{}," * 5_000 + b"{}]}", "not of numbers"),
    "texts in a list": (b'{"input": [' + b'"",' * 5_000 + b'""]}', "values"),
    "null in a list": (b'{"input": [' + b"null," * 5_000 + b"0]}", "not of numbers"),
    "truths in a list": (b'{"input": [' + b"true," * 5_000 + b"0]}", "not of numbers"),
    "short lists": (b'{"input": [' + b"[0,0,0]," * 1_000 + b"0]}", "values"),
    "fields": (json.dumps(dict.fromkeys(map(str, range(5_000)), 0)).encode(), "values"),
    "escaped quotes": (b'{"a": "' + b'\\"' * 5_000 + b'"}', "values"),
    "space": (b" " * MIB + b"{}", "KiB"),
    "words": (b'{"a": ' + b"0" * MIB + b"}", "KiB"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused(name: str) -> None:
    data, words = WRONG[name]
    with pytest.raises(ServiceError) as refused:
        json_object(data)
    error = refused.value
    assert (error.status, error.code, error.param) == (400, "malformed_json", None)
    assert words in error.message and len(error.message) < 200


def test_as_many_texts_as_files() -> None:
    data = json.dumps({"input": ["AAAA"] * (MAX_VALUES + 100)}).encode()
    assert len(json_object(data, 200)["input"]) == MAX_VALUES + 100


HEAVY = {
    "lists": b'{"input":[' + b"[]," * (SIZE // 3) + b"[]]}",
    "zeros": b'{"outputs":[' + b"0," * (SIZE // 2) + b"0]}",
    "rows": b'{"outputs":[' + (b"[" + b"0," * 200 + b"0],") * (SIZE // 404) + b"[]]}",
    "objects": b'{"input":[' + b"{}," * (SIZE // 3) + b"{}]}",
    "fields": b"{" + b",".join(b'"%d":0' % index for index in range(SIZE // 10)) + b"}",
    "texts": b'{"input":[' + b'"",' * (SIZE // 3) + b'""]}',
    "words": b'{"input":[' + b"null," * (SIZE // 5) + b"0]}",
    "brackets": b"[" * SIZE,
    "one text": b'{"input":"' + b"A" * SIZE + b'"}',
    "escapes": b'{"input":"' + b"\\/" * (SIZE // 2) + b'"}',
    "no end": b'{"input":"' + b"\\\\" * (SIZE // 2),
}


@pytest.mark.parametrize("name", HEAVY)
def test_memory_is_a_small_multiple_of_the_body(name: str) -> None:
    """Parsing lists of nothing takes 28 times their size, which is so of a piece, and what pydantic says of
    them 300 times."""
    data = HEAVY[name]
    tracemalloc.start()
    try:
        with suppress(ServiceError, ValueError):
            requests._from_json({}, 64, json_object(data))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * len(data) + 30 * PIECE, f"{peak / len(data):.1f} times"


escaped = st.sampled_from(
    ["/", "\\/", "\\u002F", "+", "\\u002b", "A", "z", "9", "\\n", "=", "\\\\", '\\"', "é"]
)


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(escaped, max_size=60))
def test_many_escapes_are_read_in_pieces(parts: list[str]) -> None:
    data = f'{{"a": "{"".join(parts)}"}}'.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_reader, "PIECE", -1)
        assert json_object(data) == json.loads(data)
    for wrong in (b"\\x", b"\\u00", b"\n"):
        damaged = data[:-2] + wrong + data[-2:]
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ServiceError, match="not JSON"):
            patch.setattr(json_reader, "PIECE", -1)
            json_object(damaged)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(min_size=1, max_size=60), piece=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_base64_is_read_in_pieces(data: bytes, piece: int, seed: int) -> None:
    rng = random.Random(seed)
    text = list(base64.b64encode(data).decode())
    for _ in range(rng.randrange(4)):
        text.insert(rng.randrange(len(text) + 1), rng.choice("\n \r\t"))
    spaced = "".join(text)
    for _ in range(rng.choice((0, 0, 1, 2))):
        text[rng.randrange(len(text))] = rng.choice("=A*é\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "_BASE64_PIECE", piece)
        assert unwrapped(spaced, "input") == data
        damaged = "".join(text)
        bare = "".join(damaged.split())
        try:
            if len(bare) % 4:  # Python's takes more `=` than there should be
                raise ValueError
            expected = base64.b64decode(bare, validate=True)
        except (binascii.Error, ValueError):
            with pytest.raises(ServiceError):
                unwrapped(damaged, "input")
        else:
            if expected:
                assert unwrapped(damaged, "input") == expected

"""Pooling piece by piece is pooling of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech_ssl.inference.outputs import Pool
from speech_ssl.types import Features


@given(
    st.sampled_from(["mean", "max"]), st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(0, 99)
)
def test_pieces_pool_as_the_whole(how, sizes: list[int], seed: int):
    rng = np.random.default_rng(seed)
    pieces = [(rng.standard_normal((size, 5)) * 1e3 + 1e4).astype(np.float32) for size in sizes]
    pool = Pool(how)
    for piece in pieces:
        pool.add(piece)
    if not sum(sizes):
        with pytest.raises(ValueError, match="no frames"):
            pool.result()
        return
    whole = Features(np.concatenate(pieces), 1.0, 0.02).pooled(how)
    result = pool.result()
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, whole, rtol=2e-7)


def test_the_mean_of_many_frames_loses_nothing():
    """Summed in float32, a sum of 16 million would stop growing by ones."""
    pool = Pool("mean")
    ones = np.ones((1 << 20, 1), dtype=np.float32)
    for _ in range(20):
        pool.add(ones)
    assert pool.result() == np.float32(1)


def test_unknown_pooling():
    with pytest.raises(ValueError, match="'mean' or 'max', not 'median'"):
        Pool("median")  # type: ignore[arg-type]

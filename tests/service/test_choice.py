"""Which of the waiting items make the next batch."""

from __future__ import annotations

from concurrent.futures import Future

from hypothesis import given, settings
from hypothesis import strategies as st

from service.batches import BatchLimits, Item, choose
from service.errors import whole_seconds

seconds = st.integers(1, 40).map(lambda quarters: quarters / 4)


def item(length: float, rank: int) -> Item[int, int]:
    return Item(rank, length, (float(rank), 0, rank), None, Future(), 0.0)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.lists(seconds, min_size=1, max_size=30), st.randoms(), st.sampled_from([0.0, 0.1, 0.25, 0.9]))
def test_a_batch_is_the_first_and_its_nearest_within_the_limits(lengths, random, padding):
    items = [item(length, rank) for rank, length in enumerate(lengths)]
    shuffled = random.sample(items, len(items))
    limits = BatchLimits(1e6, 15.0, padding)

    def fits(batch):
        longest, count = max(each.seconds for each in batch), len(batch)
        real = sum(each.seconds for each in batch)
        return longest * count <= 15.0 and 1 - real / (longest * count) <= padding + 1e-9

    batch = choose(shuffled, limits)
    assert batch[0] is items[0]
    assert len(set(map(id, batch))) == len(batch)
    assert fits(batch)

    def key(each):
        return abs(each.seconds - items[0].seconds), each.rank

    for out in (each for each in items if each not in batch):
        nearer = [items[0]] + [each for each in batch[1:] if key(each) < key(out)]
        assert not fits([*nearer, out]), "left out, although it is nearer and there was room"


def test_whole_seconds_are_honest():
    assert [whole_seconds(value) for value in (0.0, 0.2, 1.0, 1.01, 59.5)] == [1, 1, 1, 2, 60]

"""From how many waiting events on one batch is cheaper than as many publishes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from infra.jetstream.costs import Costs


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just(0), st.floats(0, 100)),
            st.tuples(st.integers(1, 1_000), st.floats(0, 100)),
        ),
        max_size=400,
    )
)
def test_whatever_was_measured_the_break_even_stays_sensible(
    samples: list[tuple[int, float]],
) -> None:
    costs = Costs()
    for batched, seconds in samples:
        if batched:
            costs.saw_batch(seconds, batched)
        else:
            costs.saw_alone(seconds)
        assert 2 <= costs.break_even() <= Costs.BREAK_EVEN_MAX, "one event alone never waits"


def test_the_cheaper_way_is_learned() -> None:
    slow_disk, fast_batches = Costs(), Costs()
    for _ in range(200):
        slow_disk.saw_next(0.0003)
        slow_disk.saw_batch(0.03, 10)
        fast_batches.saw_alone(0.005)
        fast_batches.saw_batch(0.001, 10)
    assert slow_disk.break_even() == Costs.BREAK_EVEN_MAX
    assert fast_batches.break_even() == 2

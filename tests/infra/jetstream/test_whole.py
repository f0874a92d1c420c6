"""What is whole of a stream: batches count when their commit is seen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from infra.jetstream.envelope import batch_of, is_unfinished
from infra.jetstream.whole import may_be_open, whole_up_to


def batch(id: str, size: int) -> list[dict[str, str]]:
    """The headers of a whole batch."""
    found = [
        {"Nats-Batch-Id": id, "Nats-Batch-Sequence": str(place)} for place in range(1, size + 1)
    ]
    found[-1]["Nats-Batch-Commit"] = "1"
    return found


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[dict[str, str]], list[int]]:
    """A stream's headers, and how much of it is whole after each message."""
    headers: list[dict[str, str]] = []
    whole: list[int] = []
    for number, size in enumerate(draw(st.lists(st.integers(0, 5), max_size=12))):
        before = len(headers)
        headers += batch(f"b{number}", size) if size else [{}]
        whole += [before] * (max(size, 1) - 1) + [len(headers)]
    return headers, whole


@given(streams())
def test_the_message_at_the_end_tells_what_is_whole(
    stream: tuple[list[dict[str, str]], list[int]],
) -> None:
    for seq, (headers, whole) in enumerate(zip(*stream, strict=True), start=1):
        assert whole_up_to(seq, headers) == whole
        assert may_be_open(headers) == (whole < seq)


@given(streams())
def test_bytes_tell_the_same_as_headers(
    stream: tuple[list[dict[str, str]], list[int]],
) -> None:
    for headers in stream[0]:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        block = f"NATS/1.0\r\nEvent-Type: x\r\n{lines}\r\n".encode()
        assert is_unfinished(block) == may_be_open(headers)
        assert batch_of(block) == (headers["Nats-Batch-Id"].encode() if headers else None)

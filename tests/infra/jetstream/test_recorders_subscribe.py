"""Subscriptions: joined exactly, in order, once, through every fault; stopped from anywhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from eventsourcing.persistence import InternalError, Notification, Subscription, Tracking
from nats.aio.client import Client

from infra.bulk import Delivered
from infra.jetstream import (
    JetStreamApplicationRecorder,
    JetStreamDatastore,
    JetStreamProcessRecorder,
)
from infra.jetstream import feed as feed_module
from infra.jetstream import subscription as subscription_module
from infra.jetstream.feed import Feed
from infra.jetstream.subscription import JetStreamSubscription
from tests.infra.jetstream.library import OpenDatastore, event
from tests.infra.jetstream.nats_process import NatsProcess, api


@pytest.fixture
def recorder(open_datastore: OpenDatastore) -> JetStreamApplicationRecorder:
    return JetStreamApplicationRecorder(open_datastore())


def fill(recorder: JetStreamApplicationRecorder, count: int, per_insert: int = 50) -> None:
    for start in range(0, count, per_insert):
        id = uuid4()
        number = min(per_insert, count - start)
        recorder.insert_events([event(id, n, topic=f"t{(start + n) % 3}") for n in range(number)])


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def take(subscription: Iterator[Notification], count: int) -> list[int]:
    return [next(subscription).id for _ in range(count)]


@pytest.mark.parametrize("gt", [None, 0, 1, 299, 300, 599])
def test_it_is_joined_right_behind_the_position(
    recorder: JetStreamApplicationRecorder, gt: int | None
) -> None:
    fill(recorder, 600)
    with recorder.subscribe(gt=gt) as subscription:
        assert take(subscription, 600 - (gt or 0)) == list(range((gt or 0) + 1, 601))


def test_what_is_recorded_later_comes_without_being_asked_for(
    recorder: JetStreamApplicationRecorder,
) -> None:
    with recorder.subscribe() as subscription:
        for n in range(1, 40):
            fill(recorder, 1)
            assert take(subscription, 1) == [n]


def test_a_position_that_is_still_to_come_is_waited_for(
    recorder: JetStreamApplicationRecorder,
) -> None:
    with recorder.subscribe(gt=4) as subscription:
        fill(recorder, 6)
        assert take(subscription, 2) == [5, 6]


def test_only_the_topics_asked_for_are_yielded(recorder: JetStreamApplicationRecorder) -> None:
    fill(recorder, 300)
    with recorder.subscribe(gt=9, topics=["t1"]) as subscription:
        found = [next(subscription) for _ in range(50)]
    assert {n.topic for n in found} == {"t1"}
    assert [n.id for n in found] == [
        n.id for n in recorder.select_notifications(10, 50, topics=["t1"])
    ]


def test_several_subscriptions_of_several_threads_see_the_same(
    open_datastore: OpenDatastore,
) -> None:
    writer = JetStreamApplicationRecorder(open_datastore())
    seen: dict[int, list[int]] = {}

    def follow(n: int) -> None:
        with writer.subscribe() as subscription:
            seen[n] = take(subscription, 1_000)

    threads = [threading.Thread(target=follow, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    fill(writer, 1_000)
    for thread in threads:
        thread.join()
    assert list(seen.values()) == [list(range(1, 1_001))] * 4


def stopping(
    subscription: Subscription[JetStreamApplicationRecorder],
) -> tuple[threading.Thread, list[Notification]]:
    """A thread that iterates until it is stopped, and what it gets."""
    got: list[Notification] = []
    entered = threading.Event()

    def iterate() -> None:
        entered.set()
        got.extend(subscription)

    thread = threading.Thread(target=iterate)
    thread.start()
    assert entered.wait(10)
    return thread, got


def test_stop_from_another_thread_ends_the_wait(recorder: JetStreamApplicationRecorder) -> None:
    subscription = recorder.subscribe()
    thread, got = stopping(subscription)
    subscription.stop()
    thread.join(20)
    assert not thread.is_alive()
    assert got == []
    subscription.stop()  # once more does no harm


def test_closing_the_datastore_ends_the_wait(recorder: JetStreamApplicationRecorder) -> None:
    subscription = recorder.subscribe()
    thread, _ = stopping(subscription)
    recorder.datastore.close()
    thread.join(20)
    assert not thread.is_alive()


def test_nothing_is_left_on_the_server_when_it_ends(
    recorder: JetStreamApplicationRecorder, nats_url: str, prefix: str
) -> None:
    fill(recorder, 10)
    with recorder.subscribe() as subscription:
        take(subscription, 10)
        assert api(nats_url, f"CONSUMER.NAMES.{prefix}-EVENTS-0", {})["total"] == 1
    eventually(lambda: api(nats_url, f"CONSUMER.NAMES.{prefix}-EVENTS-0", {})["total"] == 0)


def test_one_consumer_serves_as_long_as_nothing_goes_wrong(
    recorder: JetStreamApplicationRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    created: list[str] = []
    create = Feed._create

    async def counted(feed: Feed, nc: Client, name: str) -> None:
        created.append(name)
        await create(feed, nc, name)

    monkeypatch.setattr(Feed, "_create", counted)
    monkeypatch.setattr(feed_module, "SILENCE_MAX_S", 60.0)  # however long anything is held up
    fill(recorder, 6_000, 1_000)
    with recorder.subscribe() as subscription:
        assert take(subscription, 6_000) == list(range(1, 6_001))
    assert len(created) == 1


def test_positions_between_events_are_passed_over(open_datastore: OpenDatastore) -> None:
    recorder = JetStreamProcessRecorder(open_datastore())
    for n in range(1, 101):
        events = [event(uuid4(), 1)] if n % 3 else []
        recorder.insert_events(events, tracking=Tracking("upstream", n))
    wanted = [n.id for n in recorder.select_notifications(None, 1_000)]
    with recorder.subscribe() as subscription:
        assert take(subscription, len(wanted)) == wanted


def test_a_slow_reader_is_not_sent_everything_at_once(
    recorder: JetStreamApplicationRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription_module, "BUFFERED_MAX", 20)
    monkeypatch.setattr(feed_module, "REQUEST_EVENTS", 10)
    monkeypatch.setattr(
        feed_module,
        "_REQUEST",
        b'{"batch": 10, "expires": 30000000000, "idle_heartbeat": 1000000000}',
    )
    fill(recorder, 1_000)
    most = 0
    with recorder.subscribe() as subscription:
        assert isinstance(subscription, JetStreamSubscription)
        for n in range(1, 1_001):
            assert next(subscription).id == n
            most = max(most, len(subscription._arrived))
    assert most <= 20 + 2 * 10


# -- faults ------------------------------------------------------------------------------------


@pytest.fixture
def own_recorder(own_server: NatsProcess) -> Iterator[JetStreamApplicationRecorder]:
    datastore = JetStreamDatastore(own_server.url, "app")
    yield JetStreamApplicationRecorder(datastore)
    datastore.close()


def test_a_server_that_crashes_and_comes_back_is_followed_without_gap_or_repeat(
    own_server: NatsProcess, own_recorder: JetStreamApplicationRecorder
) -> None:
    # given a writer that goes on through it all
    total = 3_000
    writer = threading.Thread(target=fill, args=(own_recorder, total, 10))
    with own_recorder.subscribe() as subscription:
        writer.start()
        seen = take(subscription, 200)
        # when the server is killed three times on the way
        for _ in range(3):
            own_server.restart()
            seen += take(subscription, 300)
        seen += take(subscription, total - len(seen))
        writer.join()
        # then nothing is missing and nothing comes twice
        assert seen == list(range(1, total + 1))
        own_server.restart()
        fill(own_recorder, 5)
        assert take(subscription, 5) == list(range(total + 1, total + 6))


def test_a_consumer_that_is_deleted_is_replaced(
    own_server: NatsProcess, own_recorder: JetStreamApplicationRecorder
) -> None:
    fill(own_recorder, 100)
    with own_recorder.subscribe() as subscription:
        seen = take(subscription, 100)
        [name] = api(own_server.url, "CONSUMER.NAMES.app-EVENTS-0", {})["consumers"]
        assert api(own_server.url, f"CONSUMER.DELETE.app-EVENTS-0.{name}", {})["success"]
        fill(own_recorder, 100)
        assert seen + take(subscription, 100) == list(range(1, 201))


def test_a_server_that_hangs_and_goes_on_is_followed(
    own_server: NatsProcess, own_recorder: JetStreamApplicationRecorder
) -> None:
    fill(own_recorder, 10)
    with own_recorder.subscribe() as subscription:
        seen = take(subscription, 10)
        own_server.hang()
        timer = threading.Timer(4.0, own_server.go_on)  # longer than its silence is borne
        timer.start()
        fill(own_recorder, 10)
        assert seen + take(subscription, 10) == list(range(1, 21))
        timer.join()


def test_events_missing_on_the_stream_itself_stop_it(
    own_server: NatsProcess, own_recorder: JetStreamApplicationRecorder, tmp_path: Path
) -> None:
    # given a stream whose first events an operator has let expire
    fill(own_recorder, 10)
    config = api(own_server.url, "STREAM.INFO.app-EVENTS-0", {})["config"]
    config["max_age"] = 1_000_000_000
    config["duplicate_window"] = 1_000_000_000
    assert "error" not in api(own_server.url, "STREAM.UPDATE.app-EVENTS-0", config)
    stream = "STREAM.INFO.app-EVENTS-0"
    eventually(lambda: api(own_server.url, stream, {})["state"]["messages"] == 0)
    config["max_age"] = 0
    api(own_server.url, "STREAM.UPDATE.app-EVENTS-0", config)
    fill(own_recorder, 2)
    # then who follows from before is told, instead of going on behind the hole
    with own_recorder.subscribe(gt=4) as subscription, pytest.raises(InternalError, match="5"):
        next(subscription)
    with own_recorder.subscribe(gt=10) as subscription:
        assert take(subscription, 2) == [11, 12]


def delivered(seq: int, **headers: str) -> Delivered:
    """A message as a consumer delivers it."""
    own = {"Event-Type": "t", "Event-Version": str(seq), "Event-Hash": "0" * 64, **headers}
    block = "".join(f"{name}: {value}\r\n" for name, value in own.items())
    reply = f"$JS.ACK.app-EVENTS-0.c.1.{seq}.{seq}.1700000000000000000.0"
    return Delivered(b"app.evt.0.x", reply.encode(), f"NATS/1.0\r\n{block}\r\n".encode(), b"{}")


async def test_events_of_a_batch_are_passed_on_once_all_of_it_is_there() -> None:
    # A wedged disk shows readers a batch that is not committed, and may never be.
    feed = Feed(None, "app-EVENTS-0", 4)  # type: ignore[arg-type]
    feed._on_messages([delivered(5)])
    for seq, place in ((6, "1"), (7, "2")):
        feed._on_messages([delivered(seq, **{"Nats-Batch-Id": "b", "Nats-Batch-Sequence": place})])
    assert [event.seq for event in feed._whole] == [5]
    end = {"Nats-Batch-Id": "b", "Nats-Batch-Sequence": "3", "Nats-Batch-Commit": "1"}
    feed._on_messages([delivered(8, **end)])
    assert [event.seq for event in feed._whole] == [5, 6, 7, 8]


async def test_a_message_that_is_missing_or_comes_again_is_never_passed_on() -> None:
    feed = Feed(None, "app-EVENTS-0", 4)  # type: ignore[arg-type]
    feed._on_messages([delivered(seq) for seq in (5, 5, 4, 6, 8, 9)])
    assert [event.seq for event in feed._whole] == [5, 6]
    assert "7" in feed._lost

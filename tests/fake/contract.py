"""What the ledger counts on JetStream for, as cases that hold on the fake and on real servers.

A case gets a connection and a topology whose streams are there. What the two dialects answer
differently is said where it is asked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError

from infra.jetstream.envelope import (
    BATCH_COMMIT,
    BATCH_ID,
    BATCH_SEQUENCE,
    EXPECTED_LAST_SUBJECT_SEQUENCE,
)
from infra.jetstream.topology import Topology, call

Case = Callable[["Ground"], Awaitable[None]]
CASES: Final[dict[str, Case]] = {}
ANSWER_S = 30.0


def case(function: Case) -> Case:
    """Makes a function one of the `CASES`."""
    CASES[function.__name__] = function
    return function


@dataclass
class Ground:
    """Where a case is played."""

    nc: Client
    topology: Topology
    replicas: int

    @property
    def stream(self) -> str:
        return self.topology.stream_name(0)

    def subject(self, name: str) -> str:
        return f"{self.topology.prefix}.0.{name}"

    async def asked(self, subject: str, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
        """The answer to a request, without what no two servers have in common."""
        message = await self.nc.request(subject, body, timeout=ANSWER_S, headers=headers or None)
        answer: dict[str, Any] = json.loads(message.data)
        return answer

    async def publish(
        self, name: str, body: bytes = b"x", expected: int | None = None, **headers: str
    ) -> dict[str, Any]:
        """Publishes one message; its PubAck."""
        given = {key.replace("_", "-"): value for key, value in headers.items()}
        if expected is not None:
            given[EXPECTED_LAST_SUBJECT_SEQUENCE] = str(expected)
        return await self.asked(self.subject(name), body, given)

    async def batch(
        self,
        id: str,
        messages: Sequence[tuple[str, int | None]],
        *,
        commit: str | None = "1",
        leaving_out: int = 0,
        msg_id: str = "",
    ) -> dict[str, Any]:
        """Publishes messages (subject, expected sequence) as one batch; the answer to its last."""
        for place, (name, expected) in enumerate(messages, start=1):
            headers = {BATCH_ID: id, BATCH_SEQUENCE: str(place)}
            if expected is not None:
                headers[EXPECTED_LAST_SUBJECT_SEQUENCE] = str(expected)
            if msg_id:
                headers["Nats-Msg-Id"] = f"{msg_id}{place}"
            if place == len(messages):
                if commit is not None:
                    headers[BATCH_COMMIT] = commit
                return await self.asked(self.subject(name), b"%d" % place, headers)
            if place != leaving_out:
                await self.nc.publish(self.subject(name), b"%d" % place, headers=headers)
        raise AssertionError("a batch without messages")

    async def direct(self, asked: dict[str, Any], subject: str = "") -> Msg:
        """The answer to a Direct Get, by the replica that happens to answer."""
        api = f"$JS.API.DIRECT.GET.{self.stream}" + (f".{subject}" if subject else "")
        return await self.nc.request(
            api, json.dumps(asked).encode() if asked else b"", timeout=ANSWER_S
        )

    async def direct_page(self, asked: dict[str, Any]) -> list[Msg]:
        """Everything that answers a batched Direct Get, its end included."""
        inbox = self.nc.new_inbox()
        came: list[Msg] = []
        ended = asyncio.Event()

        async def take(message: Msg) -> None:
            came.append(message)
            if "Status" in (message.headers or {}):
                ended.set()

        subscription = await self.nc.subscribe(inbox, cb=take)
        body = json.dumps(asked).encode()
        await self.nc.publish(f"$JS.API.DIRECT.GET.{self.stream}", body, reply=inbox)
        await asyncio.wait_for(ended.wait(), ANSWER_S)
        await subscription.unsubscribe()
        return came

    async def everywhere(self, seq: int) -> None:
        """Returns when every replica shows a message; asks until each of them must have been."""
        shown = 0
        async with asyncio.timeout(30):
            while shown < 20 * self.replicas:
                found = await self.direct({"seq": seq})
                shown = shown + 1 if _status(found) is None else 0
                if not shown:
                    await asyncio.sleep(0.01)

    async def state(self) -> dict[str, Any]:
        """The stream's state as its leader has it."""
        answer = await call(self.nc, f"STREAM.INFO.{self.stream}", {})
        state: dict[str, Any] = answer["state"]
        return state

    async def consumer(self, from_seq: int) -> Consumer:
        """A consumer as the ledger's feeds make theirs."""
        name = self.nc.new_inbox().rpartition(".")[2]
        config = {
            "name": name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": from_seq,
            "ack_policy": "none",
            "max_deliver": 1,
            "inactive_threshold": 60 * 10**9,
            "num_replicas": 1,
            "mem_storage": True,
        }
        body = {"stream_name": self.stream, "config": config, "action": "create"}
        answer = await call(self.nc, f"CONSUMER.CREATE.{self.stream}.{name}", body)
        assert answer["name"] == name
        consumer = Consumer(self, name, answer["num_pending"])
        await consumer.listen()
        return consumer


class Consumer:
    """A pull consumer, and what came from it."""

    def __init__(self, ground: Ground, name: str, pending: int) -> None:
        self.pending = pending
        self.came: list[Msg] = []
        self._ground = ground
        self._name = name
        self._inbox = ground.nc.new_inbox()
        self._changed = asyncio.Event()

    async def listen(self) -> None:
        await self._ground.nc.subscribe(self._inbox, cb=self._take)

    async def _take(self, message: Msg) -> None:
        self.came.append(message)
        self._changed.set()

    async def ask(self, batch: int, *, expires_s: float, heartbeat_s: float = 0.0) -> None:
        """Asks for so many messages."""
        body: dict[str, Any] = {"batch": batch, "expires": int(expires_s * 1e9)}
        if heartbeat_s:
            body["idle_heartbeat"] = int(heartbeat_s * 1e9)
        await self._ground.nc.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{self._ground.stream}.{self._name}",
            json.dumps(body).encode(),
            reply=self._inbox,
        )

    async def until(self, holds: Callable[[list[Msg]], bool]) -> list[Msg]:
        """Everything that has come by the time that something holds for it."""
        async with asyncio.timeout(30):
            while not holds(self.came):
                self._changed.clear()
                await self._changed.wait()
        return self.came


def _status(message: Msg) -> str | None:
    status: str | None = (message.headers or {}).get("Status")
    return status


def _code(answer: dict[str, Any]) -> tuple[int, str]:
    error = answer["error"]
    assert answer["seq"] == 0
    return error["err_code"], error["description"]


def _seqs(messages: Sequence[Msg]) -> list[int]:
    return [int(m.headers["Nats-Sequence"]) for m in messages if m.headers and _status(m) is None]


# -- one message -----------------------------------------------------------------------------------


@case
async def a_publish_behind_the_expected_sequence_is_stored(ground: Ground) -> None:
    assert await ground.publish("a", expected=0) == {"stream": ground.stream, "seq": 1}
    assert await ground.publish("b", expected=0) == {"stream": ground.stream, "seq": 2}
    assert await ground.publish("a", expected=1) == {"stream": ground.stream, "seq": 3}
    assert await ground.publish("a") == {"stream": ground.stream, "seq": 4}
    assert (await ground.state())["last_seq"] == 4


@case
async def a_stale_expectation_is_refused_with_10071(ground: Ground) -> None:
    await ground.publish("a", expected=0)
    for expected in (0, 7):
        answer = await ground.publish("a", expected=expected)
        assert _code(answer) == (10071, "wrong last sequence: 1")
    assert _code(await ground.publish("b", expected=1)) == (10071, "wrong last sequence: 0")
    assert (await ground.state())["last_seq"] == 1


@case
async def a_repeated_message_id_is_told_by_each_dialect_in_its_own_way(ground: Ground) -> None:
    await ground.publish("a", expected=0, Nats_Msg_Id="m1")
    again = await ground.publish("a", expected=0, Nats_Msg_Id="m1")
    if ground.replicas == 1:  # the expectation is looked at first
        assert _code(again) == (10071, "wrong last sequence: 1")
    else:
        assert (again["seq"], again["duplicate"]) == (1, True)
    without = await ground.publish("a", Nats_Msg_Id="m1")
    assert (without["seq"], without["duplicate"]) == (1, True)
    assert (await ground.state())["last_seq"] == 1


@case
async def a_message_over_the_streams_limit_is_refused_with_10054(ground: Ground) -> None:
    answer = await ground.publish("a", bytes(900_001))
    assert _code(answer) == (10054, "message size exceeds maximum allowed")


@case
async def nobody_answers_where_no_stream_listens(ground: Ground) -> None:
    for subject in ("nobody.is.there", "$JS.API.DIRECT.GET.NO-SUCH-STREAM"):
        try:
            await ground.nc.request(subject, b'{"seq": 1}', timeout=ANSWER_S)
        except NoRespondersError:
            continue
        raise AssertionError(subject)


# -- batches ---------------------------------------------------------------------------------------


@case
async def a_batch_is_checked_against_the_state_before_it(ground: Ground) -> None:
    await ground.publish("a", expected=0)
    answer = await ground.batch("b1", [("a", 1), ("b", 0), ("a", None)])
    assert answer == {"stream": ground.stream, "seq": 4, "batch": "b1", "count": 3}
    assert await ground.batch("b1", [("c", 0)]) == {
        "stream": ground.stream,
        "seq": 5,
        "batch": "b1",
        "count": 1,
    }  # an id may be used again once its batch is stored


@case
async def one_stale_subject_refuses_the_whole_batch(ground: Ground) -> None:
    await ground.batch("b1", [("a", 0), ("b", 0), ("a", None)])
    answer = await ground.batch("b2", [("c", 0), ("b", 0)])
    assert _code(answer) == (10071, "wrong last sequence: 2")
    assert (await ground.state())["last_seq"] == 3


@case
async def a_second_expectation_on_a_subject_is_refused_with_10164(ground: Ground) -> None:
    answer = await ground.batch("b1", [("a", 0), ("a", 0)])
    assert _code(answer) == (10164, "wrong last sequence")
    assert (await ground.state())["last_seq"] == 0


@case
async def a_batch_that_misses_a_part_is_refused_with_10176(ground: Ground) -> None:
    for left_out in (1, 2):
        answer = await ground.batch(
            f"b{left_out}", [("a", 0), ("b", 0), ("c", 0)], leaving_out=left_out
        )
        assert _code(answer) == (10176, "atomic publish batch is incomplete")
    assert (await ground.state())["last_seq"] == 0


@case
async def a_batch_that_is_none_is_refused(ground: Ground) -> None:
    assert _code(await ground.batch("q" * 65, [("a", 0)])) == (
        10179,
        "atomic publish batch ID is invalid",
    )
    assert _code(await ground.batch("b1", [("a", 0)], commit="x")) == (
        10200,
        "atomic publish batch commit is invalid",
    )
    headers = {BATCH_ID: "b2", BATCH_COMMIT: "1"}
    answer = await ground.asked(ground.subject("a"), b"", headers)
    assert _code(answer) == (10175, "atomic publish sequence is missing")


@case
async def a_batch_with_a_message_id_that_is_stored_is_refused_with_10201(ground: Ground) -> None:
    await ground.batch("b1", [("a", 0), ("a", None)], msg_id="m")
    again = await ground.batch("b2", [("a", None), ("a", None)], msg_id="m")
    assert _code(again) == (10201, "atomic publish batch contains duplicate message id")
    stale = await ground.batch("b3", [("a", 0), ("a", None)], msg_id="m")
    assert _code(stale)[0] == 10201
    assert (await ground.state())["last_seq"] == 2


@case
async def more_batches_than_may_be_in_flight_are_refused_with_10210(ground: Ground) -> None:
    for number in range(60):
        headers = {BATCH_ID: f"open-{number}", BATCH_SEQUENCE: "1"}
        await ground.nc.publish(ground.subject("a"), b"", headers=headers)
    answer = await ground.batch("one more", [("b", 0)])
    assert _code(answer) == (10210, "atomic publish too many inflight")
    headers = {BATCH_ID: "open-0", BATCH_SEQUENCE: "2", BATCH_COMMIT: "1"}
    answer = await ground.asked(ground.subject("a"), b"", headers)
    assert answer["count"] == 2
    assert (await ground.batch("one more", [("b", 0)]))["count"] == 1  # there is room for it again


@case
async def a_batch_is_kept_with_what_tells_it_apart(ground: Ground) -> None:
    await ground.batch("b1", [("a", 0), ("b", 0)])
    await ground.everywhere(2)
    first, last = await ground.direct({"seq": 1}), await ground.direct({"seq": 2})
    assert first.headers is not None
    assert last.headers is not None
    assert (first.headers[BATCH_ID], first.headers[BATCH_SEQUENCE]) == ("b1", "1")
    assert BATCH_COMMIT not in first.headers
    assert first.headers[EXPECTED_LAST_SUBJECT_SEQUENCE] == "0"
    assert (last.headers[BATCH_SEQUENCE], last.headers[BATCH_COMMIT]) == ("2", "1")


# -- reading ---------------------------------------------------------------------------------------


async def _three_subjects(ground: Ground) -> None:
    """a b a c a, with bodies 1 … 5."""
    for number, name in enumerate("abaca", start=1):
        await ground.publish(name, b"%d" % number)


@case
async def a_direct_get_finds_by_sequence_and_by_subject(ground: Ground) -> None:
    await _three_subjects(ground)
    await ground.everywhere(5)
    a, b, nobody = ground.subject("a"), ground.subject("b"), ground.subject("nobody")
    for asked, seq in (
        ({"seq": 2}, 2),
        ({"seq": 2, "next_by_subj": a}, 3),
        ({"seq": 1, "next_by_subj": b}, 2),
        ({"seq": 3, "next_by_subj": f"{ground.topology.prefix}.0.*"}, 3),
        ({"last_by_subj": a}, 5),
        ({"last_by_subj": ">"}, 5),
    ):
        found = await ground.direct(asked)
        assert found.headers is not None
        assert found.headers["Nats-Sequence"] == str(seq)
        assert found.headers["Nats-Stream"] == ground.stream
        assert found.headers["Nats-Subject"].startswith(ground.topology.prefix)
        assert found.headers["Nats-Time-Stamp"].endswith("Z")
        assert found.data == b"%d" % seq
    assert (await ground.direct({}, a)).data == b"5"
    for asked in ({"seq": 9}, {"seq": 3, "next_by_subj": b}, {"last_by_subj": nobody}):
        assert _status(await ground.direct(asked)) == "404"
    assert _status(await ground.direct({}, nobody)) == "404"


@case
async def a_page_names_the_sequence_before_each_message_and_ends_with_what_is_left(
    ground: Ground,
) -> None:
    await _three_subjects(ground)
    await ground.everywhere(5)
    a = ground.subject("a")
    came = await ground.direct_page({"seq": 1, "next_by_subj": a, "batch": 2})
    assert _seqs(came) == [1, 3]
    told = [
        (m.headers["Nats-Num-Pending"], m.headers["Nats-Last-Sequence"]) for m in came if m.headers
    ]
    assert told == [("2", "0"), ("1", "1"), ("1", "3")]
    assert _status(came[-1]) == "204"
    whole = await ground.direct_page({"seq": 2, "next_by_subj": a, "batch": 9})
    assert _seqs(whole) == [3, 5]
    assert whole[-1].headers is not None
    assert whole[-1].headers["Nats-Num-Pending"] == "0"
    [nothing] = await ground.direct_page({"seq": 9, "next_by_subj": a, "batch": 2})
    assert _status(nothing) == "404"


@case
async def the_last_message_up_to_a_sequence_can_be_asked_for(ground: Ground) -> None:
    await _three_subjects(ground)
    await ground.everywhere(5)
    a = ground.subject("a")
    for upto, seqs in ((5, [5]), (4, [3]), (2, [1])):
        came = await ground.direct_page({"multi_last": [a], "up_to_seq": upto})
        assert _seqs(came) == seqs
        assert _status(came[-1]) == "204"
    [nothing] = await ground.direct_page({"multi_last": [ground.subject("c")], "up_to_seq": 3})
    assert _status(nothing) == "404"


@case
async def the_leader_answers_with_what_is_stored(ground: Ground) -> None:
    await _three_subjects(ground)
    a = ground.subject("a")
    api = f"STREAM.MSG.GET.{ground.stream}"
    for asked, seq in (
        ({"seq": 4}, 4),
        ({"seq": 2, "next_by_subj": a}, 3),
        ({"last_by_subj": a}, 5),
    ):
        message = (await call(ground.nc, api, asked))["message"]
        assert message["seq"] == seq
        assert message["subject"].startswith(ground.topology.prefix)
    for asked in ({"seq": 9}, {"seq": 6, "next_by_subj": a}, {"last_by_subj": "nobody"}):
        answer = await call(ground.nc, api, asked)
        assert answer["error"]["err_code"] == 10037
    missing = await call(ground.nc, "STREAM.MSG.GET.NO-SUCH-STREAM", {"seq": 1})
    assert missing["error"]["err_code"] == 10059


@case
async def nothing_is_purged_or_deleted(ground: Ground) -> None:
    await ground.publish("a")
    purged = await call(ground.nc, f"STREAM.PURGE.{ground.stream}", {})
    assert purged["error"]["err_code"] == 10110
    deleted = await call(ground.nc, f"STREAM.MSG.DELETE.{ground.stream}", {"seq": 1})
    assert deleted["error"]["err_code"] == 10057
    assert (await ground.state())["messages"] == 1


@case
async def only_the_last_snapshot_of_a_subject_is_kept(ground: Ground) -> None:
    subject = f"{ground.topology.snapshot_prefix}.0.a"
    for body in (b"first", b"second"):
        await ground.nc.request(subject, body, timeout=ANSWER_S)
    api = f"$JS.API.DIRECT.GET.{ground.topology.snapshot_stream}.{subject}"
    async with asyncio.timeout(30):
        body = b""
        while body != b"second":  # a replica may lag
            body = (await ground.nc.request(api, b"", timeout=ANSWER_S)).data


@case
async def what_is_stored_is_sent_live_with_all_its_headers(ground: Ground) -> None:
    came: list[Msg] = []

    async def take(message: Msg) -> None:
        came.append(message)

    await ground.nc.subscribe(f"{ground.topology.live_prefix}.>", cb=take)
    await ground.nc.flush()
    await ground.publish("a", b"0")
    await ground.batch("b1", [("a", 1), ("b", 0)])
    await ground.batch("b2", [("a", 1), ("b", 0)])  # refused
    await ground.nc.flush()
    assert [message.data for message in came] == [b"0", b"1", b"2"]
    for seq, message in enumerate(came, start=1):
        assert message.headers is not None
        assert message.headers["Nats-Sequence"] == str(seq)
        assert message.headers["Nats-Subject"] == ground.subject("b" if seq == 3 else "a")
        assert message.subject.startswith(f"{ground.topology.live_prefix}.0.")
        assert (BATCH_ID in message.headers) == (seq > 1)
        assert (BATCH_COMMIT in message.headers) == (seq == 3)


# -- consumers -------------------------------------------------------------------------------------


@case
async def a_consumer_sends_what_is_there_and_what_comes_in_order(ground: Ground) -> None:
    await _three_subjects(ground)
    await ground.everywhere(5)
    consumer = await ground.consumer(from_seq=2)
    await consumer.ask(10, expires_s=20)
    await consumer.until(lambda came: len(came) == 4)
    await ground.batch("b1", [("a", 5), ("b", 2)])
    came = await consumer.until(lambda came: len(came) == 6)
    seqs = []
    for number, message in enumerate(came, start=1):
        tokens = message.reply.split(".")
        assert tokens[:4] == ["$JS", "ACK", ground.stream, tokens[3]]
        assert int(tokens[6]) == number
        seqs.append(int(tokens[5]))
    assert seqs == [2, 3, 4, 5, 6, 7]
    assert came[-1].reply.split(".")[8] == "0"  # nothing is left
    assert came[-1].headers is not None
    assert BATCH_COMMIT in came[-1].headers
    assert came[-1].subject == ground.subject("b")


@case
async def a_request_to_a_consumer_ends_when_it_is_full_or_its_time_is_up(ground: Ground) -> None:
    await _three_subjects(ground)
    await ground.everywhere(5)
    consumer = await ground.consumer(from_seq=1)
    await consumer.ask(2, expires_s=20)
    await consumer.ask(8, expires_s=2.0, heartbeat_s=0.4)
    came = await consumer.until(lambda came: bool(came) and _status(came[-1]) == "408")
    statuses = [_status(message) for message in came]
    assert statuses[:5] == [None] * 5
    assert "100" in statuses
    assert came[-1].headers is not None
    assert came[-1].headers["Nats-Pending-Messages"] == "5"
    consumer.came.clear()
    await ground.publish("a")
    await consumer.ask(1, expires_s=20)
    came = await consumer.until(bool)
    assert came[0].reply.split(".")[5] == "6"


@case
async def a_consumer_of_a_stream_that_is_not_there_is_refused(ground: Ground) -> None:
    config = {"deliver_policy": "by_start_sequence", "opt_start_seq": 1, "ack_policy": "none"}
    answer = await call(
        ground.nc,
        "CONSUMER.CREATE.NO-SUCH-STREAM",
        {"stream_name": "NO-SUCH-STREAM", "config": config},
    )
    assert answer["error"]["err_code"] == 10059

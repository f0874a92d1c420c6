"""Requests that no good client sends. Each is answered, none is heard of again: the service answers
the next request, and its log has no traceback."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.acceptance.client import checked_error, parsed, token
from tests.acceptance.deployment import Deployment, answering
from tests.acceptance.raw import Delivered, RawConnection

MB = 1_000_000
HELLO = b'{"role": "assistant", "content": "Hello"}'

NOT_AN_OBJECT = {
    "words": b"Hello, service!",
    "a brace": b"{",
    "a closed brace": b"}",
    "a list": b"[]",
    "a text": b'"role"',
    "a number": b"7",
    "null": b"null",
    "true": b"true",
    "blanks": b"  \n ",
    "two objects": b"{} {}",
    "something behind it": HELLO + b"x",
    "a comma too many": b'{"role": "user", "content": "x",}',
    "single quotes": b"{'role': 'user', 'content': 'x'}",
    "no quotes": b"{role: 1}",
    "a comment": b'{/* now */ "role": "user", "content": "x"}',
    "half a text": b'{"role": "user", "content": "x',
    "a bare line feed in a text": b'{"role": "user", "content": "a\nb"}',
    "a bad escape": b'{"role": "user", "content": "\\x41"}',
    "zeros": bytes(1_000),
    "a byte order mark": b"\xef\xbb\xbf" + HELLO,
    "UTF-16": HELLO.decode().encode("utf-16"),
    "Latin-1": '{"role": "user", "content": "ä"}'.encode("latin-1"),
    "compressed": gzip.compress(HELLO),
    "a lone surrogate": b'{"role": "user", "content": "\\ud83d"}',
    "surrogates the wrong way round": b'{"role": "user", "content": "\\ude00\\ud83d"}',
    "a surrogate in UTF-8": b'{"role": "user", "content": "\xed\xa0\xbd"}',
    "a surrogate in a key": b'{"role": "user", "content": "x", "metadata": {"\\ud800": 1}}',
    "NaN": b'{"role": "user", "content": "x", "metadata": {"n": NaN}}',
    "Infinity": b'{"role": "user", "content": "x", "metadata": {"n": [-Infinity]}}',
    "beyond a double": b'{"role": "user", "content": "x", "metadata": {"n": 1e999}}',
    "a number of 5,000 digits": b'{"role": "user", "content": "x", "metadata": {"n": %b}}'
    % (b"9" * 5_000),
    "a number of 1,000,000 digits": b'{"n": ' + b"9" * MB + b"}",
    "a key twice": b'{"role": "user", "role": "tool", "content": "x"}',
    "a key twice, deep": b'{"role": "user", "content": "x", "metadata": {"a": [{"k": 1, "k": 1}]}}',
    "a key twice, escaped": b'{"role": "user", "\\u0072ole": "tool", "content": "x"}',
    "100,000 brackets": b"[" * 100_000,
    "100,000 braces": b'{"a":' * 100_000,
    "100,000 levels": b'{"metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "200 levels": b'{"role": "user", "content": "x", "metadata": {"a": %b%b}}'
    % (b"[" * 200, b"]" * 200),
    "7 MB of brackets": b"[" * (7 * MB),
    "7 MB of zeros": bytes(7 * MB),
    "100,000 unknown fields": json.dumps(dict.fromkeys(map(str, range(100_000)), 1)).encode(),
    "a field name of 1 MB": b'{"%b": 1}' % (b"x" * MB),
}  # fmt: skip

BAD_HEADERS = {
    "a version that is a word": b"Convo-Expected-Version: one",
    "a negative version": b"Convo-Expected-Version: -1",
    "a version with a sign": b"Convo-Expected-Version: +1",
    "a fraction of a version": b"Convo-Expected-Version: 1.0",
    "an empty version": b"Convo-Expected-Version:",
    "two versions": b"Convo-Expected-Version: 1, 2",
    "a version of 1,000 digits": b"Convo-Expected-Version: " + b"9" * 1_000,
    "a version of 17 digits": b"Convo-Expected-Version: " + b"9" * 17,
    "a version in Arabic digits": "Convo-Expected-Version: ١".encode(),
    "a version with an underscore": b"Convo-Expected-Version: 1_0",
    "an empty command id": b"Convo-Command-Id:",
    "a blank command id": b"Convo-Command-Id:   ",
    "a command id of 129 characters": b"Convo-Command-Id: " + b"x" * 129,
    "a command id that is no UTF-8": b"Convo-Command-Id: id-\xff",
    "an actor that is no UTF-8": b"Convo-Actor: ada-\xff",
}

ODD_BUT_HARMLESS_HEADERS = {
    "none at all": b"NATS/1.0\r\n\r\n",
    "unknown ones": b"NATS/1.0\r\nX-Any: thing\r\nx: \r\n\r\n",
    "60,000 bytes": b"NATS/1.0\r\nX-Any: " + b"x" * 60_000 + b"\r\n\r\n",
    "3,000 of them": b"NATS/1.0\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(3_000)) + b"\r\n",
    "no colon": b"NATS/1.0\r\nConvo-Actor\r\n\r\n",
    "no name": b"NATS/1.0\r\n: x\r\n\r\n",
    "a name with a blank": b"NATS/1.0\r\nConvo Actor: x\r\n\r\n",
    "a name that is no ASCII": b"NATS/1.0\r\n\xff\xfe: x\r\n\r\n",
    "a zero byte": b"NATS/1.0\r\nX: a\x00b\r\n\r\n",
    "a trace context": b"NATS/1.0\r\ntraceparent: %b\r\n\r\n"
    % b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "a broken trace context": b"NATS/1.0\r\ntraceparent: zz\r\n\r\n",
    "no end": b"NATS/1.0\r\nX: y",
}  # fmt: skip

BROKEN_HEADER_BLOCKS = {
    "the version line alone": b"NATS/1.0\r\n",
    "the version alone": b"NATS/1.0",
    "one byte": b"x",
    "garbage": b"\xff" * 50,
    "line ends": b"\r\n\r\n",
    "another version": b"NATS/9.9\r\nX: y\r\n\r\n",
    "a status": b"NATS/1.0 503\r\n\r\n",
    "a status with words": b"NATS/1.0 100 Idle Heartbeat\r\n\r\n",
    "a status that is no text": b"NATS/1.0 \xff\xff\xff\r\n\r\n",
    "words of a status that are no text": b"NATS/1.0 200 \xff\xff\r\n\r\n",
    "a status and headers": b"NATS/1.0 200 OK\r\nX: y\r\n\r\n",
}

UNREADABLE_SUBJECTS = {
    "no UTF-8": b"convo.%b.acme.\xff\xfe.%b",
    "no UTF-8 behind it all": b"convo.%b.acme.c.%b\xff",
    "half a character": b"convo.%b.acme.\xe6\xbc.%b",
    "a vertical tab": b"convo.%b.acme.a\x0bb.%b",
    "a form feed": b"convo.%b.acme.a\x0cb.%b",
    "a zero byte": b"convo.%b.acme.a\x00b.%b",
    "control characters": b"convo.%b.acme.\x01\x1f\x7f.%b",
    "a star": b"convo.%b.*.*.%b",
    "an arrow": b"convo.%b.acme.>.%b",
    "3,900 bytes": b"convo.%b.acme." + b"x" * 3_900 + b".%b",
}


class Peer:
    """A raw connection with a conversation of its own, to see whether the service is well."""

    def __init__(self, nats: RawConnection) -> None:
        self.nats = nats
        self.tokens = f"acme.{token(f'c-{uuid4()}')}"
        self.said = 0
        self.asked("cmd", "init", b'{"user_id": "ada"}')

    def asked(self, kind: str, word: str, body: bytes, header: bytes | None = None) -> Delivered:
        return self.nats.request(f"convo.{kind}.{self.tokens}.{word}", body, header=header)

    def is_answered(self) -> None:
        """Fails unless the next command and the next query are carried out as ever."""
        self.said += 1
        body = json.dumps({"role": "tool", "content": f"good {self.said}"}).encode()
        assert self.asked("cmd", "append", body).json()["ok"]
        window = self.asked("get", "messages", b"").json()["messages"]
        assert [message["content"] for message in window][-1] == f"good {self.said}"

    def heard(self) -> list[str]:
        """What is in the window."""
        return [each["content"] for each in self.asked("get", "messages", b"").json()["messages"]]


@pytest.fixture
def peer(deployment: Deployment, quiet: None) -> Iterator[Peer]:
    answering(deployment.url)  # should the test before have left it reconnecting
    with RawConnection(deployment.url) as nats:
        yield Peer(nats)


def refusal(answer: Delivered, code: str = "invalid_request") -> dict[str, Any]:
    """The error of an answer, which has to be this one."""
    assert not answer.no_responders
    lines = [line.partition(b":") for line in answer.header.split(b"\r\n")]
    headers = {name.decode(): value.strip().decode() for name, _, value in lines}
    return checked_error(parsed(answer.body), headers, code)


@pytest.mark.parametrize("body", NOT_AN_OBJECT.values(), ids=NOT_AN_OBJECT)
def test_a_body_that_cannot_be_read_is_refused(peer: Peer, body: bytes) -> None:
    for kind, words in (("cmd", ("append", "init", "turn", "reset")), ("get", ("state", "events"))):
        for word in words:
            error = refusal(peer.asked(kind, word, body))
            assert len(json.dumps(error)) < 10_000
    peer.is_answered()
    assert peer.heard() == ["good 1"]


def test_no_body_stands_for_an_empty_object(peer: Peer) -> None:
    error = refusal(peer.asked("cmd", "append", b""))
    assert [each["field"] for each in error["details"]] == ["role", "content"]
    assert peer.asked("cmd", "reset", b"").json()["ok"]
    assert peer.asked("get", "state", b"").json()["ok"]


def test_a_request_over_the_payload_limit_ends_only_its_own_connection(
    peer: Peer, deployment: Deployment
) -> None:
    with RawConnection(deployment.url) as other:
        limit = other.greeting["max_payload"]
        with pytest.raises(ConnectionError):
            other.request(f"convo.cmd.{peer.tokens}.append", b"x" * (limit + 1))
    peer.is_answered()


def test_many_large_requests_at_once_are_all_answered(peer: Peer) -> None:
    body = json.dumps({"role": "tool", "content": "x" * 7 * MB}).encode()
    peer.nats.subscribe(b"_INBOX.large")
    for _ in range(24):
        peer.nats.publish(f"convo.cmd.{peer.tokens}.append".encode(), body, reply=b"_INBOX.large")
    for _ in range(24):
        refusal(peer.nats.next(), "message_too_large")
    peer.is_answered()


@pytest.mark.parametrize("header", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_a_header_that_makes_no_sense_is_refused(peer: Peer, header: bytes) -> None:
    error = refusal(peer.asked("cmd", "append", HELLO, b"NATS/1.0\r\n%b\r\n\r\n" % header))
    assert [each["field"] for each in error["details"]] == [header.partition(b":")[0].decode()]
    peer.is_answered()
    assert peer.heard() == ["good 1"]


@pytest.mark.parametrize("value", [b"one", b"-1", b"", b"1.5", b"9" * 40])
def test_a_minimal_sequence_that_makes_no_sense_is_refused(peer: Peer, value: bytes) -> None:
    header = b"NATS/1.0\r\nConvo-Min-Seq: %b\r\n\r\n" % value
    refusal(peer.asked("get", "state", b"", header))
    peer.is_answered()


@pytest.mark.parametrize("value", [b"STRONG", b"weak", b"", b"strong, strong"])
def test_a_consistency_that_is_unknown_is_refused(peer: Peer, value: bytes) -> None:
    header = b"NATS/1.0\r\nConvo-Consistency: %b\r\n\r\n" % value
    refusal(peer.asked("get", "state", b"", header))
    peer.is_answered()


def test_command_ids_in_header_and_body_have_to_be_one(peer: Peer) -> None:
    header = b"NATS/1.0\r\nConvo-Command-Id: one\r\n\r\n"
    body = b'{"role": "tool", "content": "x", "command_id": "%b"}'
    refusal(peer.asked("cmd", "append", body % b"two", header))
    first = peer.asked("cmd", "append", body % b"one", header).json()
    assert first["ok"]
    assert peer.asked("cmd", "append", body % b"one").json() == {**first, "duplicate": True}
    assert peer.asked("cmd", "append", HELLO, header).json() == {**first, "duplicate": True}


def test_blanks_around_a_header_do_not_count(peer: Peer) -> None:
    header = b"NATS/1.0\r\nConvo-Expected-Version: \t 1  \r\nConvo-Command-Id:k\r\n\r\n"
    assert peer.asked("cmd", "append", HELLO, header).json()["ok"]
    again = b"NATS/1.0\r\nConvo-Command-Id:   k\r\n\r\n"
    assert peer.asked("cmd", "append", HELLO, again).json()["duplicate"]


@pytest.mark.parametrize("header", ODD_BUT_HARMLESS_HEADERS.values(), ids=ODD_BUT_HARMLESS_HEADERS)
def test_an_odd_header_is_passed_over(peer: Peer, header: bytes) -> None:
    assert peer.asked("cmd", "append", HELLO, header).json()["ok"]
    assert peer.asked("get", "state", b"", header).json()["ok"]
    peer.is_answered()


@pytest.mark.parametrize("header", BROKEN_HEADER_BLOCKS.values(), ids=BROKEN_HEADER_BLOCKS)
def test_a_header_block_that_is_none_stops_nobody(peer: Peer, header: bytes) -> None:
    for kind, word, body in (("cmd", "append", HELLO), ("get", "state", b"")):
        answer = peer.asked(kind, word, body, header)
        if not answer.json()["ok"]:
            refusal(answer)
    peer.is_answered()


@pytest.mark.parametrize("subject", UNREADABLE_SUBJECTS.values(), ids=UNREADABLE_SUBJECTS)
def test_a_subject_that_cannot_be_an_id_is_refused(peer: Peer, subject: bytes) -> None:
    refusal(peer.nats.request(subject % (b"cmd", b"append"), HELLO))
    refusal(peer.nats.request(subject % (b"get", b"state")))
    peer.is_answered()


def test_a_subject_with_an_empty_token_reaches_nobody(peer: Peer) -> None:
    assert peer.nats.request(b"convo.cmd.acme..append", HELLO).no_responders
    assert peer.nats.request(b"convo.get..c.state").no_responders
    peer.is_answered()


@pytest.mark.parametrize(
    "reply",
    [b"\xff\xfe", b"a\x0bb", b"a..b", b".", b"*", b"x" * 3_000],
    ids=lambda each: ascii(each[:9]),
)
def test_a_reply_subject_that_cannot_be_used_stops_nobody(peer: Peer, reply: bytes) -> None:
    peer.nats.publish(f"convo.cmd.{peer.tokens}.append".encode(), HELLO, reply=reply)
    peer.nats.publish(f"convo.get.{peer.tokens}.state".encode(), b"", reply=reply)
    peer.is_answered()


@pytest.mark.parametrize("verb", [b"PING", b"INFO", b"STATS"])
def test_a_service_asked_without_a_reply_subject_goes_on(peer: Peer, verb: bytes) -> None:
    peer.nats.publish(b"$SRV." + verb, b"")
    peer.nats.publish(b"$SRV." + verb + b".convo-commands", b"\xff", header=b"NATS/1.0\r\n\r\n")
    peer.is_answered()


def test_a_command_without_a_reply_subject_is_carried_out(peer: Peer) -> None:
    command = f"convo.cmd.{peer.tokens}.append".encode()
    peer.nats.publish(command, HELLO)
    peer.nats.publish(command, b"not JSON")
    peer.nats.publish(f"convo.get.{peer.tokens}.state".encode(), b"")
    peer.is_answered()  # one worker decides the commands of a conversation in their order
    assert peer.heard() == ["Hello", "good 1"]


def test_an_answer_never_goes_where_events_are_kept(peer: Peer, deployment: Deployment) -> None:
    """Who may only send commands could otherwise have the service write into the ledger."""
    with RawConnection(deployment.url) as nats:
        victim = Peer(nats)
        victim.is_answered()
        for partition in range(deployment.partitions):
            reply = f"convo.evt.{partition}.{victim.tokens}".encode()
            peer.nats.publish(f"convo.cmd.{peer.tokens}.append".encode(), HELLO, reply=reply)
            peer.nats.publish(f"convo.get.{peer.tokens}.state".encode(), b"", reply=reply)
            peer.nats.publish(f"convo.cmd.{peer.tokens}.nothing".encode(), b"", reply=reply)
        peer.is_answered()
        victim.is_answered()
        events = victim.asked("get", "events", b"").json()["events"]
        assert [event["version"] for event in events] == list(range(1, len(events) + 1))


def test_an_answer_to_a_command_subject_starts_no_circle(peer: Peer) -> None:
    command = f"convo.cmd.{peer.tokens}.append".encode()
    peer.nats.publish(command, HELLO, reply=command)
    peer.nats.publish(f"convo.get.{peer.tokens}.state".encode(), b"", reply=command)
    peer.is_answered()
    assert peer.heard() == ["Hello", "good 1"]

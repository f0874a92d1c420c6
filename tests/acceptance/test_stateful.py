"""Random lives of conversations through real processes, beside a plain dict of the same life.

Two workers answer: one keeps conversations in memory, the other one keeps nothing and reads each
anew from its snapshot and the events behind it. After every command the window, the totals and the
state are the model's; at the end of a life, so is its whole history.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.acceptance import model
from tests.acceptance.client import checked_error, parsed
from tests.acceptance.deployment import Deployment
from tests.acceptance.raw import Delivered, RawConnection

JSON = dict[str, Any]

SEED = int(os.environ.get("CONVO_TEST_SEED", random.randrange(2**32)))

words = st.one_of(
    st.sampled_from(["", " ", "Hello", "x" * 50, "y" * 51, "é" * 30, "é" * 31]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
roles = st.sampled_from(["user", "user", "assistant", "system", "tool"])
facts = st.dictionaries(
    st.sampled_from("abc"), st.one_of(st.none(), st.integers(-5, 5), words), max_size=3
)
tokens = st.integers(0, 2**53)
uses = st.fixed_dictionaries({"prompt_tokens": tokens, "completion_tokens": tokens})
command_ids = st.one_of(st.none(), st.sampled_from([f"k-{number}" for number in range(6)]))
message_ids = st.one_of(st.none(), st.sampled_from([f"m-{number}" for number in range(12)]))
some_ids = st.sampled_from([f"m-{number}" for number in range(12)])
offsets = st.one_of(st.none(), st.none(), st.none(), st.sampled_from([0, 0, -1, 1, 40]))
"""Of the expected version from the present one."""


def distinct(messages: list[JSON]) -> bool:
    """Says whether no message id comes twice."""
    given = [message["message_id"] for message in messages if "message_id" in message]
    return len(given) == len(set(given))


def given(body: JSON) -> JSON:
    """The body without what is not given."""
    return {name: value for name, value in body.items() if value is not None}


messages = st.builds(
    lambda **fields: given(fields), role=roles, content=words, message_id=message_ids
)
several = st.lists(messages, min_size=1, max_size=8).filter(distinct)
titles = st.one_of(st.none(), words)
beginnings = st.fixed_dictionaries(
    {"user_id": words.filter(bool)},
    optional={"title": titles, "model": titles, "context": facts, "metadata": facts},
)


class Life(RuleBasedStateMachine):
    """One conversation from its beginning, by random commands."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.nats = RawConnection(self.url)
        self.tokens = f"acme.c-{uuid4()}"
        self.model = model.fresh()
        self.first_answers: dict[str, JSON] = {}
        self.states: list[tuple[JSON, str | None]] = []  # and where the title was taken from

    @rule(facts=beginnings, id=command_ids, at=offsets)
    def init(self, facts: JSON, id: str, at: int) -> None:
        self.send("init", {**facts, "command_id": id}, at)

    @rule(message=messages, id=command_ids, at=offsets)
    def append(self, message: JSON, id: str, at: int) -> None:
        self.send("append", {**message, "command_id": id}, at)

    @rule(use=uses, id=command_ids, at=offsets)
    def usage(self, use: JSON, id: str, at: int) -> None:
        self.send("usage", {**use, "command_id": id}, at)

    @rule(said=several, use=st.one_of(st.none(), uses), id=command_ids, at=offsets)
    def turn(self, said: list[JSON], use: JSON, id: str, at: int) -> None:
        self.send("turn", {"messages": said, "usage": use, "command_id": id}, at)

    @rule(id=command_ids, at=offsets)
    def reset(self, id: str, at: int) -> None:
        self.send("reset", {"command_id": id}, at)

    @rule(
        changes=st.fixed_dictionaries(
            {}, optional={"title": titles, "model": titles, "context": facts, "metadata": facts}
        ),
        id=command_ids,
        at=offsets,
    )
    def update(self, changes: JSON, id: str, at: int) -> None:
        self.send("update", {**changes, **given({"command_id": id})}, at)

    @rule(
        said=st.one_of(st.just([]), several, st.integers(20, 70).map(lambda n: [LINE] * n)),
        mode=st.sampled_from([None, "append", "replace"]),
        id=command_ids,
        at=offsets,
    )
    def import_(self, said: list[JSON], mode: str, id: str, at: int) -> None:
        self.send("import", {"messages": said, "mode": mode, "command_id": id}, at)

    @rule(message_id=some_ids, id=command_ids, at=offsets)
    def reply_start(self, message_id: str, id: str, at: int) -> None:
        self.send("reply.start", {"message_id": message_id, "command_id": id}, at)

    @rule(
        message_id=some_ids,
        index=st.integers(0, 4),
        texts=st.lists(words, min_size=1, max_size=4),
        id=command_ids,
        at=offsets,
    )
    def reply_chunk(self, message_id: str, index: int, texts: list[str], id: str, at: int) -> None:
        body = {"message_id": message_id, "index": index, "texts": texts, "command_id": id}
        self.send("reply.chunk", body, at)

    @rule(
        message_id=some_ids,
        use=st.one_of(st.none(), uses),
        reason=st.sampled_from([{}, {"finish_reason": "length"}]),
        id=command_ids,
        at=offsets,
    )
    def reply_finish(self, message_id: str, use: JSON, reason: JSON, id: str, at: int) -> None:
        body = {"message_id": message_id, "usage": use, "command_id": id, **reason}
        self.send("reply.finish", body, at)

    @rule(verb=st.sampled_from(["reply.abort", "redact"]), message_id=some_ids, id=command_ids)
    def abort_or_redact(self, verb: str, message_id: str, id: str) -> None:
        self.send(verb, {"message_id": message_id, "command_id": id}, None)

    @rule(message_id=some_ids, content=words, id=command_ids, at=offsets)
    def edit(self, message_id: str, content: str, id: str, at: int) -> None:
        self.send("edit", {"message_id": message_id, "content": content, "command_id": id}, at)

    @rule(reason=st.sampled_from([None, "closed", "inactive", "inactive", "deleted"]))
    def close(self, reason: str) -> None:
        self.send("close", {"reason": reason}, None)

    @rule(id=command_ids)
    def reopen(self, id: str) -> None:
        self.send("reopen", {"command_id": id}, None)

    @rule(chance=st.integers(0, 9))
    def erase(self, chance: int) -> None:
        if chance == 0:  # for it is the end of a life
            self.send("erase", {}, None)

    def send(self, verb: str, body: JSON, offset: int | None) -> None:
        """Sends the command and compares the answer with the model's."""
        if verb != "update":  # where null means something
            body = given(body)
        headers: JSON = {}
        header = None
        if offset is not None:
            expected = max(0, self.model["version"] + offset)
            headers["Convo-Expected-Version"] = str(expected)
            header = b"NATS/1.0\r\nConvo-Expected-Version: %d\r\n\r\n" % expected
        code, wanted = model.execute(self.model, verb, body, headers)
        answer = self.nats.request(
            f"convo.cmd.{self.tokens}.{verb}", json.dumps(body).encode(), header=header
        )
        reply = parsed(answer.body)
        if code != "ok":
            checked_error(reply, told(answer), code)
            return
        assert reply["ok"], reply
        assert [event["type"] for event in reply["events"]] == wanted["types"]
        for name in ("version", "duplicate", "usage", "lifetime"):
            assert reply.get(name) == wanted.get(name), name
        if verb == "init":
            assert wanted["state"].items() <= reply["state"].items()
        if verb in {"turn", "import"}:
            assert len(reply["message_ids"]) == len(body["messages"]) or reply["duplicate"]
        if reply["duplicate"]:
            assert reply == {**self.first_answers[body["command_id"]], "duplicate": True}
        elif "command_id" in body:
            self.first_answers[body["command_id"]] = reply

    @invariant()
    def every_view_is_the_model_s(self) -> None:
        if self.model["version"] == 0:
            for view in ("messages", "usage", "state"):
                answer = self.nats.request(f"convo.get.{self.tokens}.{view}")
                checked_error(parsed(answer.body), told(answer), "conversation_not_initialized")
            return
        window, state = self.get("messages"), self.get("state")
        same_messages(window["messages"], model.window_of(self.model))
        assert state["state"]["recent_messages"] == window["messages"]
        assert model.state_of(self.model).items() <= state["state"].items()
        assert model.totals_of(self.model).items() <= self.get("usage").items()
        assert window["seq"] == state["seq"] == state["state"]["seq"]
        self.states.append((state["state"], self.model["title_from"]))

    def teardown(self) -> None:
        """Compares the whole life with the model's once it is over."""
        with self.nats:
            if self.model["version"] > 0:
                self.compare_whole_lives()

    def compare_whole_lives(self) -> None:
        events = self.get("events", {"limit": 1_000})["events"]
        numbers = [event["version"] for event in events]
        assert numbers == list(range(1, min(1_000, self.model["version"]) + 1))
        if self.model["version"] <= 1_000:
            history = self.get("history", {"limit": 1_000, "include_reset": True})
            shown = self.model["all_messages"] if model.shows_messages(self.model) else []
            same_messages(history["messages"], shown)
        for state, title_from in random.Random(SEED).sample(self.states, min(4, len(self.states))):
            then = self.get("state", {"at_version": state["version"]})
            assert then["state"] == model.hidden(self.model, state, title_from)

    def get(self, view: str, body: JSON | None = None) -> JSON:
        """A view that has to be there."""
        answer = self.nats.request(
            f"convo.get.{self.tokens}.{view}", json.dumps(body or {}).encode()
        )
        reply = parsed(answer.body)
        assert reply["ok"], reply
        return reply


LINE: JSON = {"role": "tool", "content": "one of many"}


def same_messages(shown: list[JSON], modelled: list[JSON]) -> None:
    """Fails unless these are the model's messages, in its order."""
    for message, wanted in zip(shown, modelled, strict=True):
        assert {*model.HOW, "redacted"} & message.keys() <= wanted.keys()
        assert {name: message[name] for name in wanted if name != "command_id"} == {
            name: value for name, value in wanted.items() if name != "command_id"
        }


def told(answer: Delivered) -> dict[str, str]:
    """The headers of an answer."""
    lines = [line.partition(b":") for line in answer.header.split(b"\r\n")]
    return {name.decode(): value.strip().decode() for name, _, value in lines}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where two workers answer, of which one forgets every conversation at once."""
    limits = {"window_size": model.WINDOW_SIZE, "max_content_bytes": model.CONTENT_BYTES_MAX}
    deployed = Deployment(tmp_path_factory.mktemp("stateful"), **limits)
    deployed.worker(**limits, cache_bytes=0)
    try:
        deployed.start()
        yield deployed.url
        assert deployed.complaints() == []
    finally:
        deployed.stop()


@pytest.mark.timeout(600)  # finding the shortest life that fails takes its time
def test_random_lives_agree_with_a_plain_dict(url: str) -> None:
    print(f"seed {SEED}; to repeat: CONVO_TEST_SEED={SEED}")  # noqa: T201 (shown when it fails)
    Life.url = url
    run_state_machine_as_test(
        seed(SEED)(Life),
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )

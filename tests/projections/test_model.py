"""Whatever is asked of a conversation, in whatever order, the views agree with a plain dict."""

from __future__ import annotations

from typing import Any

from hypothesis import given as arbitrary
from hypothesis import settings

from domain.errors import ConversationError
from projections.state import ConversationView
from tests.domain import model as plain
from tests.domain.specification import ADAS, Request, given, through_storage

WINDOW_SIZE = 4


def code_of(error: ConversationError | None) -> str | None:
    return error.code if error is not None else None


def shown(message: dict[str, Any], given_: dict[str, Any]) -> dict[str, Any]:
    """Returns the message as the model has it: without what was made up."""
    flags = {"streaming", "finish_reason", "aborted", "edited", "redacted"} & given_.keys()
    assert message.keys() == {
        "message_id",
        "role",
        "content",
        "timestamp",
        "version",
        "metadata",
        *flags,
    }
    return {name: message[name] for name in given_}


@arbitrary(requests=plain.lives)
@settings(max_examples=200)
def test_window_totals_and_state_agree_with_the_model_after_every_step(
    requests: list[Request],
) -> None:
    scenario = given()
    view = ConversationView.empty(WINDOW_SIZE)
    model: plain.Model | None = None

    for request in requests:
        seen = len(scenario.events)
        outcome = scenario.when(request)
        model, expected = plain.step(model, request)
        for event in through_storage(scenario.events[seen:]):
            view.apply(event, seq=100 + event.originator_version)

        if expected == "repeated":
            outcome.then_repeated()
        else:
            assert code_of(outcome.error) == (None if expected == "done" else expected)
        assert view.version == (model["version"] if model else 0)
        assert view.exists == (model is not None)
        if model is not None:
            agree(view, model)


def agree(view: ConversationView, model: plain.Model) -> None:
    expected_window = [] if model["status"] == "deleted" else model["session"][-WINDOW_SIZE:]
    window = view.messages()
    assert [shown(*each) for each in zip(window, expected_window, strict=True)] == expected_window
    for limit in range(1, WINDOW_SIZE + 2):
        assert view.messages(limit) == window[-limit:]

    used, lifetime = sums(model, ""), sums(model, "lifetime_")
    assert view.usage() == {"usage": used, "lifetime": lifetime}

    state = view.state()
    assert state.pop("created_at") <= state.pop("last_activity")
    assert state == {
        "conversation_id": ADAS.conversation_id,
        "tenant_id": ADAS.tenant_id,
        "user_id": model["user_id"],
        "title": model["title"],
        "status": model["status"],
        "model": model["model"],
        "context": model["context"],
        "metadata": model["metadata"],
        "recent_messages": window,
        "tokens_used": used,
        "lifetime_tokens": lifetime,
        "message_count": model["message_count"],
        "version": model["version"],
        "seq": 100 + model["version"],
    }


def sums(model: plain.Model, which: str) -> dict[str, int]:
    prompt, completion = model[f"{which}prompt"], model[f"{which}completion"]
    return {"prompt": prompt, "completion": completion, "total": prompt + completion}

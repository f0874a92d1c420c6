"""The history: the messages of a conversation beyond its window, one page of events at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from domain.events import ConversationEvent

from .messages import Beginning, Change, Message, changed, message_view, redacted


class History:
    """The messages that a run of events began, as the events behind them left them.

    Where a reader must not see behind the last reset, begin the run after
    `ConversationView.reset_version`.
    """

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._places: dict[str, int] = {}
        self._unfinished: set[str] = set()

    def apply(self, event: ConversationEvent) -> None:
        """Takes the next event in."""
        if isinstance(event, Beginning):
            self._places[event.message_id] = len(self._messages)
            self._messages.append(message_view(event))
            self._note(self._messages[-1])
        else:
            self.follow(event)

    def follow(self, event: ConversationEvent) -> None:
        """Takes in what a later event says about these messages; it begins none."""
        if isinstance(event, Change):
            place = self._places.get(event.message_id)
            if place is not None:
                self._messages[place] = changed(self._messages[place], event)
                self._note(self._messages[place])

    def hide(self, redactions: Mapping[str, int]) -> None:
        """Redacts the messages that are redacted at a version (message_id → version) behind."""
        for place, message in enumerate(self._messages):
            if redactions.get(message["message_id"], 0) > message["version"]:
                self._messages[place] = redacted(message)

    def keep(self, start: int | None, end: int | None) -> None:
        """Forgets the messages outside `[start:end]`."""
        kept = self._messages[start:end]
        self._messages, self._places, self._unfinished = kept, {}, set()
        for place, message in enumerate(kept):
            self._places[message["message_id"]] = place
            self._note(message)

    @property
    def messages(self) -> list[Message]:
        """The messages in the order in which they began."""
        return list(self._messages)

    def is_unfinished(self) -> bool:
        """Says whether some of them are replies whose end has not been taken in."""
        return bool(self._unfinished)

    def __len__(self) -> int:
        return len(self._messages)

    def _note(self, message: Message) -> None:
        if "streaming" in message:
            self._unfinished.add(message["message_id"])
        else:
            self._unfinished.discard(message["message_id"])


def messages_of(events: Iterable[ConversationEvent]) -> list[Message]:
    """Returns the messages that the events began, as the same events left them."""
    history = History()
    for event in events:
        history.apply(event)
    return history.messages

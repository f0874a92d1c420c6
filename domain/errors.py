"""The refusals of a conversation: one tree, each class one error code of the contract."""

from __future__ import annotations

from typing import Any, ClassVar

Details = dict[str, Any] | list[dict[str, Any]]


class ConversationError(Exception):
    """A refused command or query: nothing was written, and `message` says what to do next.

    `code` and `status` are the contract's; `details` (JSON-able, or None) carry the facts.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, details: Details | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class InvalidRequest(ConversationError):
    """The request cannot be read: not JSON, an unknown verb, a wrong field or id.

    `details`, where given, is a list with one {"field", "problem"} for each wrong field.
    """

    code = "invalid_request"
    status = 400


class ConversationNotInitialized(ConversationError):
    """The conversation does not exist; only `init` makes one."""

    code = "conversation_not_initialized"
    status = 404

    @classmethod
    def named(cls, tenant_id: str, conversation_id: str) -> ConversationNotInitialized:
        return cls(
            f"conversation {conversation_id!r} of tenant {tenant_id!r} does not exist yet: "
            "send init first",
            {"tenant_id": tenant_id, "conversation_id": conversation_id},
        )


class MessageNotFound(ConversationError):
    """The command names a message that the conversation does not have."""

    code = "message_not_found"
    status = 404

    @classmethod
    def named(cls, message_id: str) -> MessageNotFound:
        return cls(
            f"the conversation has no message {message_id!r}: look its id up in the history",
            {"message_id": message_id},
        )


class VersionConflict(ConversationError):
    """The conversation is not at the version that the caller expects."""

    code = "version_conflict"
    status = 409

    @classmethod
    def between(cls, *, expected: int, current: int) -> VersionConflict:
        return cls(
            f"the conversation is at version {current}, not at {expected}: "
            "read it again, decide again, and send the version you then saw",
            {"expected": expected, "current": current},
        )


class InvalidState(ConversationError):
    """The command does not fit what has happened in the conversation so far."""

    code = "invalid_state"
    status = 409


class ConversationIsClosed(ConversationError):
    """The conversation is closed and takes no more writes until it is reopened."""

    code = "conversation_closed"
    status = 410

    @classmethod
    def named(cls, conversation_id: str, status: str) -> ConversationIsClosed:
        return cls(
            f"conversation {conversation_id!r} is {status}: send reopen first",
            {"conversation_id": conversation_id, "status": status},
        )


class ConversationIsErased(ConversationError):
    """The conversation is erased and stays so."""

    code = "conversation_erased"
    status = 410

    @classmethod
    def named(cls, conversation_id: str) -> ConversationIsErased:
        return cls(
            f"conversation {conversation_id!r} has been erased for good: "
            "begin another one under a new id",
            {"conversation_id": conversation_id},
        )


class MessageTooLarge(ConversationError):
    """A message is larger than this ledger takes."""

    code = "message_too_large"
    status = 413

    @classmethod
    def content(cls, *, index: int, size_bytes: int, limit_bytes: int) -> MessageTooLarge:
        """`index` is the message's place in its command, counting from 0."""
        return cls(
            f"the content is {size_bytes} bytes and may be at most {limit_bytes}: "
            "shorten it, split it, or keep it elsewhere and refer to it",
            {"index": index, "size_bytes": size_bytes, "limit_bytes": limit_bytes},
        )

    @classmethod
    def facts(cls, *, size_bytes: int, limit_bytes: int) -> MessageTooLarge:
        """Context and metadata together would outgrow the answers that show them."""
        return cls(
            f"context and metadata would be {size_bytes} bytes and may be at most {limit_bytes}: "
            "remove what is not needed (null removes a key), or keep it elsewhere",
            {"size_bytes": size_bytes, "limit_bytes": limit_bytes},
        )


class RateLimited(ConversationError):
    """The conversation has taken its messages of this minute."""

    code = "rate_limited"
    status = 429
    retryable = True

    @classmethod
    def until(cls, *, messages_per_minute: int, retry_after_ms: int) -> RateLimited:
        return cls(
            f"this conversation takes {messages_per_minute} messages per minute: "
            f"send this again in {retry_after_ms} ms",
            {"messages_per_minute": messages_per_minute, "retry_after_ms": retry_after_ms},
        )

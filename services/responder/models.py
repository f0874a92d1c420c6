"""Language models: any OpenAI-compatible endpoint, or an echo that needs none."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from domain.messages import texts_of
from infra.settings import Settings
from services.responder.prompt import ChatMessage

if TYPE_CHECKING:
    from openai.types import CompletionUsage
    from openai.types.chat import ChatCompletionMessageParam

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 10.0
ECHO: Final = "echo"
ECHO_PAUSE_S: Final = 0.03


class ModelFailed(Exception):
    """The model did not answer to the end. The message is kept in the ledger and shown to users:
    it holds nothing that only the operator may know."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ended; `usage` as `reply.finish` takes it, None where the model did not say."""

    finish_reason: str
    usage: dict[str, Any] | None


class Model(Protocol):
    """Something that answers."""

    name: str
    """What it is called where a conversation does not name another."""

    def answer(
        self, messages: Sequence[ChatMessage], model: str
    ) -> AsyncGenerator[str | Ending, None]:
        """Yields the answer's text as it comes, then one Ending. Raises ModelFailed."""


def model_of(settings: Settings) -> Model:
    """The model that the settings name."""
    if settings.model_url is None:
        return Echo()
    key = settings.model_key.get_secret_value() if settings.model_key else None
    assert settings.model is not None, "the settings see to it"
    return OpenAICompatible(settings.model_url, settings.model, key)


class Echo:
    """Says what the user said, word by word; counts words for tokens."""

    name = ECHO

    def __init__(self, pause_s: float = ECHO_PAUSE_S) -> None:
        self._pause_s = pause_s

    async def answer(
        self,
        messages: Sequence[ChatMessage],
        model: str,  # noqa: ARG002 (there is one echo)
    ) -> AsyncGenerator[str | Ending, None]:
        text = "".join(texts_of(messages[-1]["content"]))
        words = re.findall(r"\S*\s*", text)[:-1]
        for word in words:
            yield word
            await asyncio.sleep(self._pause_s)
        prompt_tokens = sum(len("".join(texts_of(each["content"])).split()) for each in messages)
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(words)}
        yield Ending("stop", {**usage, "model": ECHO, "provider": ECHO})


class OpenAICompatible:
    """The chat completions API at `url`, streamed."""

    def __init__(self, url: str, name: str, key: str | None) -> None:
        from openai import AsyncOpenAI, Timeout  # noqa: PLC0415 (a second of importing)

        self.name = name
        # How long a model may be silent is for whoever asks to say; see `Answer`.
        self._client = AsyncOpenAI(
            base_url=url, api_key=key or "none", timeout=Timeout(None, connect=CONNECT_TIMEOUT_S)
        )

    async def answer(
        self, messages: Sequence[ChatMessage], model: str
    ) -> AsyncGenerator[str | Ending, None]:
        from openai import APIConnectionError, APIStatusError, OpenAIError  # noqa: PLC0415

        finish_reason: str | None = None
        usage: dict[str, Any] | None = None
        try:
            stream = await self._client.chat.completions.create(
                model=model,
                messages=cast("list[ChatCompletionMessageParam]", messages),  # as users stored them
                stream=True,
                stream_options={"include_usage": True},
            )
            async with stream:
                async for chunk in stream:
                    if chunk.usage is not None:
                        usage = usage_of(chunk.usage, chunk.model or model)
                    for choice in chunk.choices[:1]:
                        finish_reason = choice.finish_reason or finish_reason
                        # Some servers end with a choice that has no delta.
                        if text := getattr(choice.delta, "content", None):
                            yield text
        except APIStatusError as error:
            log.warning("the model refused: %s", error)
            raise ModelFailed(f"the model refused with status {error.status_code}") from None
        except APIConnectionError as error:
            log.warning("the model cannot be reached: %r", error.__cause__ or error)
            raise ModelFailed("the connection to the model failed") from None
        except (OpenAIError, ValueError) as error:
            log.warning("the model's answer broke: %r", error)
            raise ModelFailed("the model's answer broke") from None
        if finish_reason is None:
            raise ModelFailed("the model's answer broke off")
        yield Ending(finish_reason, usage)


def usage_of(told: CompletionUsage, model: str) -> dict[str, Any]:
    """Returns the model's own figures as `reply.finish` takes them. A part that would be more than
    the whole is left out."""
    usage: dict[str, Any] = {
        "prompt_tokens": told.prompt_tokens or 0,
        "completion_tokens": told.completion_tokens or 0,
        "model": model,
    }
    cached = told.prompt_tokens_details and told.prompt_tokens_details.cached_tokens
    if cached and cached <= usage["prompt_tokens"]:
        usage["cached_tokens"] = cached
    reasoning = told.completion_tokens_details and told.completion_tokens_details.reasoning_tokens
    if reasoning and reasoning <= usage["completion_tokens"]:
        usage["reasoning_tokens"] = reasoning
    return usage

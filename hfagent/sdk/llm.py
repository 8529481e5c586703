"""Base of connectors to language models: chat, embeddings, and the list of models.

The values here are what every provider has in common; provider options that have no counterpart elsewhere stay in the
connector's configuration. Prompts and answers are never logged and never part of an error message.

Retrying is allowed before the first event of an answer only: afterwards the caller has seen part of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.model.connector import Category
from hfagent.sdk.config import ConnectorConfig
from hfagent.sdk.connector import BaseConnector

__all__ = ["ChatEvent", "ChatMessage", "ChatRequest", "Embeddings", "LLMBase", "LlmModel", "TokenUsage"]

LlmConfigT = TypeVar("LlmConfigT", bound=ConnectorConfig)


@dataclass(frozen=True)
class ChatMessage:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class ChatRequest:
    """What to answer. `model` empty = the connector's default."""

    messages: tuple[ChatMessage, ...]
    model: str = ""
    max_output_tokens: int | None = None
    temperature: float | None = None
    stop: tuple[str, ...] = ()
    cancel: CancelToken = field(default_factory=CancelToken)
    deadline: Deadline = field(default_factory=lambda: Deadline(None))


@dataclass(frozen=True)
class TokenUsage:
    """Tokens as the provider counts them."""

    input: int = 0
    output: int = 0
    cached: int = 0
    """Part of `input` that was served from the provider's cache."""


@dataclass(frozen=True)
class ChatEvent:
    """A piece of an answer. The last event has `finish_reason` and, when the provider tells, `usage`."""

    text: str = ""
    finish_reason: Literal["stop", "length", "filtered", "other"] | None = None
    usage: TokenUsage | None = None
    model: str | None = None
    """The model that answers, as the provider names it."""


@dataclass(frozen=True)
class Embeddings:
    """One vector per text, in order."""

    vectors: tuple[tuple[float, ...], ...]
    model: str
    usage: TokenUsage = TokenUsage()


@dataclass(frozen=True)
class LlmModel:
    """A model that the account can use. What the provider does not tell is None or empty."""

    name: str
    context_tokens: int | None = None
    capabilities: tuple[Literal["chat", "embed", "vision", "tools"], ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


class LLMBase(BaseConnector[LlmConfigT], ABC):
    """A provider of language models. A connection is the provider's client object."""

    category: ClassVar[Category] = "llm"
    is_queryable: ClassVar[bool] = False

    @abstractmethod
    def models(self, connection: Any) -> Iterator[LlmModel]:
        """Yield the models, page by page. Costs nothing. Raises `auth.*`, `permission.denied`, `capacity.*`."""

    @abstractmethod
    def chat(self, connection: Any, request: ChatRequest) -> Iterator[ChatEvent]:
        """Yield the answer as it is made; closing the iterator or cancelling ends it at the provider.

        Raises `model.not_found`, `read.limit_exceeded` (too long for the model), `capacity.rate_limited` with
        `retry_after`, `capacity.quota_exceeded`, `transient.backend`.
        """

    @abstractmethod
    def embed(
        self, connection: Any, texts: Sequence[str], *, model: str = "", cancel: CancelToken | None = None,
        deadline: Deadline | None = None,
    ) -> Embeddings:  # fmt: skip
        """Return a vector per text. `model` empty = the connector's embedding model. Raises as `chat` does."""

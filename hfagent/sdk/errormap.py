"""One table per connector: native error → stable code, message pattern and hint. Nobody matches error text elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hfagent.foundation.errors import AgentError, SourceError

__all__ = ["ErrorMap", "Rule"]


@dataclass(frozen=True)
class Rule:
    """What one native error means. `message` may be None: then the server's own first line is used."""

    code: str
    hint: str | None = None
    message: str | None = None


@dataclass(frozen=True)
class ErrorMap:
    """Exact keys first, then prefixes (longest first), then the fallback."""

    exact: Mapping[str | int, Rule]
    prefixes: Mapping[str, Rule]
    fallback: Rule
    key_name: str = "number"
    """How the native key is called in `error.native`: `sqlstate`, `number` or `http_status`."""

    def find(self, key: str | int | None) -> Rule:
        """Return the rule for a native key."""
        if key in self.exact:
            return self.exact[key]  # type: ignore[index]
        if isinstance(key, str):
            for prefix in sorted(self.prefixes, key=len, reverse=True):
                if key.startswith(prefix):
                    return self.prefixes[prefix]
        return self.fallback

    def error(self, key: str | int | None, text: str, *, subject: str = "", **facts: Any) -> AgentError:
        """Build the error for a native key. `facts` fill `{placeholders}` of message and hint."""
        rule = self.find(key)
        line = text.strip().split("\n")[0].strip() or "no details"
        message = rule.message.format_map(_Facts(facts, text=line)) if rule.message else line
        hint = rule.hint.format_map(_Facts(facts, text=line)) if rule.hint else None
        native: dict[str, Any] = {"text": line}
        if key is not None:
            native[self.key_name] = key
        return SourceError(f"{subject}{message}", code=rule.code, hint=hint, native=native)


class _Facts(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return f"<{key}>"

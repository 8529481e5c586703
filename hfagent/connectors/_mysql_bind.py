"""Values bound into statements on the client's side, because PyMySQL has no prepared statements.

Placeholders are `%s` (by position) and `%(name)s` (by name), `%%` is a percent sign. They count only where SQL text is:
inside strings, quoted names and comments a percent sign is itself. The session is utf8mb4 and its sql_mode is ours, so a
value cannot end its literal: quotes and backslashes are escaped, bytes are written in hexadecimal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from hfagent.foundation.errors import UserError

__all__ = ["bind"]

_TOKENS = re.compile(
    r"""
    (?P<text>'(?:[^'\\]|\\.|'')*' | "(?:[^"\\]|\\.|"")*" | `(?:[^`]|``)*` | /\*.*?\*/ | (?:--(?=\s|$)|\#)[^\n]*)
    | (?P<percent>%%) | (?P<place>%s) | %\((?P<name>[^()]*)\)s
    """,
    re.VERBOSE | re.DOTALL,
)


def bind(sql: str, params: Sequence[Any] | Mapping[str, Any], escape: Callable[[str], str]) -> str:
    """Return `sql` with its placeholders replaced by literals; without parameters it comes back as it is.

    `escape` quotes a text for the session at hand. Raises `UserError` when placeholders and values do not match, or a
    value has no literal.
    """
    if not params:
        return sql
    named = params if isinstance(params, Mapping) else None
    positional = iter(()) if named is not None else iter(params)
    used = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal used
        if match["text"] is not None:
            return match["text"]
        if match["percent"] is not None:
            return "%"
        if match["place"] is not None:
            if named is not None:
                raise _mismatch("the statement has %s, but the parameters have names")
            used += 1
            try:
                return literal(next(positional), escape)
            except StopIteration:
                raise _mismatch(f"the statement has more %s than the {len(params)} parameters given") from None
        name = match["name"]
        if named is None or name not in named:
            raise _mismatch(f"the statement has %({name})s, but no parameter of that name is given")
        return literal(named[name], escape)

    bound = _TOKENS.sub(replace, sql)
    if named is None and used < len(params):
        raise _mismatch(f"the statement has {used} %s, but {len(params)} parameters are given")
    return bound


def literal(value: Any, escape: Callable[[str], str]) -> str:
    """Write a value as SQL. Instants become UTC, the session's time zone."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"the number {value} has no form in MySQL", code="request.invalid_params")
        return f"{value!r}e0" if "e" not in repr(value) else repr(value)
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise UserError(f"the number {value} has no form in MySQL", code="request.invalid_params")
        return f"{value:f}"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"X'{bytes(value).hex()}'"
    return escape(_text(value))


def _text(value: Any) -> str:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError("a text parameter is not valid Unicode", code="request.invalid_params") from None
        return value
    if isinstance(value, datetime):
        if value.tzinfo is not None:
            value = value.astimezone(UTC).replace(tzinfo=None)
        return str(value.isoformat(" "))
    if isinstance(value, date | time):
        return str(value.isoformat())
    if isinstance(value, timedelta):
        microseconds = value // timedelta(microseconds=1)
        seconds, fraction = divmod(abs(microseconds), 1_000_000)
        return f"{'-' if microseconds < 0 else ''}{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{fraction:06}"
    if isinstance(value, UUID):
        return str(value)
    raise UserError(f"a parameter of type {type(value).__name__} has no form in MySQL", code="request.invalid_params")


def _mismatch(message: str) -> UserError:
    return UserError(message, code="request.invalid_params", hint="give one value per %s, or names for %(name)s")

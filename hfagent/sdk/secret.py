"""A secret value that cannot be printed, logged, pickled or serialised by accident."""

from __future__ import annotations

from typing import Any, NoReturn

from pydantic_core import CoreSchema, core_schema

from hfagent.foundation.errors import ConfigError
from hfagent.foundation.redaction import MASK, register_secret

__all__ = ["Secret", "is_reference"]


def is_reference(value: object) -> bool:
    """Tell whether `value` is a secret reference: `{"$ref": "env:NAME"}`."""
    return isinstance(value, dict) and set(value) == {"$ref"} and isinstance(value["$ref"], str)


class Secret:
    """Holds one secret text. Every way of showing it gives eight bullets; `reveal()` gives the value.

    Making one registers the value with the redactor, so a driver that quotes it in an error text is covered too. A secret
    may hold an unresolved reference (`env:NAME`, `file:/path`, `systemd:NAME`, `keyring:service/user`) while a configuration
    is being checked; revealing that is an error.
    """

    __slots__ = ("_reference", "_value")

    def __init__(self, value: str | None, *, reference: str | None = None) -> None:
        self._value = value
        self._reference = reference
        if value:
            register_secret(value)

    def reveal(self) -> str:
        """Return the secret. Raises `ConfigError` when it is an unresolved reference."""
        if self._value is None:
            raise ConfigError(f"the secret reference {self._reference!r} is not resolved", code="credential.reference")
        return self._value

    @property
    def reference(self) -> str | None:
        """The reference text when the value comes from elsewhere."""
        return self._reference

    def __bool__(self) -> bool:
        return bool(self._value or self._reference)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return self._value == other._value and self._reference == other._reference

    def __hash__(self) -> int:
        return hash((self._value, self._reference))

    def __repr__(self) -> str:
        return f"Secret({MASK!r})"

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return format(MASK, spec)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self  # immutable; a configuration can be copied, the value is not multiplied in memory

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled")

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> CoreSchema:
        def build(value: Any) -> Secret:
            if isinstance(value, Secret):
                return value
            if isinstance(value, str):
                return cls(value)
            if is_reference(value):
                return cls(None, reference=value["$ref"])
            raise ValueError('expected a text, or a reference such as {"$ref": "env:NAME"}')

        return core_schema.no_info_plain_validator_function(
            build,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda _: MASK, return_schema=core_schema.str_schema()
            ),
            json_schema_input_schema=core_schema.str_schema(),
        )

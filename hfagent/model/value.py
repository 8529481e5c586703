"""Base of all values that cross a boundary."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Value"]


class Value(BaseModel):
    """Frozen, strict about unknown fields, names as on the wire."""

    # Inputs stay out of error texts: a secret in the wrong field would travel to the log with the trace.
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_enum_values=True, validate_default=False, hide_input_in_errors=True
    )

"""The declaration of a method.

    TEST = Method("connectors/test", TestParams, CheckReport, access=Access.OPERATE, progress=True)

The first line of the parameter model's docstring is the method's title; the rest is its description.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Literal, TypeVar

from pydantic import ConfigDict

from hfagent.model.value import Value

__all__ = ["Access", "Method", "Nothing", "Params"]


class Access(StrEnum):
    """What a caller must be allowed to do. Each level includes the ones before it, SECRET excepted.

    `READ` shows, `OPERATE` makes the agent talk to sources, `ADMIN` changes what is stored, `SECRET` touches key material
    and is never given to the platform, whatever else it may do.
    """

    READ = "read"
    OPERATE = "operate"
    ADMIN = "admin"
    SECRET = "secret"


class Params(Value):
    """Base of parameter models. Unknown fields are refused; the connection's own `workDoneToken` is stripped before."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_enum_values=True)


class Nothing(Params):
    """No parameters, or no result."""


P = TypeVar("P", bound=Params)
R = TypeVar("R", bound=Value)


@dataclass(frozen=True)
class Method(Generic[P, R]):
    """One method of the protocol."""

    name: str
    params: type[P]
    result: type[R]
    access: Access = Access.READ
    progress: bool = False
    """Sends `$/progress` when the request carries a `workDoneToken`."""
    errors: tuple[str, ...] = ()
    """Codes worth handling, beside the ones any method may answer with."""
    maturity: Literal["stable", "experimental"] = "stable"
    before_initialize: bool = False
    """May be called before `initialize`."""

    @property
    def namespace(self) -> str:
        """The part before the slash."""
        return self.name.split("/", 1)[0]

    @property
    def title(self) -> str:
        """First line of the parameter model's docstring."""
        return (self.params.__doc__ or self.name).strip().split("\n")[0]

    @property
    def description(self) -> str:
        """The parameter model's docstring without its first line."""
        lines = (self.params.__doc__ or "").strip().split("\n")[1:]
        return "\n".join(line.strip() for line in lines).strip()

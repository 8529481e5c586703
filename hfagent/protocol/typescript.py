"""The protocol in TypeScript: an interface per parameter model and value, and one map of all methods.

For editors: `call<M extends keyof Methods>(method: M, params: Methods[M]["params"]): Promise<Methods[M]["result"]>` is all
that a typed client needs. Parameters with a default are optional; results carry every field, null where there is nothing.

A pure function of the declarations, by way of the OpenRPC document; the file is `editors/protocol/protocol.ts`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from hfagent.foundation.errors import CODES
from hfagent.protocol.agent import PROTOCOL_VERSION
from hfagent.protocol.method import Method
from hfagent.protocol.openrpc import document
from hfagent.protocol.reference import GENERATED, short_name
from hfagent.protocol.table import METHODS

__all__ = ["typescript"]

_SIMPLE: Final = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}
_NAME = re.compile(r"[A-Za-z_$][\w$]*")


def typescript(methods: Mapping[str, Method[Any, Any]] = METHODS) -> str:
    """Return the text of `protocol.ts`. Raises `RuntimeError` when two values would get one name."""
    return "\n".join(_Writer(methods).lines()).rstrip("\n") + "\n"


class _Writer:
    """One run over the OpenRPC document."""

    def __init__(self, methods: Mapping[str, Method[Any, Any]]) -> None:
        described = document(methods)
        self._methods = [method for method in described["methods"] if method["name"] in methods]
        self._schemas: dict[str, Any] = described["components"]["schemas"]
        self._received = self._reach(method["result"]["schema"] for method in self._methods)
        self._sent = self._reach(param["schema"] for method in self._methods for param in method["params"])
        self._check_names()

    def lines(self) -> Iterator[str]:
        """All lines of the file."""
        yield from (f"// {GENERATED}", "")
        yield from ("/** The version of the protocol that these types describe. */",)
        yield from (f"export const PROTOCOL_VERSION = {PROTOCOL_VERSION};", "")
        yield from ("/** Stable error codes: match on them, never on a message. */", "export type ErrorCode =")
        yield from _union(CODES)
        yield ""
        for key in sorted(self._received, key=short_name):
            yield from self._interface(short_name(key), self._schemas[key], sent=False)
        for key in sorted(self._sent, key=short_name):
            yield from self._interface(self._name(key, sent=True), self._schemas[key], sent=True)
        for method in self._methods:
            yield from _comment("\n".join([method["summary"], "", method.get("description", "")]))
            yield f"export interface {_params_name(method['name'])} {{"
            for param in method["params"]:
                yield from self._member(param["name"], param["schema"], optional=not param["required"], sent=True)
            yield from ("}", "")
        yield from ("/** Every method with its parameters and its result. */", "export interface Methods {")
        for method in self._methods:
            yield f"  {json.dumps(method['name'])}: {{"
            yield f"    params: {_params_name(method['name'])};"
            yield f"    result: {self._type(method['result']['schema'], sent=False)};"
            yield "  };"
        yield from ("}", "", "export type MethodName = keyof Methods;")

    def _interface(self, name: str, schema: dict[str, Any], *, sent: bool) -> Iterator[str]:
        yield from _comment(schema.get("description", ""))
        yield f"export interface {name} {{"
        required = schema.get("required", ())
        for field, spec in schema.get("properties", {}).items():
            yield from self._member(field, spec, optional=sent and field not in required, sent=sent)
        yield from ("}", "")

    def _member(self, name: str, spec: dict[str, Any], *, optional: bool, sent: bool) -> Iterator[str]:
        yield from _comment(spec.get("description", ""), indent="  ")
        shown = name if _NAME.fullmatch(name) else json.dumps(name)
        yield f"  {shown}{'?' if optional else ''}: {self._type(spec, sent=sent)};"

    def _type(self, spec: Mapping[str, Any], *, sent: bool) -> str:
        if "$ref" in spec:
            return self._name(_key(spec), sent=sent)
        if "const" in spec:
            return json.dumps(spec["const"])
        if "enum" in spec:
            return " | ".join(json.dumps(value) for value in spec["enum"])
        if options := spec.get("anyOf"):
            return " | ".join(dict.fromkeys(self._type(option, sent=sent) for option in options))
        match spec.get("type"):
            case "array" if "prefixItems" in spec:
                return f"[{', '.join(self._type(item, sent=sent) for item in spec['prefixItems'])}]"
            case "array":
                return f"Array<{self._type(spec.get('items', {}), sent=sent)}>"
            case "object":
                inner = spec.get("additionalProperties")
                return f"Record<string, {self._type(inner, sent=sent) if isinstance(inner, dict) else 'unknown'}>"
            case "string" if spec.get("format") == "binary":
                return "Uint8Array"
            case str() as kind if kind in _SIMPLE:
                return _SIMPLE[kind]
            case _:
                return "unknown"

    def _name(self, key: str, *, sent: bool) -> str:
        # A value that travels both ways has two faces: what may be left out, and what is always there.
        return short_name(key) + ("Input" if sent and key in self._received else "")

    def _reach(self, roots: Iterable[Any]) -> set[str]:
        found: set[str] = set()
        pending: list[Any] = list(roots)
        while pending:
            node = pending.pop()
            if isinstance(node, list):
                pending += node
            elif isinstance(node, dict):
                if "$ref" in node and (key := _key(node)) not in found:
                    found.add(key)
                    pending.append(self._schemas[key].get("properties", {}))
                pending += [value for name, value in node.items() if name not in ("default", "examples", "enum")]
        return found

    def _check_names(self) -> None:
        names = [short_name(key) for key in self._received]
        names += [self._name(key, sent=True) for key in self._sent]
        names += [_params_name(method["name"]) for method in self._methods]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise RuntimeError(f"two models of the protocol are called {twice[0]}")


def _params_name(method: str) -> str:
    """`connectors/testHistory` → `ConnectorsTestHistoryParams`."""
    return "".join(part[:1].upper() + part[1:] for part in method.split("/")) + "Params"


def _key(spec: Mapping[str, Any]) -> str:
    return str(spec["$ref"]).rsplit("/", 1)[-1]


def _union(values: Iterable[str]) -> Iterator[str]:
    listed = list(values)
    for value in listed:
        yield f"  | {json.dumps(value)}" + (";" if value == listed[-1] else "")


def _comment(text: str, *, indent: str = "") -> Iterator[str]:
    lines = [line.strip() for line in text.replace("*/", "* /").strip().split("\n")]
    if lines == [""]:
        return
    if len(lines) == 1:
        yield f"{indent}/** {lines[0]} */"
        return
    yield f"{indent}/**"
    for line in lines:
        yield f"{indent} * {line}".rstrip()
    yield f"{indent} */"

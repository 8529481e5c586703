"""The reference documents in Markdown: methods, connector types, settings, error codes. Pure functions of declarations.

What a machine has installed, and when, never shows: the same declarations give the same text everywhere. Nothing is
written here; `tests/architecture/test_generated.py` compares the files and rewrites them on request.

The methods are read off the OpenRPC document, so that the reference and `rpc.discover` cannot tell different stories.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from pydantic import BaseModel

from hfagent.foundation.errors import CODES, ErrorCode
from hfagent.model.connector import ConnectorType
from hfagent.model.settings import Settings
from hfagent.protocol.method import Method
from hfagent.protocol.openrpc import document
from hfagent.protocol.table import METHODS

__all__ = [
    "GENERATED",
    "connectors_document",
    "errors_document",
    "methods_document",
    "settings_document",
    "short_name",
]

GENERATED: Final = (
    "Generated from the declarations; do not edit. Regenerate: "
    "HFAGENT_UPDATE=1 python -m pytest tests/architecture/test_generated.py"
)
"""Line 1 of every generated file, inside a comment."""

_BLAME: Final = {
    "config": "whoever configured the connector or the agent",
    "auth": "whoever holds the account: the sign-in was refused",
    "network": "whoever runs the network between agent and source",
    "tls": "whoever runs the certificates",
    "permission": "the source's administrator: a right is missing",
    "schema": "whoever named the stream or column",
    "capacity": "the source's administrator, or the one who asks for too much",
    "timeout": "whoever set the time limit, or wrote the statement",
    "transient": "nobody: repeat it",
    "read": "whoever runs the source",
    "state": "whoever set up the incremental sync",
    "lakehouse": "whoever runs the machine that keeps the datasets",
    "query": "whoever wrote the statement",
    "vault": "whoever runs the agent: its key or a secret reference is missing",
    "request": "whoever wrote the client",
    "system": "the developers of hfagent",
    "control": "whoever runs the agent, or nobody",
}
"""Group of codes → who has to act."""

_ACCESS: Final = {
    "read": "shows what the agent knows",
    "operate": "makes the agent talk to sources",
    "admin": "changes what is stored, or the agent itself",
    "secret": "touches key material; never given to TCP clients or the platform",
}


# --- methods ----------------------------------------------------------------------------------------------------------


def methods_document(methods: Mapping[str, Method[Any, Any]] = METHODS) -> str:
    """Return the method reference: every method by namespace, then the values that results are made of."""
    described = document(methods)
    schemas: dict[str, Any] = described["components"]["schemas"]
    lines = [*_head("Methods"), described["info"]["description"], ""]
    lines += _table(("access", "what it allows"), ([f"`{name}`", text] for name, text in _ACCESS.items()))
    declared = [method for method in described["methods"] if method["name"] in methods]
    for namespace, group in groupby(declared, key=lambda method: str(method["tags"][0]["name"])):
        lines += [f"## {namespace}", ""]
        for method in group:
            lines += _method(method, schemas)
    lines += ["## Values", ""]
    for key in sorted(_reachable(declared, schemas), key=short_name):
        lines += [f"### {short_name(key)}", "", *_paragraphs(schemas[key].get("description", ""))]
        lines += _fields(schemas[key])
    return _text(lines)


def _method(method: dict[str, Any], schemas: dict[str, Any]) -> Iterator[str]:
    yield from (f"### `{method['name']}`", "", method["summary"], "")
    yield from _paragraphs(method.get("description", ""))
    facts = [f"Access: `{method['x-access']}`"]
    if method["x-progress"]:
        facts.append("reports progress")
    if method["x-before-initialize"]:
        facts.append("may come before `initialize`")
    if method["x-maturity"] != "stable":
        facts.append(method["x-maturity"])
    yield from (" · ".join(facts) + ".", "")
    if method["params"]:
        yield from _table(
            ("parameter", "type", "default", "description"),
            (
                [
                    f"`{param['name']}`",
                    type_text(param["schema"]),
                    "required" if param["required"] else _default(param["schema"]),
                    param["schema"].get("description", ""),
                ]
                for param in method["params"]
            ),
        )
    else:
        yield from ("No parameters.", "")
    key = _key(method["result"]["schema"])
    yield from (f"Result: {_link(key)}. {_first_line(schemas[key])}", "")
    if errors := method["errors"]:
        codes = ", ".join(f"[`{e['data']['code']}`](ERRORS.md)" for e in errors)
        yield from (f"Errors worth handling: {codes}.", "")


def _fields(schema: dict[str, Any]) -> Iterator[str]:
    properties = schema.get("properties", {})
    if not properties:
        yield from ("No fields.", "")
        return
    rows = (
        [f"`{name}`", type_text(spec, nullable=True), spec.get("description", "")] for name, spec in properties.items()
    )
    yield from _table(("field", "type", "description"), rows)


def _reachable(methods: Iterable[dict[str, Any]], schemas: dict[str, Any]) -> set[str]:
    """Names of the values that results, and parameters with a structure of their own, are made of."""
    found: set[str] = set()
    pending: list[Any] = [method["result"]["schema"] for method in methods]
    pending += [param["schema"] for method in methods for param in method["params"]]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending += node
        elif isinstance(node, dict):
            if "$ref" in node and (key := _key(node)) not in found:
                found.add(key)
                pending.append(schemas[key].get("properties", {}))
            pending += [value for name, value in node.items() if name not in ("default", "examples", "enum")]
    return found


# --- connector types --------------------------------------------------------------------------------------------------


def connectors_document(types: Iterable[ConnectorType]) -> str:
    """Return the reference of connector types.

    `install_hint` must be the command of every type that has a driver, whether it is installed here or not.
    """
    listed = sorted(types, key=lambda entry: entry.type)
    lines = [*_head("Connector types")]
    lines += [
        "One section per type: what it is, what it can do, and the fields of its configuration. Secrets are sealed in the",
        "agent's vault and shown as eight bullets. An endpoint field says where secrets are sent: who changes it enters them",
        "again.",
        "",
    ]
    lines += _table(
        ("type", "title", "category", "can"),
        ([f"[`{t.type}`](#{t.type})", t.title, t.category, ", ".join(t.capabilities) or "–"] for t in listed),
    )
    for entry in listed:
        lines += _type_section(entry)
    return _text(lines)


def _type_section(entry: ConnectorType) -> Iterator[str]:
    yield from (f"## {entry.type}", "", f"**{entry.title}.** {entry.description}".strip(), "")
    if entry.aliases:
        yield f"* Aliases: {', '.join(f'`{alias}`' for alias in entry.aliases)}"
    yield f"* Category: {entry.category}; {'queryable' if entry.is_queryable else 'not queryable'}"
    yield f"* Capabilities: {', '.join(entry.capabilities) or 'none'}"
    if entry.dialect:
        yield f"* SQL dialect: {entry.dialect}"
    if entry.driver:
        yield f"* Driver: {entry.driver}" + (f", installed by `{entry.install_hint}`" if entry.install_hint else "")
    else:
        yield "* Driver: none needed"
    yield ""
    schema = entry.config_schema
    required = schema.get("required", ())
    yield from _table(
        ("field", "type", "default", "description"),
        (
            [
                f"`{name}`",
                "secret" if spec.get("x-secret") else type_text(spec),
                "required" if name in required else _default(spec),
                _field_text(spec),
            ]
            for name, spec in schema.get("properties", {}).items()
        ),
    )
    if examples := schema.get("examples"):
        yield from ("```json", json.dumps(examples[0], indent=2, ensure_ascii=False), "```", "")


def _field_text(spec: dict[str, Any]) -> str:
    notes = [str(spec.get("description", "")).strip()]
    if spec.get("x-endpoint"):
        notes.append("Endpoint.")
    if spec.get("x-agent-path"):
        notes.append("A path on the agent's machine.")
    if aliases := spec.get("x-aliases"):
        notes.append(f"Also accepted as {', '.join(f'`{alias}`' for alias in aliases)}.")
    if shown := spec.get("x-show-when"):
        conditions = (f"`{name}` is {' or '.join(map(_literal, values))}" for name, values in shown.items())
        notes.append(f"When {' and '.join(conditions)}.")
    return " ".join(note for note in notes if note)


# --- settings ---------------------------------------------------------------------------------------------------------


def settings_document(settings: type[BaseModel] = Settings, *, restart_needed: Collection[str] = ()) -> str:
    """Return the reference of the agent's settings. `restart_needed` names those that a reload cannot apply."""
    lines = [*_head("Settings")]
    lines += [
        "In the configuration file a setting `section.name` is `name` in the table `[section]`. The environment wins over",
        "the file, options on the command line win over both. Lists in the environment are comma-separated.",
        "",
    ]
    schema = settings.model_json_schema()
    definitions = schema.get("$defs", {})
    loose: dict[str, Any] = {}
    for name, spec in schema["properties"].items():
        section = definitions.get(_key(spec)) if "$ref" in spec else None
        if section is None:
            loose[name] = spec
            continue
        lines += [f"## {name}", "", *_paragraphs(section.get("description", ""))]
        lines += _settings_table({f"{name}.{inner}": s for inner, s in section["properties"].items()}, restart_needed)
    if loose:
        lines += ["## Without a section", "", *_settings_table(loose, restart_needed)]
    return _text(lines)


def _settings_table(rows: Mapping[str, dict[str, Any]], restart_needed: Collection[str]) -> Iterator[str]:
    yield from _table(
        ("setting", "environment", "type", "default", "description"),
        (
            [
                f"`{name}`",
                f"`HFAGENT_{name.replace('.', '_').upper()}`",
                type_text(spec),
                _default(spec),
                spec.get("description", "") + (" Needs a restart." if name in restart_needed else ""),
            ]
            for name, spec in rows.items()
        ),
    )


# --- errors -----------------------------------------------------------------------------------------------------------


def errors_document(codes: Mapping[str, ErrorCode] = CODES) -> str:
    """Return the reference of error codes, by who has to act."""
    lines = [*_head("Error codes")]
    lines += [
        "A failed method answers with JSON-RPC error data `{code, message, hint, stage, retryable, retry_after, native}`.",
        "Codes are stable: match on them, never on the text. The message says what failed, which thing and why; the hint is",
        "the next step. `retryable` in the answer counts; the column says what it usually is.",
        "",
    ]
    groups: dict[str, list[ErrorCode]] = {}
    for entry in codes.values():
        groups.setdefault(entry.blame, []).append(entry)
    for blame, entries in groups.items():
        lines += [f"## {blame}", "", f"Who acts: {_BLAME[blame]}.", ""]
        rows = ([f"`{entry.code}`", "yes" if entry.retryable else "no", entry.meaning] for entry in entries)
        lines += _table(("code", "retryable", "meaning"), rows)
    return _text(lines)


# --- schemas as text --------------------------------------------------------------------------------------------------


def short_name(key: str) -> str:
    """The class's own name: schemas of one name in two modules carry the module in their key."""
    return key.rsplit("__", 1)[-1]


def type_text(spec: Mapping[str, Any], *, nullable: bool = False) -> str:
    """Say a JSON Schema's type and limits in words. `nullable` mentions null; a parameter's is its default."""
    if "$ref" in spec:
        return _link(_key(spec))
    if "const" in spec:
        return _literal(spec["const"])
    if "enum" in spec:
        return " or ".join(map(_literal, spec["enum"]))
    if options := spec.get("anyOf"):
        texts = [type_text(o, nullable=nullable) for o in options if o.get("type") != "null"]
        if nullable and any(o.get("type") == "null" for o in options):
            texts.append("null")
        return " or ".join(texts)
    match spec.get("type"):
        case "array" if "prefixItems" in spec:
            return f"[{', '.join(type_text(item) for item in spec['prefixItems'])}]"
        case "array":
            inner = type_text(spec.get("items", {}))
            return "list" if inner == "any" else f"list of {inner}"
        case "object":
            inner = (
                type_text(spec["additionalProperties"]) if isinstance(spec.get("additionalProperties"), dict) else "any"
            )
            return "object" if inner == "any" else f"object of {inner}"
        case "string" if spec.get("format") == "binary":
            return "bytes"
        case "string" | "integer" | "number" | "boolean" as kind:
            return ", ".join([{"string": "text"}.get(kind, kind), *_limits(spec)])
        case None:
            return "any"
        case other:
            return str(other)


def _limits(spec: Mapping[str, Any]) -> Iterator[str]:
    for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")):
        if key in spec:
            yield f"{sign} {spec[key]:,}".replace(",", " ")
    if "maxLength" in spec:
        count = spec["maxLength"]
        yield "one character" if count == 1 else f"at most {count:,} characters".replace(",", " ")
    if "pattern" in spec:
        yield f"matching `{spec['pattern']}`"


def _default(spec: Mapping[str, Any]) -> str:
    value = spec.get("default")
    return "" if value is None or value in ("", [], {}) else _literal(value)


def _literal(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _key(spec: Mapping[str, Any]) -> str:
    return str(spec["$ref"]).rsplit("/", 1)[-1]


def _link(key: str) -> str:
    name = short_name(key)
    return f"[{name}](#{name.lower()})"


def _first_line(schema: Mapping[str, Any]) -> str:
    return str(schema.get("description", "")).strip().split("\n")[0]


# --- Markdown ---------------------------------------------------------------------------------------------------------


def _head(title: str) -> tuple[str, ...]:
    return (f"<!-- {GENERATED} -->", "", f"# {title}", "")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


def _paragraphs(text: str) -> Iterator[str]:
    if text.strip():
        yield from (*(line.strip() for line in text.strip().split("\n")), "")


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines).rstrip("\n") + "\n"

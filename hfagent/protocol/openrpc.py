"""The OpenRPC 1.3 document of the agent, made from the table of methods. This is what `rpc.discover` answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic.json_schema import JsonSchemaMode, models_json_schema

from hfagent import __version__
from hfagent.foundation.errors import CODES
from hfagent.protocol.agent import PROTOCOL_VERSION
from hfagent.protocol.method import Method
from hfagent.protocol.table import METHODS

__all__ = ["document"]

_REF: Final = "#/components/schemas/{model}"
_REQUEST_FAILED: Final = -32803

_INTRODUCTION: Final = """\
JSON-RPC 2.0 in the base protocol framing of the Language Server Protocol (Content-Length, Content-Type), as JSON or as
MessagePack (Content-Type: application/msgpack); a reply uses the encoding of its request. Call initialize first. A request
with workDoneToken is sent $/progress; $/cancelRequest cancels. A failed method answers with error -32803 and error.data
{code, message, hint, stage, retryable, retry_after, native}; the codes are stable. No batches."""


def document(methods: Mapping[str, Method[Any, Any]] = METHODS) -> dict[str, Any]:
    """Return the document as plain data. Parameters are by name; each is described on its own."""
    wanted: dict[tuple[type[Any], JsonSchemaMode], None] = {}
    for method in methods.values():
        wanted[method.params, "validation"] = None
        wanted[method.result, "serialization"] = None
    references, definitions = models_json_schema(list(wanted), ref_template=_REF)
    schemas: dict[str, Any] = definitions.get("$defs", {})
    return {
        "openrpc": "1.3.2",
        "info": {
            "title": "hfagent",
            "version": __version__,
            "description": _INTRODUCTION.replace("\n", " "),
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
            "x-protocol": PROTOCOL_VERSION,
        },
        "methods": [
            *(
                _method(
                    method,
                    _resolve(references[method.params, "validation"], schemas),
                    references[method.result, "serialization"],
                )
                for method in methods.values()
            ),
            _DISCOVER,
        ],
        "components": {"schemas": schemas},
    }


_DISCOVER: Final[dict[str, Any]] = {
    "name": "rpc.discover",
    "summary": "Describe all methods.",
    "paramStructure": "by-name",
    "params": [],
    "result": {
        "name": "OpenRPC document",
        "schema": {"$ref": "https://raw.githubusercontent.com/open-rpc/meta-schema/master/schema.json"},
    },
    "x-access": "read",
    "x-before-initialize": True,
}


def _method(method: Method[Any, Any], params: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    required = params.get("required", ())
    described: dict[str, Any] = {
        "name": method.name,
        "summary": method.title,
        "tags": [{"name": method.namespace}],
        "paramStructure": "by-name",
        "params": [
            {
                "name": name,
                "required": name in required,
                **({"description": schema["description"]} if "description" in schema else {}),
                "schema": schema,
            }
            # Required ones first, as the specification asks.
            for name, schema in sorted(params.get("properties", {}).items(), key=lambda item: item[0] not in required)
        ],
        "result": {"name": method.result.__name__, "schema": result},
        "errors": [
            {
                "code": _REQUEST_FAILED,
                "message": CODES[code].meaning,
                "data": {"code": code, "retryable": CODES[code].retryable},
            }
            for code in method.errors
        ],
        "x-access": str(method.access),
        "x-maturity": method.maturity,
        "x-progress": method.progress,
        "x-before-initialize": method.before_initialize,
    }
    if method.description:
        described["description"] = method.description
    return described


def _resolve(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found: dict[str, Any] = schemas[str(reference).rsplit("/", 1)[-1]]
    return found

"""The description that `rpc.discover` gives: complete, of the right shape, and true."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from hfagent.foundation.errors import CODES
from hfagent.protocol.openrpc import document
from hfagent.protocol.table import METHODS
from tests.fixtures.daemon import TEST_METHODS, RunningServer


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_shape() -> None:
    found = document()
    assert re.fullmatch(r"1\.3\.\d+", found["openrpc"])
    assert {"title", "version"} <= set(found["info"])
    assert set(found) <= {"openrpc", "info", "methods", "components", "servers", "externalDocs"}
    names = [method["name"] for method in found["methods"]]
    assert len(names) == len(set(names))
    allowed = {
        "name", "tags", "summary", "description", "params", "result", "deprecated", "servers", "errors", "links",
        "paramStructure", "examples", "externalDocs",
    }  # fmt: skip
    for method in found["methods"]:
        assert {key for key in method if not key.startswith("x-")} <= allowed
        assert method["summary"], method["name"]
        assert method["paramStructure"] == "by-name"
        required = [p.get("required", False) for p in method["params"]]
        assert required == sorted(required, reverse=True)  # required ones first
        for descriptor in [*method["params"], method["result"]]:
            assert {"name", "schema"} <= set(descriptor)
        for error in method.get("errors", ()):
            assert isinstance(error["code"], int)
            assert error["message"]
            assert error["data"]["code"] in CODES


def test_every_reference_leads_somewhere() -> None:
    found = document()
    local = [r for r in references(found) if r.startswith("#")]
    assert local
    for reference in local:
        assert reference.removeprefix("#/components/schemas/") in found["components"]["schemas"], reference
    assert json.loads(json.dumps(found)) == found


def test_every_method_is_described_with_its_fields() -> None:
    described = {method["name"]: method for method in document()["methods"]}
    assert set(described) == {*METHODS, "rpc.discover"}
    for name, method in METHODS.items():
        assert {p["name"] for p in described[name]["params"]} == set(method.params.model_fields)
        needed = {field for field, info in method.params.model_fields.items() if info.is_required()}
        assert {p["name"] for p in described[name]["params"] if p["required"]} == needed
        assert described[name]["x-access"] == method.access
        assert described[name]["summary"] == method.title


def test_every_described_method_is_there(server: RunningServer) -> None:
    """Called as described (nothing given), each answers: it runs, or names the parameter that the description requires."""
    server.services.release()  # or test/hold would wait for it
    with server.raw() as client:
        described = client.ask("rpc.discover")["result"]["methods"]
        assert len(described) == len(METHODS) + len(TEST_METHODS) + 1
        for method in described:
            reply = client.ask(method["name"], {})
            required = {p["name"] for p in method["params"] if p["required"]}
            if required:
                assert reply["error"]["code"] == -32602
                assert reply["error"]["data"]["field"] in required
            elif "error" in reply:
                assert reply["error"]["data"]["code"] in ("unsupported", "request.invalid_params"), method["name"]


def test_the_document_is_the_same_in_both_encodings(server: RunningServer) -> None:
    with server.raw() as client, server.raw(encoding="msgpack") as packed:
        assert client.ask("rpc.discover")["result"] == packed.ask("rpc.discover")["result"]

"""Every connector type of the installation, looked at from outside: what it declares, and what importing it costs."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from hfagent.foundation.errors import ConfigError
from hfagent.sdk.connector import BaseConnector
from hfagent.sdk.registry import Registry, describe

TYPES = Registry().names()

ANNOTATIONS = frozenset(
    {
        "x-group",
        "x-order",
        "x-secret",
        "x-endpoint",
        "x-pool-key",
        "x-agent-path",
        "x-advanced",
        "x-multiline",
        "x-show-when",
        "x-aliases",
        "x-placeholder",
        "x-help",
        "x-enum-titles",
        "x-nullable",
    }
)
"""What forms and the agent know how to read; anything else is a typing mistake."""

HEAVY = (
    "adbc_driver_postgresql",
    "anthropic",
    "azure",
    "boto3",
    "botocore",
    "chromadb",
    "cryptography",
    "duckdb",
    "elasticsearch",
    "faiss",
    "google.cloud",
    "grpc",
    "httpx",
    "mssql_python",
    "numpy",
    "openai",
    "oracledb",
    "oss2",
    "pandas",
    "psycopg",
    "pyarrow",
    "pymongo",
    "pymysql",
    "python_calamine",
    "snowflake",
    "sqlglot",
    "twilio",
)
"""Drivers, and libraries that take longer to import than the whole agent may take to start."""

LISTING = """
import json, sys
from hfagent.sdk.registry import Registry, describe
registry = Registry()
described = [describe(cls).type for cls in registry.all()]
heavy = json.loads(sys.argv[1])
print(json.dumps({"types": described, "loaded": [name for name in heavy if name in sys.modules]}))
"""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())


def schema_of(name: str) -> dict[str, Any]:
    return Registry().get(name).Config.json_schema()


def test_there_are_types() -> None:
    assert "postgresql" in TYPES


def test_describing_all_types_loads_no_driver() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LISTING, json.dumps(HEAVY)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert tuple(seen["types"]) == TYPES
    assert seen["loaded"] == []


@pytest.mark.parametrize("name", TYPES)
def test_type_declares_itself(name: str) -> None:
    cls: type[BaseConnector[Any]] = Registry().get(name)
    entry = describe(cls)
    assert entry.type == name == cls.type_name
    assert entry.title
    assert entry.title != name
    assert len(entry.description) > 20
    assert not inspect.isabstract(cls), f"{cls.__name__} leaves out {sorted(cls.__abstractmethods__)}"
    assert entry.is_queryable == ("query" in entry.capabilities) or cls.category == "file"


@pytest.mark.parametrize("name", TYPES)
def test_driver_is_declared_in_the_project(name: str, project: dict[str, Any]) -> None:
    driver = Registry().get(name).driver
    if driver is None:
        return
    extras = project["project"]["optional-dependencies"]
    assert driver.extra in extras, f"the extra {driver.extra!r} of {name} is not in pyproject.toml"
    wanted = re.sub(r"[-_.]+", "-", driver.package).lower()
    lines = extras[driver.extra] + project["project"]["dependencies"]  # the embedded default needs some drivers anyway
    brought = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", line)[0]).lower() for line in lines}
    assert wanted in brought, f"hfagent[{driver.extra}] does not bring {driver.package}"
    everything = " ".join(extras["all"])
    assert driver.extra == "all" or re.search(rf"[\[,]{re.escape(driver.extra)}[\],]", everything), (
        f"[all] leaves out {driver.extra}"
    )


@pytest.mark.parametrize("name", TYPES)
def test_schema_follows_the_dialect(name: str) -> None:
    schema = schema_of(name)
    assert schema["additionalProperties"] is False
    assert schema["description"]
    assert "$defs" not in schema
    problems = []
    for field, spec in schema["properties"].items():
        if len(str(spec.get("description", ""))) < 10:
            problems.append(f"{field}: no description")
        if unknown := {key for key in spec if key.startswith("x-")} - ANNOTATIONS:
            problems.append(f"{field}: unknown annotations {sorted(unknown)}")
        if "$ref" in json.dumps(spec):
            problems.append(f"{field}: a form cannot follow $ref")
        if "type" not in spec and "enum" not in spec:
            problems.append(f"{field}: no plain type ({sorted(spec)})")
        if spec.get("x-secret") and not spec.get("writeOnly"):
            problems.append(f"{field}: a secret must be writeOnly")
        if spec.get("x-secret") and spec.get("default") not in (None, ""):
            problems.append(f"{field}: a secret has a default")
        if not spec.get("x-group"):
            problems.append(f"{field}: no group")
        for other, values in spec.get("x-show-when", {}).items():
            target = schema["properties"].get(other)
            if target is None:
                problems.append(f"{field}: shown by {other!r}, which does not exist")
            elif strange := set(map(str, values)) - set(map(str, target.get("enum", values))):
                problems.append(f"{field}: shown by values that {other!r} cannot have: {sorted(strange)}")
        if (titles := spec.get("x-enum-titles")) and set(titles) - set(spec.get("enum", ())):
            problems.append(f"{field}: titles for values that it does not have")
    assert not problems, "\n".join(problems)
    assert [spec["x-order"] for spec in schema["properties"].values()] == list(range(len(schema["properties"])))


@pytest.mark.parametrize("name", TYPES)
def test_aliases_are_unambiguous(name: str) -> None:
    schema = schema_of(name)
    taken = set(schema["properties"])
    for spec in schema["properties"].values():
        for alias in spec.get("x-aliases", ()):
            assert alias not in taken, f"{name}: {alias!r} is claimed twice"
            taken.add(alias)


@pytest.mark.parametrize("name", TYPES)
def test_secret_goes_with_an_endpoint(name: str) -> None:
    """A secret without an endpoint could be sent anywhere; exceptions need a fixed address in the connector's code."""
    config = Registry().get(name).Config
    if config.secret_fields() and config.marked("x-endpoint"):
        endpoint = Registry().get(name).endpoint
        example = config.example
        changed = config.marked("x-endpoint")[0]
        assert endpoint(example) != endpoint(example | {changed: "elsewhere"})


@pytest.mark.parametrize("name", TYPES)
def test_example_has_no_real_secret(name: str) -> None:
    config = Registry().get(name).Config
    for secret in config.secret_fields():
        value = config.example.get(secret)
        assert value is None or len(str(value)) < 40, f"{name}: the example's {secret} looks real"


def test_unknown_type_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        Registry().get("postgresq")
    assert caught.value.code == "config.type_unknown"
    assert "postgresql" in str(caught.value.hint)


def test_aliases_lead_to_types() -> None:
    registry = Registry()
    assert registry.resolve("postgres") == registry.resolve("rds") == "postgresql"
    for alias, name in registry.aliases.items():
        assert registry.resolve(alias) == name

"""Start-up is lazy: what is imported when. Each question is put to a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest

from hfagent.sdk.registry import Registry
from tests.architecture.tree import ROOT, modules

HEAVY = frozenset(
    {
        "pyarrow",
        "numpy",
        "duckdb",
        "sqlglot",
        "cryptography",
        "keyring",
        "watchdog",
        "croniter",
        "python_calamine",
        "nacl",
        "rich",
    }
)
"""What costs tens of milliseconds or of megabytes: imported inside functions only (`rich` inside the command line)."""

_CHILD = """
{statements}
import sys
print(*sys.modules)
"""


def drivers() -> frozenset[str]:
    """Top-level modules of all drivers."""
    return frozenset(cls.driver.module.split(".")[0] for cls in Registry().all() if cls.driver is not None)


def test_the_package_imports_nothing() -> None:
    assert _loaded("import hfagent") - _loaded("pass") == {"hfagent"}


def test_the_forwarder_imports_what_an_interpreter_has_already() -> None:
    extra = _loaded("import hfagent.cli.forward") - _loaded("pass")
    assert {name for name in extra if not name.startswith("hfagent")} <= {"__future__", "_socket", "select"}
    assert {name for name in extra if name.startswith("hfagent")} == {
        "hfagent", "hfagent.cli", "hfagent.cli.forward", "hfagent.transport", "hfagent.transport.stdio",
    }  # fmt: skip


def test_the_version_needs_no_command_line() -> None:
    loaded = _loaded("from hfagent.__main__ import main; main(['--version'])")
    assert "hfagent.cli.main" not in loaded
    assert "argparse" not in loaded


def test_paths_are_light() -> None:
    loaded = _loaded("import hfagent.foundation.paths; hfagent.foundation.paths.AgentPaths(data_dir='/d').socket")
    assert loaded.isdisjoint({"pydantic", "pydantic_core", "asyncio", "platformdirs", "logging", "json"} | HEAVY)


def test_listing_types_imports_no_type() -> None:
    loaded = _loaded("from hfagent.sdk.registry import Registry; assert Registry().names()")
    assert {name for name in loaded if name.startswith("hfagent.connectors.")} == set()
    assert loaded.isdisjoint(HEAVY | drivers())


def test_the_catalog_loads_no_driver() -> None:
    statements = """
from hfagent.sdk.registry import Registry, describe
registry = Registry()
assert [describe(cls).model_dump_json() for cls in registry.all()]
assert registry.aliases is not None
"""
    assert _loaded(statements).isdisjoint(HEAVY | drivers())


@pytest.mark.parametrize(
    "name",
    [
        m.name
        for m in modules()
        if m.public and m.package in ("connectors", "sdk", "services", "server", "store", "vault")
    ],
)
def test_importing_a_module_loads_no_driver(name: str) -> None:
    """Private modules are another matter: they hold what is imported with the driver, inside a function."""
    assert _loaded(f"import {name}").isdisjoint(HEAVY | drivers())


def test_the_daemon_loads_no_driver_when_imported() -> None:
    assert _loaded("import hfagent.daemon").isdisjoint(HEAVY | drivers())


def test_building_the_command_line_loads_neither_services_nor_drivers() -> None:
    loaded = _loaded("from hfagent.cli.main import build_parser; build_parser()")
    assert loaded.isdisjoint((HEAVY - {"rich"}) | drivers())
    assert not [
        name for name in loaded if name.startswith(("hfagent.services", "hfagent.connectors", "hfagent.daemon"))
    ]


@cache
def _loaded(statements: str) -> frozenset[str]:
    """Modules that a fresh interpreter holds after the statements."""
    code = _CHILD.format(statements=statements)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return frozenset(done.stdout.splitlines()[-1].split())

"""The floor table: contracts for import-linter, the same table in ARCHITECTURE.md, and what import-linter cannot see."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from tests.architecture.tree import PACKAGE, ROOT, imports, modules, packages

_PARSERS = ("cryptography.x509", "cryptography.hazmat.primitives.serialization.load_")
_ROW = re.compile(r"\| (\d+) \| `(\w+)(?:/|\.py)` \| [^|]+ \| ([^|]+) \|")


def test_contracts_hold() -> None:
    done = _lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_contracts_name_the_floors_that_exist() -> None:
    assert packages() == set(_floors()), (
        "every package has a row in hfagent/docs/ARCHITECTURE.md, and every row a package"
    )
    layers = _contract("layers")["layers"]
    ranked = [re.findall(r"hfagent\.(\w+)", layer) for layer in reversed(layers)]
    rank = {name: floor for floor, names in enumerate(ranked) for name in names}
    for name, (floor, _) in _floors().items():
        for other, (other_floor, _) in _floors().items():
            assert (rank[name] < rank[other]) == (floor < other_floor), f"{name} and {other}: contract and table differ"


def test_rows_and_contracts_say_the_same() -> None:
    """For every package: what its row names, and what its contract forbids, are all the floors below it."""
    floors = _floors()
    contracts = {
        contract["source_modules"][0].removeprefix("hfagent."): contract["forbidden_modules"]
        for contract in _contracts()
        if contract["name"].startswith("Row: ")
    }
    for name, (floor, row) in floors.items():
        below = {other for other, (other_floor, _) in floors.items() if other_floor < floor} - {"foundation"}
        forbidden = {module.removeprefix("hfagent.") for module in contracts.get(name, ())}
        assert row <= below, f"{name}: its row names what is not below it: {row - below}"
        assert forbidden == below - row, f"{name}: the contract must forbid exactly what the row does not name"


def test_a_forbidden_import_is_found(tmp_path: Path) -> None:
    """Each contract is broken by a module that does what it forbids: none of them is satisfied by accident."""
    shutil.copytree(PACKAGE, tmp_path / "hfagent", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    expected = set()
    for contract in _contracts():
        if contract["type"] != "forbidden":
            continue
        target = contract["forbidden_modules"][0]
        folder = tmp_path / contract["source_modules"][0].replace(".", "/")
        if folder.is_dir():
            intruder = folder / f"intruder_{len(expected)}.py"
            intruder.write_text(f'"""Intruder."""\n\nimport {target}\n')
        else:
            with folder.with_suffix(".py").open("a") as file:
                file.write(f"\nimport {target}\n")
        expected.add(contract["name"])
    (tmp_path / "hfagent" / "foundation" / "intruder.py").write_text('"""Intruder."""\n\nimport hfagent.cli\n')
    expected.add(_contract("layers")["name"])
    (tmp_path / "hfagent" / "model" / "ring_a.py").write_text("import hfagent.model.ring_b\n")
    (tmp_path / "hfagent" / "model" / "ring_b.py").write_text("import hfagent.model.ring_a\n")
    expected.add(_contract("acyclic_siblings")["name"])

    done = _lint(tmp_path)
    assert done.returncode != 0
    told = " ".join(done.stdout.split("Contracts: ")[0].split())  # long names are wrapped
    assert {name for name in expected if re.search(re.escape(name) + r" BROKEN", told)} == expected


def test_connectors_parse_certificates_and_encrypt_nothing() -> None:
    """Outside the vault, `cryptography` reads the certificates and keys of TLS options. Its ciphers are the vault's."""
    for module in modules():
        if module.package == "vault":
            continue
        for node, name in imports(module):
            if name.split(".")[0] == "cryptography":
                where = f"{module.path}:{node.lineno}: imports {name}"
                assert module.package in ("sdk", "connectors"), where
                assert name.startswith(_PARSERS), where


def test_the_daemon_is_imported_inside_the_function_that_runs_it() -> None:
    for module in modules():
        if module.package not in ("cli", "__main__"):
            continue
        for node, name in imports(module):
            if name.startswith("hfagent.daemon"):
                assert module.name.startswith("hfagent.cli.commands."), f"{module.path} imports the daemon"
                assert node not in module.tree.body, f"{module.path}:{node.lineno}: imports the daemon at import time"


def test_a_connector_type_imports_no_other_but_its_parent() -> None:
    for module in modules():
        if module.package != "connectors" or module.name == "hfagent.connectors":
            continue
        bases = {
            base.id if isinstance(base, ast.Name) else getattr(base.value, "id", "")
            for node in ast.walk(module.tree)
            if isinstance(node, ast.ClassDef)
            for base in (b for b in node.bases if isinstance(b, ast.Name | ast.Subscript))
        }
        for node, name in imports(module):
            parts = name.split(".")
            if parts[:2] == ["hfagent", "connectors"] and not parts[2].startswith("_"):
                assert parts[-1] in bases, f"{module.path}:{node.lineno}: {name} is not what its class derives from"


def test_types_of_one_family_share_their_pieces_and_no_others() -> None:
    """`_mysql_rows.py` belongs to the family `mysql`; a file type never reaches into it, nor the other way round."""
    families: dict[str, set[str]] = {}
    for module in modules():
        if module.package != "connectors" or module.name == "hfagent.connectors":
            continue
        own = _family(module.name.split(".")[2])
        for _, name in imports(module):
            parts = name.split(".")
            if parts[:2] == ["hfagent", "connectors"] and parts[2].startswith("_"):
                families.setdefault(module.name, set()).add(_family(parts[2]))
        if own is not None and module.name in families:
            assert families[module.name] == {own}, f"{module.path}: uses pieces of {families[module.name] - {own}}"
    for name, used in families.items():
        assert len(used) == 1, f"{name} uses pieces of several families: {used}"


def _family(module: str) -> str | None:
    return module.split("_")[1] if module.startswith("_") else None


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"]
    return subprocess.run(
        command,
        cwd=folder,
        env={"PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=100,
    )


def _contracts() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    return found


def _contract(kind: str) -> dict[str, Any]:
    return next(contract for contract in _contracts() if contract["type"] == kind)


def _floors() -> dict[str, tuple[int, set[str]]]:
    """The table of ARCHITECTURE.md: package → its floor, and the packages that its row names."""
    text = (PACKAGE / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = {name: (int(floor), allowed) for floor, name, allowed in _ROW.findall(text)}
    assert rows, "ARCHITECTURE.md has lost its floor table"
    found = {}
    for name, (floor, allowed) in rows.items():
        named = set(re.findall(r"`(\w+)`", allowed))
        if allowed.startswith("all but"):
            named = {other for other, (other_floor, _) in rows.items() if other_floor < floor} - named - {"foundation"}
        found[name] = (floor, named)
    return found

"""What users and contributors meet has words (methods, settings, types, fields, commands, code), and the words are true."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator

import pytest

from hfagent.protocol.table import METHODS
from hfagent.sdk.registry import Registry
from hfagent.services.configuration import setting_names
from tests.architecture.documents import own_types
from tests.architecture.tree import PACKAGE, ROOT, Module, modules

ARCHITECTURE = PACKAGE / "docs" / "ARCHITECTURE.md"
_MARK = "Architecture Invariant:"
_HELD_BY = re.compile(r"`(tests/[\w/]+\.py)::([\w:]+)`")
_PATH = re.compile(r"`((?:hfagent|tests|editors|systemd)/[\w./*-]+)`")

Function = ast.FunctionDef | ast.AsyncFunctionDef


# --- what users meet --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_method_is_documented(method: object) -> None:
    for model in (method.params, method.result):  # type: ignore[attr-defined]
        text = vars(model).get("__doc__") or ""
        first = text.strip().split("\n")[0]
        assert len(first) > 10 and first.endswith((".", "?", ":")), f"{model.__qualname__}: {first!r}"


def test_settings_are_documented() -> None:
    assert [name for name, field in setting_names().items() if len(field.description or "") < 10] == []


def test_connector_types_are_documented() -> None:
    types = own_types()
    assert types
    for entry in types:
        assert entry.title and len(entry.description) > 10, entry.type
        fields = entry.config_schema["properties"]
        assert [name for name, spec in fields.items() if len(spec.get("description", "")) < 5] == [], entry.type
        assert entry.config_schema["examples"], f"{entry.type}: Config.example is missing"


def test_install_hints_name_extras_that_exist_and_bring_the_driver() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for cls in Registry().all():
        driver = cls.driver
        if driver is None or not cls.__module__.startswith("hfagent.connectors."):
            continue
        assert driver.extra in extras, f"{cls.type_name}: there is no extra {driver.extra!r}"
        brought = [*project["dependencies"], *extras[driver.extra]]
        names = {re.split(r"[^\w.-]", requirement)[0].lower() for requirement in brought}
        assert driver.package.lower() in names, (
            f"{cls.type_name}: {driver.install_hint} does not bring {driver.package}"
        )


def test_commands_are_documented() -> None:
    from hfagent.cli.main import build_parser

    commands = dict(_commands(build_parser(), "hfagent"))
    assert len(commands) > 15
    assert [name for name, (parser, text) in commands.items() if len(text) < 5 or not parser.description] == []
    options = [
        f"{name} {'/'.join(action.option_strings) or action.dest}"
        for name, (parser, _) in commands.items()
        for action in parser._actions
        if not action.help and not isinstance(action, argparse._SubParsersAction)
    ]
    assert options == [], "options without help"


def _commands(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, tuple[argparse.ArgumentParser, str]]]:
    """Every command and verb, with the line that the list above it shows."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            shown = {choice.dest: choice.help or "" for choice in action._choices_actions}
            done = set()
            for verb, inner in action.choices.items():
                if id(inner) in done:  # an alias
                    continue
                done.add(id(inner))
                help_ = next((text for dest, text in shown.items() if dest.split(" ")[0] == verb), "")
                yield f"{name} {verb}", (inner, help_)
                yield from _commands(inner, f"{name} {verb}")


# --- code -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.name)
def test_code_has_docstrings(module: Module) -> None:
    """Modules (packages among them), public classes and public functions.

    An override may leave it to what it overrides, and so may a method that a protocol class of the same module describes.
    """
    missing = [] if ast.get_docstring(module.tree) else ["the module"]
    if module.public:
        missing += _undocumented(module)
    assert missing == [], f"{module.path}: no docstring"


def _undocumented(module: Module) -> list[str]:
    missing = []
    described = {
        inner.name
        for cls in module.tree.body
        if isinstance(cls, ast.ClassDef)
        and any(ast.unparse(base).startswith(("Protocol", "ABC")) for base in cls.bases)
        for inner in cls.body
        if isinstance(inner, Function) and ast.get_docstring(inner)
    }
    for node in module.tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node):
            missing.append(node.name)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            missing += [
                f"{node.name}.{inner.name}"
                for inner in node.body
                if isinstance(inner, Function)
                and not inner.name.startswith("_")
                and not ast.get_docstring(inner)
                and inner.name not in described
                and not _excused(inner)
                and not _inherited(module, node.name, inner.name)
            ]
    return missing


def _excused(function: Function) -> bool:
    """A setter shares its property's words; an overload its function's."""
    return any(ast.unparse(d).endswith((".setter", "overload")) for d in function.decorator_list)


def _inherited(module: Module, cls: str, method: str) -> bool:
    found = getattr(importlib.import_module(module.name), cls, None)
    return found is not None and bool(inspect.getdoc(getattr(found, method, None)))


# --- the written documents --------------------------------------------------------------------------------------------


def test_invariants_are_held_by_tests_that_exist() -> None:
    lines = [block for block in ARCHITECTURE.read_text(encoding="utf-8").split("\n* ") if block.startswith(_MARK)]
    assert len(lines) >= 8
    for line in lines:
        line = line.split("\n\n")[0]
        assert "(held by " in line, f"no test is named: {line}"
        named = _HELD_BY.findall(line)
        assert named, f"no test is named: {line}"
        for file, test in named:
            assert _exists(file, test), f"{file}::{test} does not exist"


def test_every_invariant_is_written_as_one() -> None:
    """The marker stands nowhere in the document but at the start of a list item, where the test above sees it."""
    text = ARCHITECTURE.read_text(encoding="utf-8")
    assert text.count(_MARK) == text.count("\n* " + _MARK)


@pytest.mark.parametrize("path", sorted((PACKAGE / "docs").glob("*.md")), ids=lambda path: path.name)
def test_documents_name_files_that_exist(path: object) -> None:
    text = path.read_text(encoding="utf-8")  # type: ignore[attr-defined]
    missing = [
        name for name in _PATH.findall(text) if "*" not in name and "<" not in name and not (ROOT / name).exists()
    ]
    assert missing == []


def _exists(file: str, test: str) -> bool:
    path = ROOT / file
    if not path.exists():
        return False
    nodes: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    for part in test.split("::"):
        found = [node for node in nodes if isinstance(node, Function | ast.ClassDef) and node.name == part]
        if not found:
            return False
        nodes = found[0].body
    return True

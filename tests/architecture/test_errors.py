"""The vocabulary of error codes: complete, and the only one that the tree uses."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from string import ascii_uppercase

import pytest

from hfagent.foundation import errors
from hfagent.foundation.errors import CODES, MAX_MESSAGE, AgentError
from hfagent.model.report import STAGES
from hfagent.protocol.reference import errors_document
from hfagent.protocol.table import METHODS
from tests.architecture.tree import Module, calls, docstrings, modules

_CODE = re.compile(r"[a-z]+\.[a-z_]+")
_CARRIERS = frozenset({"code", "default_code"})
_PREFIXES = frozenset(code.split(".")[0] for code in CODES)
_WITH_TABLES = frozenset({"connectors", "sdk", "server", "client", "vault"})


@pytest.mark.parametrize("entry", CODES.values(), ids=lambda entry: entry.code)
def test_code_says_what_it_means(entry: errors.ErrorCode) -> None:
    assert entry.meaning.endswith(".") and entry.meaning[0] in "`" + ascii_uppercase, entry.meaning
    assert len(entry.meaning) > 20
    assert [c.code for c in CODES.values() if c.meaning == entry.meaning] == [entry.code], "two codes of one meaning"
    assert f"| `{entry.code}` |" in errors_document()


def test_every_code_in_the_tree_is_declared() -> None:
    used = {(where, code) for module in modules() for where, code in _codes(module)}
    assert len(used) > 100, "the scan has gone blind"
    assert sorted((where, code) for where, code in used if code not in CODES) == []


def test_what_looks_like_a_code_is_one() -> None:
    """Tables map a server's errors to ours: their values are not arguments, but a slip there is as bad."""
    found = []
    for module in modules():
        prose = docstrings(module.tree)
        for node in ast.walk(module.tree) if module.package in _WITH_TABLES else ():
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                text = node.value
                if _CODE.fullmatch(text) and text.split(".")[0] in _PREFIXES and text not in CODES:
                    found.append(f"{module.path}:{node.lineno}: {text}")
    assert found == []


def test_methods_name_declared_codes() -> None:
    assert {code for method in METHODS.values() for code in method.errors} <= set(CODES)


def test_stages_in_the_tree_are_declared() -> None:
    """`probe.stage("auth")`, `.record`, `.skip`, `.fail`: the first argument is a stage of the test."""
    seen = set()
    for module in modules():
        for call in calls(module):
            function = call.func
            if not (
                isinstance(function, ast.Attribute)
                and isinstance(function.value, ast.Name)
                and function.value.id == "probe"
            ):
                continue
            stage = call.args[0] if call.args else None
            if function.attr in ("stage", "record", "skip", "fail", "wants") and isinstance(stage, ast.Constant):
                seen.add(stage.value)
                assert stage.value in STAGES, f"{module.path}:{call.lineno}"
    assert seen, "the scan has gone blind"


def test_every_class_of_error_has_a_declared_default() -> None:
    pending, seen = [AgentError], set()
    while pending:
        cls = pending.pop()
        seen.add(cls)
        assert cls.default_code in CODES
        assert cls.__doc__
        pending += cls.__subclasses__()
    assert len(seen) > 5


@pytest.mark.parametrize("size", [1, MAX_MESSAGE, MAX_MESSAGE + 1, 100_000])
def test_texts_of_an_error_are_short(size: int) -> None:
    assert MAX_MESSAGE == 500
    error = AgentError("m" * size, hint="h" * size, native={"text": "n" * size, "number": 7})
    data = error.to_data()
    assert data["message"] == str(error)
    for text in (data["message"], data["hint"], data["native"]["text"]):
        assert len(text) == min(size, 500)
        assert (len(text) < size) == text.endswith("…")
    assert len(AgentError.from_data({"code": "query.failed", "message": "m" * size}).message) <= 500


def test_an_unknown_code_is_refused() -> None:
    with pytest.raises(KeyError):
        AgentError("x", code="no.such_code")


def _codes(module: Module) -> Iterator[tuple[str, str]]:
    """Every literal that is used as a code: `code="…"`, `default_code = "…"`, `stage.warn("…", …)`."""
    for node in ast.walk(module.tree):
        values: list[ast.expr] = []
        if isinstance(node, ast.Call):
            values += [keyword.value for keyword in node.keywords if keyword.arg in _CARRIERS]
            if isinstance(node.func, ast.Attribute) and node.func.attr == "warn" and node.args:
                values.append(node.args[0])
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if node.value is not None and any(getattr(t, "id", getattr(t, "attr", "")) in _CARRIERS for t in targets):
                values.append(node.value)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            named = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            values += [default for argument, default in named if default is not None and argument.arg in _CARRIERS]
        for value in values:
            for constant in _literals(value):
                yield f"{module.path}:{constant.lineno}", constant.value


def _literals(value: ast.expr) -> Iterator[ast.Constant]:
    """The texts that an expression may be: itself, or the branches of a choice."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value
    elif isinstance(value, ast.IfExp):
        yield from _literals(value.body)
        yield from _literals(value.orelse)
    elif isinstance(value, ast.BoolOp):
        for part in value.values:
            yield from _literals(part)

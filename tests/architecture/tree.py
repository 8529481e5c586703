"""The source tree as the architecture tests see it: modules, their syntax trees, the files that are kept."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "hfagent"


@dataclass(frozen=True)
class Module:
    """One module of the product."""

    path: Path
    """Relative to the root of the tree."""
    name: str
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        """The floor's name: `services` for `hfagent.services.query`, `daemon` for `hfagent.daemon`, "" for the root."""
        return self.name.split(".")[1] if "." in self.name else ""

    @property
    def public(self) -> bool:
        """Whether no part of the name is private; `__init__` and `__main__` are public."""
        return not any(part.startswith("_") and not part.startswith("__") for part in self.name.split("."))


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the product, by path."""
    return tuple(_read(path) for path in sorted(PACKAGE.rglob("*.py")))


def _read(path: Path) -> Module:
    relative = path.relative_to(ROOT)
    parts = relative.with_suffix("").parts
    text = path.read_text(encoding="utf-8")
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Module(relative, name, text, ast.parse(text))


def packages() -> set[str]:
    """Names on the first floor below `hfagent`: packages, and modules that stand alone."""
    return {module.package for module in modules()} - {""}


def imports(module: Module) -> Iterator[tuple[ast.stmt, str]]:
    """Every import of a module, wherever it stands, with the full name of what is imported."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.path}:{node.lineno}: imports are absolute"
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def calls(module: Module) -> Iterator[ast.Call]:
    """Every call in a module."""
    return (node for node in ast.walk(module.tree) if isinstance(node, ast.Call))


def docstrings(tree: ast.Module) -> set[int]:
    """Identities of the constants that are docstrings (of attributes, too): prose, not values."""
    return {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def kept_files() -> tuple[Path, ...]:
    """Files that are, or would be, under version control; relative to the root."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
        found = [Path(name) for name in listed if name and (ROOT / name).is_file()]
    else:  # an unpacked source distribution
        folders = ("hfagent", "tests", "editors", "systemd")
        found = [p.relative_to(ROOT) for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file()]
        found = [path for path in found if "__pycache__" not in path.parts]
    return tuple(sorted(found))

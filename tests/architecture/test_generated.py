"""The generated documents say what the declarations say. `HFAGENT_UPDATE=1` rewrites them instead of comparing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hfagent.protocol.reference import GENERATED, settings_document
from hfagent.services.configuration import environment_name, setting_names
from tests.architecture.documents import DOCUMENTS, GENERATED_FOLDER
from tests.architecture.tree import ROOT
from tests.fixtures.cache import cached_directory

_TYPESCRIPT = "5.9.3"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_document_is_up_to_date(name: str) -> None:
    fresh, path = DOCUMENTS[name](), ROOT / name
    if os.environ.get("HFAGENT_UPDATE") == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(fresh, encoding="utf-8")
    assert path.exists(), f"{name} was never generated: set HFAGENT_UPDATE=1 and run this test"
    assert path.read_text(encoding="utf-8") == fresh, f"{name} is out of date: set HFAGENT_UPDATE=1 and run this test"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_document_says_how_it_is_made(name: str) -> None:
    text = DOCUMENTS[name]()
    assert GENERATED in text.split("\n", 1)[0]
    assert text == DOCUMENTS[name](), "the same declarations must give the same text"
    assert text.endswith("\n") and not text.endswith("\n\n")


def test_no_document_is_left_over() -> None:
    found = {str(path.relative_to(ROOT)) for path in (ROOT / GENERATED_FOLDER).iterdir()}
    assert found == {name for name in DOCUMENTS if name.startswith(GENERATED_FOLDER)}


def test_settings_are_documented_under_the_names_that_are_read() -> None:
    text = settings_document()
    for name in setting_names():
        assert f"| `{name}` | `{environment_name(name)}` |" in text


def test_typescript_compiles(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    compiler = _compiler()
    source = tmp_path / "protocol.ts"
    source.write_text(DOCUMENTS["editors/protocol/protocol.ts"](), encoding="utf-8")
    use = tmp_path / "use.ts"
    use.write_text(_USE, encoding="utf-8")
    wrong = tmp_path / "wrong.ts"
    wrong.write_text(_USE.replace('"connectors/list"', '"connectors/lisst"'), encoding="utf-8")

    def compile_(*files: Path) -> subprocess.CompletedProcess[str]:
        options = ["--noEmit", "--strict", "--target", "es2022", "--module", "es2022", "--moduleResolution", "bundler"]
        command = [node, str(compiler), *options, *map(str, files)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)

    good = compile_(source, use)
    assert good.returncode == 0, good.stdout + good.stderr
    assert compile_(source, wrong).returncode != 0, "a method that does not exist must not compile"


_USE = """\
import type { Methods, MethodName, ConnectorsTestParams, CheckReport } from "./protocol";

declare function call<M extends MethodName>(method: M, params: Methods[M]["params"]): Promise<Methods[M]["result"]>;

export async function run(): Promise<number> {
  const params: ConnectorsTestParams = { connector: "sales", mode: "quick" };
  const report: CheckReport = await call("connectors/test", params);
  const listed = await call("connectors/list", {});
  return report.stages.length + listed.connectors.length;
}
"""


def _compiler() -> Path:
    """The compiler's script, from npm's package, kept outside the tree for later runs."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")

    def build(directory: Path) -> None:
        # No lock file and no scripts: one package without dependencies, pinned.
        options = ["--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(directory)]
        subprocess.run(
            [npm, "install", *options, f"typescript@{_TYPESCRIPT}"], check=True, capture_output=True, timeout=100
        )

    try:
        directory = cached_directory("typescript", _TYPESCRIPT, build)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip(f"npm could not install typescript@{_TYPESCRIPT}")
    return directory / "node_modules" / "typescript" / "bin" / "tsc"

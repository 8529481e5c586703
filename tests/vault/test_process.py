"""What is true of the whole process: nothing heavy is imported early, and nobody looks into its memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_vault_and_the_store_loads_neither_cipher_nor_keyring() -> None:
    loaded = run(
        "import sys, hfagent.vault.vault, hfagent.vault.references, hfagent.vault.process, hfagent.store.store\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    ).split()
    assert not {"cryptography", "keyring", "pyarrow", "duckdb", "ctypes", "platformdirs"} & set(loaded)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux")
def test_memory_is_closed_to_debuggers_and_core_files() -> None:
    shown = run(
        "import ctypes, resource\n"
        "from hfagent.vault.process import protect_memory\n"
        "libc = ctypes.CDLL(None)\n"
        "before = libc.prctl(3, 0, 0, 0, 0)\n"
        "failed = protect_memory()\n"
        "print(before, failed, libc.prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE))"
    )
    assert shown.strip() == "1 () 0 (0, 0)"

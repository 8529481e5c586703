"""Log lines: redacted, one a record, private, and safe to look at in a terminal."""

from __future__ import annotations

import io
import json
import logging
import os
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hfagent.foundation import logs
from hfagent.foundation.redaction import MASK, register_secret, unregister_all


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, raising = list(root.handlers), root.level, logging.raiseExceptions
    hook, thread_hook, unraisable_hook = sys.excepthook, threading.excepthook, sys.unraisablehook
    levels = {name: logging.getLogger(name).level for name in logs._CAPPED}
    for handler in handlers:
        root.removeHandler(handler)  # pytest's own must not be closed by `set_up`
    yield
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    sys.excepthook, threading.excepthook, sys.unraisablehook = hook, thread_hook, unraisable_hook
    logging.raiseExceptions = raising
    logging.captureWarnings(False)
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)
    unregister_all()


def lines(format: str, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    logs.set_up(level=level, format=format, stream=stream)
    return stream


def test_json_lines_carry_extras_and_no_secret() -> None:
    register_secret("hunter22")
    out = lines("json")
    logging.getLogger("hfagent.pool").warning(
        "login %s", "hunter22", extra={"connector": "sales", "n": 3, "level": "fake"}
    )
    try:
        raise ValueError("hunter22")
    except ValueError:
        logging.getLogger("x").exception("failed\nbadly")
    first, second = map(json.loads, out.getvalue().splitlines())
    assert (first["message"], first["connector"], first["n"], first["level"]) == (
        f"login {MASK}",
        "sales",
        3,
        "warning",
    )
    assert first["at"].endswith("Z")
    assert second["message"] == "failed\nbadly"
    assert "ValueError" in second["trace"]
    assert "hunter22" not in out.getvalue()


@pytest.mark.parametrize("format", ["text", "journal"])
def test_a_server_cannot_forge_lines_or_send_escape_sequences(format: str) -> None:
    out = lines(format)
    try:
        raise ValueError("\x1b[31mred\n<0>forged")
    except ValueError:
        logging.getLogger("x").exception("a\x1b[2J\n<0>b\r", extra={"e": "\x1b]0;t\x07\n<0>c"})
    text = out.getvalue()
    assert "\x1b" not in text and "\x07" not in text and "\r" not in text
    assert not any(line.startswith("<0>") for line in text.splitlines()) or format == "text"
    if format == "journal":
        assert all(line.startswith("<3>") for line in text.splitlines())
    else:
        assert text.splitlines()[0].count("\\n<0>b") == 1


def test_levels_and_capped_loggers() -> None:
    out = lines("text", level="debug")
    assert logs.level_number("warning") == logging.WARNING
    logging.getLogger("hfagent.x").debug("seen")
    for name in ("pygls", "psycopg", "pymysql", "asyncio"):
        logging.getLogger(name).info("payload")
    assert "seen" in out.getvalue()
    assert "payload" not in out.getvalue()


def test_files_are_private_also_after_rotation(tmp_path: Path) -> None:
    file = tmp_path / "log" / "agent.log"
    previous = os.umask(0)
    try:
        logs.set_up(file=file, max_bytes=2000)
        for number in range(60):
            logging.getLogger("x").info("line %d with some length to it", number)
    finally:
        os.umask(previous)
    names = sorted(os.listdir(file.parent))
    assert names == ["agent.log", "agent.log.1"]
    assert [stat.S_IMODE((file.parent / name).stat().st_mode) for name in names] == [0o600, 0o600]
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert all(json.loads(line) for line in file.read_text().splitlines())
    assert sum((file.parent / name).stat().st_size for name in names) <= 4000


def test_a_file_of_a_less_careful_version_is_closed_to_others(tmp_path: Path) -> None:
    file = tmp_path / "agent.log"
    file.touch(mode=0o644)
    logs.set_up(file=file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "agent.log").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError):
        logs.set_up(file=tmp_path / "agent.log")
    assert not (tmp_path / "victim").exists()


def test_text_that_is_no_unicode_is_not_lost(tmp_path: Path) -> None:
    logs.set_up(file=tmp_path / "agent.log")
    logging.getLogger("x").info("path \udcff")
    assert "udcff" in (tmp_path / "agent.log").read_text()


def test_uncaught_errors_are_logged_without_secrets() -> None:
    register_secret("hunter22")
    out = lines("text")
    try:
        raise RuntimeError("hunter22")
    except RuntimeError as exc:
        sys.excepthook(type(exc), exc, exc.__traceback__)
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert out.getvalue().count("CRITICAL hfagent: uncaught\n") == 1
    assert "RuntimeError" in out.getvalue()
    assert "hunter22" not in out.getvalue()


def test_the_format_follows_the_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    assert logs._chosen("auto", tmp_path) == "json"
    assert logs._chosen("auto", None) == "json"  # stderr is no terminal here
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    assert logs._chosen("auto", None) == "journal"
    assert logs._chosen("text", None) == "text"


def test_errors_of_threads_and_finalizers_are_logged_without_secrets(capfd: pytest.CaptureFixture[str]) -> None:
    register_secret("hunter22")
    out = lines("json")

    def fails() -> None:
        raise RuntimeError("hunter22 in a thread")

    thread = threading.Thread(target=fails)
    thread.start()
    thread.join()
    leaving = threading.Thread(target=sys.exit)
    leaving.start()
    leaving.join()

    class Untidy:
        def __del__(self) -> None:
            raise RuntimeError("hunter22 in a finalizer")

    Untidy()
    first, second = map(json.loads, out.getvalue().splitlines())
    assert f"{MASK} in a thread" in first["trace"]
    assert f"{MASK} in a finalizer" in second["trace"]
    assert "hunter22" not in out.getvalue() + str(capfd.readouterr())


def test_before_the_log_is_set_up_uncaught_errors_go_to_stderr_without_secrets(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    register_secret("hunter22")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logs._log_uncaught(RuntimeError, RuntimeError("hunter22"), None)
    assert capfd.readouterr().err == f"RuntimeError: {MASK}\n"


@pytest.mark.parametrize("format", ["json", "text", "journal"])
def test_extra_fields_of_any_kind_are_redacted(format: str) -> None:
    register_secret("hunter22")
    out = lines(format)
    extra = {
        "nested": {"deep": ["hunter22", 5]},
        "error": ValueError("password=hunter22"),
        "path": Path("/tmp/hunter22"),
        "data": b"hunter22",
        "n": 5,
        "none": None,
    }
    logging.getLogger("x").info("m", extra=extra)
    assert "hunter22" not in out.getvalue()
    if format == "json":
        line = json.loads(out.getvalue())
        assert (line["nested"], line["n"], line["none"]) == ({"deep": [MASK, 5]}, 5, None)


def test_a_broken_log_call_prints_nothing_of_its_arguments(capfd: pytest.CaptureFixture[str]) -> None:
    register_secret("hunter22")
    out = lines("json")
    logging.getLogger("x").info("%d", "hunter22")
    assert "unprintable log record" in out.getvalue()
    assert "hunter22" not in out.getvalue() + str(capfd.readouterr())

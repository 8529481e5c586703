"""A connector type in a package of its own, installed by putting a directory on the path: for drivers that misbehave.

Type `slow`: `rows N` answers N rows at once, `sleep S` one row after S seconds, `hang` never (whatever it is told).
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["install"]

_CODE = '''
import threading, time
from collections.abc import Iterator
from typing import Any
import pyarrow as pa
from hfagent.foundation.errors import Cancelled, SourceError
from hfagent.sdk.arrow import columns_of
from hfagent.sdk.config import PoolFields, QueryFields, field
from hfagent.sdk.connector import BaseConnector, Cancellable, Queryable
from hfagent.sdk.reading import BatchReader
from hfagent.sdk.secret import Secret


class SlowConfig(QueryFields, PoolFields):
    """A slow thing."""

    host: str = field("localhost", description="Host.", endpoint=True)
    password: Secret | None = field(None, description="Password.", secret=True)


class Session:
    def __init__(self) -> None:
        self.stop = threading.Event()


class Slow(BaseConnector[SlowConfig], Queryable, Cancellable):
    title = "Slow"
    description = "For tests."
    is_queryable = True
    Config = SlowConfig

    def connect(self, deadline: Any) -> Session:
        if self.config.password is not None and "wrong" in self.config.password.reveal():
            raise SourceError(f"rejected {self.config.password.reveal()}", code="auth.invalid_credentials")
        return Session()

    def cancel(self, session: Session) -> None:
        session.stop.set()

    def close(self, session: Session) -> None:
        pass

    def test(self, probe: Any) -> None:
        with probe.stage("config"):
            pass
        with probe.stage("auth", map_error=self.map_error):
            self.connect(probe.deadline)

    def read_schema(self, session: Session, request: Any) -> Iterator[Any]:
        return iter(())

    def execute(self, session: Session, statement: Any) -> BatchReader:
        verb, _, value = statement.text.partition(" ")
        if verb == "hang":
            threading.Event().wait()
        if verb == "fail":
            raise RuntimeError("driver failed with " + self.config.password.reveal())
        if verb == "sleep" and session.stop.wait(float(value)):
            raise Cancelled()
        count = int(value) if verb == "rows" else 1
        batch = pa.RecordBatch.from_pydict({"n": list(range(count))})
        return BatchReader(columns_of(batch.schema), batch.schema, iter([batch]))
'''


def install(folder: Path) -> Path:
    """Write the package into `folder`, which then belongs on PYTHONPATH."""
    folder.mkdir()
    (folder / "hfagent_slow.py").write_text(_CODE)
    info = folder / "hfagent_slow-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hfagent-slow\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hfagent.connectors]\nslow = hfagent_slow:Slow\n")
    return folder

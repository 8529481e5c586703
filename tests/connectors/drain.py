"""Reads one stream to its end in a process of its own and prints what that took, as JSON.

    echo '{"type": ..., "config": ..., "namespace": ..., "name": ...}' | python -m tests.connectors.drain

The memory of a process says nothing about one read when other tests ran in it before.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

from hfagent.foundation.clock import Deadline
from hfagent.sdk.reading import ReadRequest, SchemaRequest
from hfagent.sdk.registry import Registry
from tests.connectors.source import make


def main() -> None:
    task: dict[str, Any] = json.load(sys.stdin)
    connector = make(Registry().get(task["type"]), task["config"], **task.get("context", {}))
    connection = connector.connect(Deadline(30))
    request = SchemaRequest(namespaces=(task["namespace"],) if task["namespace"] else ())
    stream = next(s for s in connector.read_schema(connection, request) if s.name == task["name"])
    with connector.read_rows(connection, stream, ReadRequest(limit=1000)) as reader:
        sum(batch.num_rows for batch in reader)  # everything is imported and warm now
    before = _peak()
    rows = nbytes = batches = largest = 0
    with connector.read_rows(connection, stream, ReadRequest()) as reader:
        for batch in reader:
            rows += batch.num_rows
            nbytes += batch.nbytes
            batches += 1
            largest = max(largest, batch.nbytes)
    connector.close(connection)
    growth = _peak() - before
    print(json.dumps({"rows": rows, "bytes": nbytes, "batches": batches, "largest": largest, "growth": growth}))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()

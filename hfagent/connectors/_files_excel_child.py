"""Runs in a process of its own, with bounded memory: turns one workbook into lines of JSON on standard output.

    python -I _files_excel_child.py <memory bytes> list
    python -I _files_excel_child.py <memory bytes> rows <sheet name>

Standard input is the workbook itself (seekable). A file parser on untrusted input does not belong into the agent's own
process: a workbook that claims a cell in its last row and column makes any reader allocate for all cells between.
Imports nothing of hfagent. The reader holds one sheet in memory; rows leave in blocks.
"""

from __future__ import annotations

import datetime
import json
import resource
import sys
from typing import Any

BLOCK = 2000


def main() -> int:
    limit, verb, *rest = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_AS, (int(limit), int(limit)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import python_calamine

    out = sys.stdout
    try:
        with open(0, "rb", closefd=False) as handle:
            book = python_calamine.CalamineWorkbook.from_filelike(handle)
            if verb == "list":
                for sheet in book.sheets_metadata:
                    kind, visible = str(sheet.typ).rsplit(".", 1)[-1], str(sheet.visible).rsplit(".", 1)[-1]
                    json.dump({"name": sheet.name, "kind": kind, "visible": visible == "Visible"}, out)
                    out.write("\n")
                return 0
            sheet = book.get_sheet_by_name(rest[0])
            merged = len(sheet.merged_cell_ranges or ())
            json.dump({"start": sheet.start, "merged": merged}, out)
            out.write("\n")
            _rows(sheet, out)
    except python_calamine.PasswordError as exc:
        return _problem(out, "password", exc)
    except python_calamine.WorksheetNotFound as exc:
        return _problem(out, "no_sheet", exc)
    except MemoryError as exc:
        return _problem(out, "memory", exc)
    except (python_calamine.CalamineError, python_calamine.XmlError, python_calamine.ZipError, OSError) as exc:
        return _problem(out, "corrupt", exc)
    return 0


def _rows(sheet: Any, out: Any) -> None:
    block: list[list[Any]] = []
    for row in sheet.iter_rows():
        block.append([_cell(value) for value in row])
        if len(block) >= BLOCK:
            json.dump(block, out, separators=(",", ":"))
            out.write("\n")
            block = []
    if block:
        json.dump(block, out, separators=(",", ":"))
        out.write("\n")


def _cell(value: Any) -> Any:
    """A cell as `null` or `[kind letter, text]`."""
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return ["b", "true" if value else "false"]
    if isinstance(value, int):
        return ["n", str(value)]
    if isinstance(value, float):
        return ["n", str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)]
    if isinstance(value, str):
        return ["s", value]
    if isinstance(value, datetime.datetime):
        return ["D", value.isoformat(" ")]
    if isinstance(value, datetime.date):
        return ["d", value.isoformat()]
    if isinstance(value, datetime.time):
        return ["t", value.isoformat()]
    if isinstance(value, datetime.timedelta):
        seconds = value.days * 86400 + value.seconds
        return ["s", f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"]
    return ["s", str(value)]


def _problem(out: Any, what: str, exc: BaseException) -> int:
    json.dump({"problem": what, "text": str(exc)[:300]}, out)
    out.write("\n")
    return 3


if __name__ == "__main__":
    sys.exit(main())

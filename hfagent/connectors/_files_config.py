"""The configuration of file connectors: where the files are, how to read them, how much of them to accept.

Every field has a working default but the path: what is not said is found out from the files (`_files_sniff`).
"""

from __future__ import annotations

import codecs
from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from hfagent.sdk.config import QueryFields, field

__all__ = ["FORMATS", "CsvConfig", "Format"]

Format = Literal["csv", "tsv", "jsonl", "xlsx", "xls", "ods"]
FORMATS: tuple[Format, ...] = ("csv", "tsv", "jsonl", "xlsx", "xls", "ods")

_MIB = 1024 * 1024
_TEXT: dict[str, list[Any]] = {"format": ["auto", "csv", "tsv"]}
_CHARACTERS: dict[str, list[Any]] = {"format": ["auto", "csv", "tsv", "jsonl"]}
_SHEETS: dict[str, list[Any]] = {"format": ["auto", "xlsx", "xls", "ods"]}
_NAMED = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}


class CsvConfig(QueryFields):
    """Read CSV, TSV, JSON Lines and Excel files of the agent's machine."""

    example: ClassVar[dict[str, Any]] = {"path": "/srv/data/sales", "glob": "*.csv", "primary_key": ["order_id"]}

    path: str = field(
        description="File, folder or glob pattern on the agent's machine, absolute. Every file in it (and every sheet of "
        "an Excel workbook) is one stream.",
        agent_path=True, pool_key=True, min_length=1, max_length=4096, placeholder="/srv/data/sales",
        help="Must lie inside the folders that the agent's setting policy.allowed_paths names.",
    )  # fmt: skip
    source: Literal["path", "watch"] = field(
        "path", description="path: read the files as they are. watch: a drop folder, where a file is left alone until it "
        "has not changed for settle_s seconds.", pool_key=True,
        enum_titles={"path": "Files or folder", "watch": "Drop folder"},
    )  # fmt: skip
    settle_s: int = field(
        10, description="Seconds a file of a drop folder must have been unchanged before it is read.", ge=0, le=86400,
        show_when={"source": ["watch"]},
    )  # fmt: skip
    glob: str = field(
        "", description="Only files of the folder whose name matches, such as *.csv or sales_*.xlsx; empty = all known "
        "file types.", max_length=500, placeholder="*.csv", pool_key=True,
    )  # fmt: skip
    recursive: bool = field(
        False, description="Look into sub-folders too. Each sub-folder is a namespace.", pool_key=True
    )
    format: Literal["auto", "csv", "tsv", "jsonl", "xlsx", "xls", "ods"] = field(
        "auto", description="File format; auto goes by the extension (.gz is unpacked), then by the content.",
        group="Format", enum_titles={"auto": "By extension", "jsonl": "JSON Lines", "ods": "OpenDocument"},
    )  # fmt: skip
    encoding: str = field(
        "auto", description="Text encoding: auto, utf-8, utf-16, windows-1252, iso-8859-1, gb18030, shift_jis and others. "
        "auto: byte order mark, else strict UTF-8, else fallback_encoding with a warning.",
        group="Format", max_length=40, show_when=_CHARACTERS,
    )  # fmt: skip
    fallback_encoding: str = field(
        "windows-1252", description="What to assume when encoding is auto and the file is not UTF-8; empty = refuse the "
        "file.", group="Format", max_length=40, advanced=True, show_when=_CHARACTERS,
    )  # fmt: skip
    delimiter: str = field(
        "auto", description="Character between fields: auto, a single character, or tab.", group="Format", max_length=10,
        show_when=_TEXT,
    )  # fmt: skip
    quotechar: str = field(
        '"', description="Character around fields that contain delimiters; empty = quotes have no meaning.",
        group="Format", max_length=1, show_when=_TEXT,
    )  # fmt: skip
    escapechar: str = field(
        "", description="Character that takes the meaning from the next one; empty = none (quotes are doubled).",
        group="Format", max_length=1, advanced=True, show_when=_TEXT,
    )  # fmt: skip
    comment: str = field(
        "", description="Lines that start with this are ignored; empty = none.", group="Format", max_length=10,
        advanced=True, show_when=_TEXT,
    )  # fmt: skip
    header: Literal["auto", "true", "false"] = field(
        "auto", description="Whether the first row has the column names. Without names: column_1, column_2, …",
        group="Format", enum_titles={"auto": "Find out", "true": "Yes", "false": "No"},
    )  # fmt: skip
    skip_rows: int = field(
        0, description="Lines to skip before the header.", group="Format", ge=0, le=1_000_000, show_when=_TEXT
    )
    footer_rows: int = field(
        0, description="Rows to leave out at the end (totals and the like).", group="Format", ge=0, le=10_000,
        advanced=True,
    )  # fmt: skip
    sheet: str = field(
        "", description="Name of the one sheet to read (hidden ones too); empty = every visible sheet is a stream.",
        group="Format", max_length=255, show_when=_SHEETS,
    )  # fmt: skip
    range: str = field(
        "", description="Cells to read, such as B3:H200 or B:H; empty = all.", group="Format",
        pattern=r"^([A-Za-z]{1,3}[0-9]{0,7}:[A-Za-z]{1,3}[0-9]{0,7})?$", advanced=True, show_when=_SHEETS,
    )  # fmt: skip
    header_row: int = field(
        1, description="Row of the sheet that has the column names, counted from 1.", group="Format", ge=1, le=1_048_576,
        show_when=_SHEETS,
    )  # fmt: skip
    infer_types: bool = field(
        True, description="Find numbers, dates and booleans. Leading zeros, a leading + and numbers of more than 15 "
        "digits stay text. Off = everything is text.", group="Values",
    )  # fmt: skip
    null_values: tuple[str, ...] = field(
        ("", "NULL", "null", "\\N", "N/A"), description="Field contents that mean NULL, quoted or not.", group="Values",
        max_length=100, show_when=_TEXT,
    )  # fmt: skip
    decimal: Literal[".", ","] = field(
        ".",
        description="Sign before the decimals.",
        group="Values",
        enum_titles={".": "1.5", ",": "1,5"},
        show_when=_TEXT,
    )
    thousands: Literal["", ".", ",", " ", "'"] = field(
        "", description="Sign between groups of three digits; empty = none.", group="Values",
        enum_titles={"": "none", ".": "1.000", ",": "1,000", " ": "1 000", "'": "1'000"}, show_when=_TEXT,
    )  # fmt: skip
    date_format: str = field(
        "", description="Format of dates or times such as %d.%m.%Y or %d/%m/%Y %H:%M; empty = ISO 8601 and what the column "
        "proves.", group="Values", max_length=60, placeholder="%d/%m/%Y", show_when=_CHARACTERS,
    )  # fmt: skip
    day_first: Literal["auto", "true", "false"] = field(
        "auto", description="How to read 03/04/2025. auto: as the column's other values prove; without proof it stays "
        "text, with a warning.", group="Values",
        enum_titles={"auto": "Find out", "true": "3 April", "false": "4 March"}, show_when=_TEXT,
    )  # fmt: skip
    timezone: str = field(
        "", description="Time zone (such as Asia/Jakarta) in which times without an offset are meant; they become "
        "instants. Empty = they stay local times.", group="Values", max_length=60, advanced=True,
    )  # fmt: skip
    on_bad_row: Literal["error", "skip", "quarantine"] = field(
        "quarantine", description="Rows with the wrong number of fields, and the like. error: refuse the file. skip: leave "
        "them out. quarantine: leave them out and keep them, with line numbers, in <stream>__bad_rows.", group="Values",
    )  # fmt: skip
    primary_key: tuple[str, ...] = field(
        (), description="Columns that identify a row, for merging syncs; applies to every stream that has them all.",
        group="Values", max_length=32,
    )  # fmt: skip
    max_bytes: int = field(
        4096 * _MIB, description="Largest file accepted, in bytes.", ge=1, group="Limits", advanced=True
    )
    max_unzipped_bytes: int = field(
        2048 * _MIB, description="Most bytes that a workbook or a .gz file may unpack to.", ge=1, group="Limits",
        advanced=True,
    )  # fmt: skip
    max_columns: int = field(
        4096, description="Most columns accepted in a file.", ge=1, le=16384, group="Limits", advanced=True
    )
    max_field_bytes: int = field(
        _MIB, description="Largest single value accepted, in bytes; a longer one makes a bad row.", ge=1, le=64 * _MIB,
        group="Limits", advanced=True,
    )  # fmt: skip
    max_files: int = field(
        10_000, description="Most files looked at in a folder.", ge=1, le=1_000_000, group="Limits", advanced=True
    )
    memory_limit_mb: int = field(
        512, description="Memory of the query engine for one connection, in MiB; larger work goes to temporary files.",
        ge=64, le=1_048_576, group="Limits", advanced=True, pool_key=True,
    )  # fmt: skip
    threads: int = field(
        2, description="Threads of the query engine for one connection.", ge=1, le=256, group="Limits", advanced=True,
        pool_key=True,
    )  # fmt: skip

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if "\0" in value:
            raise ValueError("a path cannot contain a NUL character")
        if not value.startswith("/"):
            raise ValueError("the path must be absolute (start with /), as seen on the agent's machine")
        return value

    @field_validator("glob")
    @classmethod
    def _relative(cls, value: str) -> str:
        if value.startswith("/") or ".." in value.split("/") or "\0" in value:
            raise ValueError("the pattern applies inside the folder: no leading / and no ..")
        return value

    @field_validator("encoding", "fallback_encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        if value in ("", "auto"):
            return value
        try:
            text = codecs.lookup(value)._is_text_encoding
        except (LookupError, ValueError):
            text = False
        if not text:
            raise ValueError(f"{value!r} is not a text encoding known here; try utf-8, windows-1252 or iso-8859-1")
        return value

    @field_validator("delimiter", mode="before")
    @classmethod
    def _one_delimiter(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        value = _NAMED.get(value.lower(), value)
        if value == "auto":
            return value
        if len(value) != 1 or value in "\r\n\0":
            raise ValueError("the delimiter must be auto, tab or one character")
        return value

    @field_validator("header", "day_first", mode="before")
    @classmethod
    def _as_word(cls, value: Any) -> Any:
        return str(value).lower() if isinstance(value, bool) else value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        if value:
            import zoneinfo

            try:
                zoneinfo.ZoneInfo(value)
            except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
                raise ValueError(f"{value!r} is not an IANA time zone such as Europe/Berlin") from None
        return value

    @model_validator(mode="after")
    def _signs_differ(self) -> CsvConfig:
        if self.encoding == "":
            raise ValueError("encoding must not be empty; auto finds out")
        if self.thousands and self.thousands == self.decimal:
            raise ValueError("decimal and thousands must be different signs")
        signs = [s for s in (self.delimiter, self.quotechar, self.escapechar) if s and s != "auto"]
        if len(set(signs)) != len(signs):
            raise ValueError("delimiter, quotechar and escapechar must be different characters")
        for name in ("quotechar", "escapechar"):
            if getattr(self, name) in ("\r", "\n", "\0"):
                raise ValueError(f"{name} cannot be a line break or NUL")
        return self

"""The statement guard: lets one reading statement through. Defence in depth, never the only layer.

The real layers are the account and the read-only session; this one refuses early and says why. It parses with the right
dialect. A statement that does not parse is not waved through as harmless: it passes only when it begins like a reading
statement, holds none of the forbidden words, and the server itself enforces read-only; then the server's own message about
the syntax is the better one.

Function calls can have side effects that no parser sees: use a read-only account.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any, Final, Literal

from hfagent.foundation.errors import UserError

__all__ = ["GuardedStatement", "check_statement"]

Kind = Literal["select", "show", "explain", "unparsed"]

_MAX_LENGTH: Final = 1_000_000

_READING: Final = frozenset(
    {"select", "with", "values", "table", "show", "describe", "desc", "explain", "from", "summarize", "("}
)
_COMMANDS: Final = frozenset({"show", "describe", "desc", "explain", "table", "summarize"})
"""First words that sqlglot may keep as an opaque command; their rest is checked word by word."""

_WRITING_WORDS: Final = frozenset(
    "insert update delete merge replace upsert create alter drop truncate rename grant revoke copy call exec execute do "
    "lock unlock set reset begin start commit rollback savepoint vacuum analyze reindex cluster refresh attach detach "
    "install load pragma export import checkpoint use prepare deallocate declare fetch move close listen notify unlisten "
    "discard handler kill flush optimize repair purge shutdown comment security reassign into outfile dumpfile put get "
    "remove undrop unload bulk openrowset opendatasource openquery reconfigure backup restore dbcc waitfor".split()
)
"""Words that make an unparsed statement a refused one, wherever they stand outside quotes."""

_FUNCTIONS: Final = re.compile(
    r"""^(
      pg_(read_(binary_)?file|ls_\w+|stat_file|write_file|file_\w+|rotate_logfile|reload_conf|terminate_backend
        |cancel_backend|switch_wal|create_restore_point|start_backup|stop_backup|promote|logical_\w+|replication_\w+
        |create_\w*replication_slot|drop_replication_slot|advisory_\w+|try_advisory_\w+|notify|execute_server_program)
      |lo_(import|export|create|creat|unlink|put|from_bytea|open|write|truncate\w*)|lowrite
      |dblink\w*|postgres_fdw_\w+|set_config|nextval|setval|query_to_xml\w*|table_to_xml\w*|cursor_to_xml\w*
      |schema_to_xml\w*|database_to_xml\w*|txid_\w*snapshot_xip_write|pg_import_system_collations
      |load_file|sys_exec|sys_eval|get_lock|release_lock|release_all_locks|benchmark|master_pos_wait
      |xp_\w+|sp_\w+|openrowset|opendatasource|openquery|openxml
      |dbms_\w+|utl_\w+|httpuritype|sys_dbms_\w+|owa_\w+
      |system\$\w+|result_scan_write|external_query
      |read_(text|blob|csv\w*|parquet|json\w*|ndjson\w*|xlsx)|parquet_\w+|glob|sniff_csv|scan_parquet|delta_scan|iceberg_scan
      |sqlite_scan|postgres_(scan|query|execute|attach)\w*|mysql_(scan|query|execute)\w*|duckdb_secrets|which_secret
      |query|query_table|getenv|copy_database|force_checkpoint|checkpoint|pragma_\w+|enable_\w+|add_parquet_key|install_\w+
    )$""",
    re.VERBOSE | re.IGNORECASE,
)
"""Functions that reach outside the database or change something, in any dialect."""

_SCHEMAS: Final = frozenset({"dbms_xmlgen", "utl_http", "utl_file", "dbms_scheduler", "sys"})


@dataclass(frozen=True, slots=True)
class GuardedStatement:
    """A statement that may run."""

    text: str
    """As written, without a trailing semicolon."""
    kind: Kind


def check_statement(sql: str, dialect: str, *, server_enforces_read_only: bool = True) -> GuardedStatement:
    """Return the statement when it is one reading statement of the dialect (a sqlglot name).

    `server_enforces_read_only` tells whether the session refuses writes by itself; only then may something pass that cannot
    be parsed. Raises `UserError`: `guard.multi_statement`, `guard.write_blocked`, `query.syntax`.
    """
    if "\0" in sql:
        raise UserError("the statement contains a NUL character", code="query.syntax", hint="remove it")
    if len(sql) > _MAX_LENGTH:
        raise UserError(f"the statement is longer than {_MAX_LENGTH:,} characters", code="read.limit_exceeded")
    words = _scan(sql, dialect)
    text = _without_tail(sql, dialect)
    if not words.first:
        raise UserError("there is no statement to run", code="query.syntax", hint='for example: select 1')
    if words.executable_comment:
        raise _blocked("an executable comment (/*! … */)")
    if words.statements > 1:
        raise UserError(
            f"{words.statements} statements were given, only one at a time is allowed",
            code="guard.multi_statement",
            hint="run them one after the other",
        )
    if words.first not in _READING:
        if words.first in _WRITING_WORDS:
            raise _blocked(words.first.upper())
        near = difflib.get_close_matches(words.first, sorted(_READING - {"("}), n=1)
        raise UserError(
            f"no reading statement begins with {words.first.upper()}",
            code="query.syntax",
            hint=f"did you mean {near[0].upper()}?" if near else "begin with SELECT, WITH, SHOW, DESCRIBE or EXPLAIN",
        )
    if words.unclosed:
        raise UserError(f"the statement has an unclosed {words.unclosed}", code="query.syntax", hint="close it")
    tree = _parse(text, dialect)
    if tree is None:
        return _unparsed(text, words, server_enforces_read_only)
    return GuardedStatement(text, _checked(tree, text, words, dialect, server_enforces_read_only))


# --- with a parse tree ---


def _parse(text: str, dialect: str) -> Any:
    """Return the tree of the one statement, or None when sqlglot cannot make one."""
    import logging

    import sqlglot
    from sqlglot.errors import SqlglotError

    logging.getLogger("sqlglot").setLevel(logging.ERROR)  # it warns about every command it does not model
    try:
        trees = [tree for tree in sqlglot.parse(text, read=dialect or None) if tree is not None]
    except (SqlglotError, ValueError, RecursionError):
        return None
    return trees[0] if len(trees) == 1 else None


def _checked(tree: Any, text: str, words: _Words, dialect: str, enforced: bool) -> Kind:
    from sqlglot import exp

    if isinstance(tree, exp.Command) or not isinstance(tree, exp.Query | exp.Show | exp.Describe | exp.Summarize | exp.Values):
        if isinstance(tree, exp.Command) and words.first in _COMMANDS:
            return _command(text, words, dialect, enforced)
        raise _blocked(words.first.upper() if isinstance(tree, exp.Command) else tree.key.upper())
    for node in _nodes(tree):
        _check_node(node)
    if isinstance(tree, exp.Describe) or words.first == "explain":
        return _command(text, words, dialect, enforced)
    return "show" if isinstance(tree, exp.Show) else "select"


def _nodes(tree: Any) -> Any:
    try:
        yield from tree.walk()
    except RecursionError as exc:
        raise UserError("the statement is nested too deeply", code="query.syntax") from exc


def _check_node(node: Any) -> None:
    from sqlglot import exp

    if isinstance(node, exp.Insert | exp.Update | exp.Delete | exp.Merge | exp.DDL | exp.Command | exp.Copy) and not isinstance(
        node, exp.Query
    ):
        raise _blocked(node.key.upper())
    if isinstance(node, exp.Into):
        raise _blocked("SELECT … INTO")
    if isinstance(node, exp.Lock):
        raise _blocked("FOR UPDATE / FOR SHARE", hint="leave the locking clause out")
    if isinstance(node, exp.Func):
        name = node.name if isinstance(node, exp.Anonymous) else node.sql_name()
        _check_function(name)
        if isinstance(node.parent, exp.Dot):
            for part in node.parent.find_all(exp.Identifier):
                if part.name.lower() in _SCHEMAS or part.name.lower().startswith(("dbms_", "utl_")):
                    raise _blocked(f"the package {part.name}")
    if isinstance(node, exp.ReadCSV):
        raise _blocked("reading a file")


def _check_function(name: str) -> None:
    if _FUNCTIONS.match(name.strip('"`[]').rsplit(".", 1)[-1]):
        raise _blocked(f"the function {name}()")


def _command(text: str, words: _Words, dialect: str, enforced: bool) -> Kind:
    """SHOW, DESCRIBE, EXPLAIN: the explained statement is checked itself; ANALYZE runs it, so it must read, too."""
    if words.first == "explain" or (words.first in ("describe", "desc") and len(words.words) > 1):
        inner = _EXPLAIN.sub("", text.lstrip(), count=1)
        first = re.match(r"\s*\(?\s*(\w+)", inner)
        if first and first[1].lower() in _READING - {"explain", "("} | {"insert", "update", "delete", "merge", "create"}:
            if first[1].lower() in ("insert", "update", "delete", "merge", "create", "replace"):
                raise _blocked(f"EXPLAIN {first[1].upper()}")
            check_statement(inner, dialect, server_enforces_read_only=enforced)
            return "explain"
        if words.first == "explain" and not enforced:
            raise _blocked("EXPLAIN of something unknown")
        return "explain"
    forbidden = _WRITING_WORDS - {"analyze", "create", "index", "get", "set", "use", "lock", "comment", "security", "grant", "load"}
    for word in words.words[1:]:
        if word in forbidden:
            raise _blocked(f"{words.first.upper()} with {word.upper()}")
    for name in words.calls:
        _check_function(name)
    return "show"


_EXPLAIN: Final = re.compile(
    r"^(explain|describe|desc)\s*(\((?:[^()']|'[^']*')*\)\s*)?"
    r"((analyze|analyse|verbose|extended|partitions|plan\s+for|query\s+plan|using\s+\w+|format\s*=?\s*\w+)\s+)*",
    re.IGNORECASE,
)


# --- without one ---


def _unparsed(text: str, words: _Words, enforced: bool) -> GuardedStatement:
    for word in words.words:
        if word in _WRITING_WORDS:
            raise _blocked(word.upper())
    for name in words.calls:
        _check_function(name)
    if not enforced:
        raise UserError(
            "the statement cannot be parsed, so it cannot be checked", code="query.syntax", hint="check its syntax"
        )
    return GuardedStatement(text, "unparsed")


@dataclass(slots=True)
class _Words:
    """What a statement is made of, outside quotes and comments."""

    words: list[str]
    calls: list[str]
    statements: int
    executable_comment: bool
    unclosed: str | None

    @property
    def first(self) -> str:
        return self.words[0] if self.words else ""


_TOKEN: Final = re.compile(r"[A-Za-z_][\w$]*|\(|;|\S")
_DOLLAR: Final = re.compile(r"\$(?:[A-Za-z_]\w*)?\$")


def _scan(sql: str, dialect: str) -> _Words:
    """Walk over a statement once, knowing the dialect's quotes and comments."""
    found = _Words([], [], 0, False, None)
    pending = False
    previous = ""
    for kind, token in _pieces(sql, dialect, found):
        if kind == "quoted":
            pending = True
            previous = ""
            continue
        if token == ";":
            found.statements += pending
            pending = False
            continue
        pending = True
        lower = token.lower()
        if token == "(":
            if previous:
                found.calls.append(previous)
            if not found.words:
                found.words.append("(")
        elif lower[0].isalpha() or lower[0] == "_":
            if found.words == ["("]:
                found.words = []  # a parenthesised statement begins with its first word
            found.words.append(lower)
            previous = lower
            continue
        previous = ""
    found.statements += pending
    return found


def _pieces(sql: str, dialect: str, found: _Words) -> Any:
    """Yield ("quoted", "") and ("word", token); comments yield nothing."""
    mysql = dialect in ("mysql", "mariadb")
    backslash = mysql or dialect in ("bigquery", "snowflake", "databricks", "clickhouse")
    position, end = 0, len(sql)
    while position < end:
        char = sql[position]
        pair = sql[position : position + 2]
        if char.isspace():
            position += 1
        elif pair == "--" or (char == "#" and (mysql or dialect == "bigquery")):
            line = sql.find("\n", position)
            position = end if line < 0 else line + 1
        elif pair == "/*":
            if sql[position + 2 : position + 3] in ("!", "M") and (mysql or sql[position + 2] == "!"):
                found.executable_comment = found.executable_comment or sql[position + 2] == "!" or sql[position + 3 : position + 4] == "!"
            position = _comment_end(sql, position, nested=dialect in ("postgres", "duckdb", "tsql", ""))
            if position < 0:
                found.unclosed = "comment"
                return
        elif char in "'\"`" or (char == "[" and dialect == "tsql"):
            escapes = (backslash and char != "`") or (char == "'" and position > 0 and sql[position - 1] in "eE" and dialect == "postgres")
            position = _quote_end(sql, position, "]" if char == "[" else char, escapes)
            if position < 0:
                found.unclosed = "quote"
                return
            yield "quoted", ""
        elif char == "$" and dialect in ("postgres", "duckdb", "snowflake") and (match := _DOLLAR.match(sql, position)):
            close = sql.find(match[0], match.end())
            if close < 0:
                found.unclosed = "dollar quote"
                return
            position = close + len(match[0])
            yield "quoted", ""
        else:
            match = _TOKEN.match(sql, position)
            assert match is not None
            position = match.end()
            yield "word", match[0]


def _comment_end(sql: str, start: int, *, nested: bool) -> int:
    if not nested:
        close = sql.find("*/", start + 2)
        return close + 2 if close >= 0 else -1
    depth, position = 1, start + 2
    while depth:
        opening, closing = sql.find("/*", position), sql.find("*/", position)
        if closing < 0:
            return -1
        if 0 <= opening < closing:
            depth, position = depth + 1, opening + 2
        else:
            depth, position = depth - 1, closing + 2
    return position


def _quote_end(sql: str, start: int, mark: str, escapes: bool) -> int:
    position = start + 1
    while position < len(sql):
        char = sql[position]
        if escapes and char == "\\":
            position += 2
        elif char == mark:
            if sql[position + 1 : position + 2] != mark:
                return position + 1
            position += 2
        else:
            position += 1
    return -1


def _without_tail(sql: str, dialect: str) -> str:
    """Drop trailing blanks and semicolons; comments stay where they are."""
    return sql.strip().rstrip(";").rstrip() if sql.rstrip().endswith(";") else sql.strip()


def _blocked(what: str, *, hint: str | None = None) -> UserError:
    return UserError(
        f"{what} is not allowed: only reading statements are",
        code="guard.write_blocked",
        hint=hint or "hfagent reads sources and never changes them; use the source's own client for this",
    )

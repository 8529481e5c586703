"""The statement guard: lets one reading statement through. Defence in depth, never the only layer.

The layers that protect the data are the account and the read-only session; this one refuses early and says why. It looks
twice. First at the tokens (`sdk/sql_tokens.py`): one statement, a reading first word, no forbidden function, clause or
hint. Then at the tree that sqlglot makes of the same tokens, comments removed: no node that writes or locks.

A statement that sqlglot cannot parse is not harmless for that. It passes as `unparsed` only when the server itself enforces
read-only and no word of a writing statement occurs in it; the server's own message about the syntax is then the better
one. Where the server does not, it is refused.

Function calls can have side effects that no parser sees: use a read-only account.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from hfagent.foundation.errors import UserError
from hfagent.sdk.guard_rules import FORBIDDEN_HINTS, NEVER_IN_A_READ, READING, RESERVED, WRITING, forbidden_function
from hfagent.sdk.sql_tokens import Token, TokenError, tokenize

__all__ = ["GuardedStatement", "check_statement"]

Kind = Literal["select", "values", "table", "show", "describe", "explain", "unparsed"]

MAX_LENGTH: Final = 1_000_000
MAX_DEPTH: Final = 200
"""Brackets within brackets; beyond that no parser is asked."""

_KINDS: Final[dict[str, Kind]] = {
    "values": "values", "table": "table", "show": "show", "describe": "describe", "desc": "describe",
    "summarize": "describe", "explain": "explain",
}  # fmt: skip
_DATA_CHANGES: Final = ("insert", "update", "delete", "merge", "replace")
_PLAIN_EXPLAIN_IS_SAFE: Final = frozenset({"postgres", "mysql", "duckdb", "sqlite"})
"""Dialects whose EXPLAIN of a change plans it and does nothing else."""


@dataclass(frozen=True, slots=True)
class GuardedStatement:
    """A statement that may run."""

    text: str
    """From its first to its last token: without semicolons and comments around it, so that it can be wrapped."""
    kind: Kind


def check_statement(sql: str, dialect: str, *, server_enforces_read_only: bool = False) -> GuardedStatement:
    """Return the statement when it is one reading statement of the dialect (a sqlglot name).

    `server_enforces_read_only` tells whether the session refuses writes by itself; only then may a statement pass that cannot
    be parsed. Raises `UserError`: `guard.multi_statement`, `guard.write_blocked`, `query.syntax`, `read.limit_exceeded`.
    """
    if len(sql) > MAX_LENGTH:
        raise UserError(
            f"the statement has {len(sql):,} characters, the limit is {MAX_LENGTH:,}",
            code="read.limit_exceeded",
            hint="bind long lists as parameters, or join with a table",
        )
    dialect = "mysql" if dialect in ("mariadb", "doris", "starrocks") else dialect
    try:
        tokens = tokenize(sql, dialect)
    except TokenError as exc:
        raise UserError(f"the statement contains {exc}", code="query.syntax", hint="close it or remove it") from exc
    if any(token.kind == "executable" for token in tokens):
        raise _blocked("an executable comment (/*! … */)", hint="write its content without the comment marks")
    tokens = _one_statement(tokens, chains=dialect == "snowflake")
    return _Checker(sql, tokens, dialect, enforced=server_enforces_read_only).check()


def _one_statement(tokens: list[Token], *, chains: bool) -> list[Token]:
    """Return the tokens of the only statement. `chains`: the dialect joins statements with `->>`."""
    if all(token.kind == "hint" or token.is_sign(";") for token in tokens):
        raise UserError("there is no statement to run", code="query.syntax", hint="for example: SELECT 1")
    while tokens[-1].is_sign(";") or tokens[-1].kind == "hint":
        tokens = tokens[:-1]
    while tokens[0].is_sign(";") or tokens[0].kind == "hint":
        tokens = tokens[1:]
    if any(token.is_sign(";") or (chains and token.is_sign("->>")) for token in tokens):
        raise UserError(
            "only one statement at a time is allowed", code="guard.multi_statement", hint="run them one after the other"
        )
    return tokens


class _Checker:
    """Checks one statement, and by recursion the statement that it explains."""

    def __init__(self, sql: str, tokens: Sequence[Token], dialect: str, *, enforced: bool) -> None:
        self._sql = sql
        self._tokens = tokens
        self._words = [token for token in tokens if token.kind != "hint"]
        self._dialect = dialect
        self._enforced = enforced

    def check(self) -> GuardedStatement:
        first = self._first_word()
        self._check_first(first)
        explains = _KINDS.get(first) == "explain" or (first in ("describe", "desc") and self._dialect == "mysql")
        self._check_tokens(changes_allowed=explains)  # what is explained is checked by itself
        return GuardedStatement(self._text(), self._explained() if explains else self._kind(first))

    def _text(self) -> str:
        return self._sql[self._tokens[0].start : self._tokens[-1].end]

    def _first_word(self) -> str:
        for token in self._words:
            if not token.is_sign("("):
                return token.value if token.kind == "word" else ""
        return ""

    def _check_first(self, first: str) -> None:
        reading = READING.get(self._dialect, READING[""])
        if first in reading:
            return
        if self._dialect == "oracle" and first == "explain":
            raise _blocked("EXPLAIN PLAN (it writes to a table)", hint="ask for the plan with the explain function")
        if first in WRITING:
            raise _blocked(first.upper())
        near = difflib.get_close_matches(first, sorted(reading), n=1, cutoff=0.7)
        raise UserError(
            f"no reading statement begins with {first.upper()}" if first else "no reading statement begins like this",
            code="query.syntax",
            hint=f"did you mean {near[0].upper()}?" if near else f"begin with {', '.join(sorted(reading)).upper()}",
        )

    def _kind(self, first: str) -> Kind:
        kind = _KINDS.get(first, "select")
        if kind == "show":
            return kind
        if kind == "describe":
            inner = self._after(1)
            if inner is not None and inner._first_word() in READING.get(self._dialect, READING[""]) - {"table"}:
                inner.check()
            return kind
        return kind if self._reads_only(changes_allowed=False) else "unparsed"

    # --- EXPLAIN ---

    def _explained(self) -> Kind:
        """EXPLAIN runs nothing, EXPLAIN ANALYZE runs what it explains; MySQL's DESCRIBE is another word for both."""
        kind: Kind = "explain"
        at, analyze = self._explain_options()
        inner = self._after(at)
        if inner is None:
            raise UserError("there is nothing to explain", code="query.syntax", hint="for example: EXPLAIN SELECT 1")
        first = inner._first_word()
        if first in _DATA_CHANGES and not analyze and self._dialect in _PLAIN_EXPLAIN_IS_SAFE:
            inner._check_tokens(changes_allowed=True)
            if not inner._reads_only(changes_allowed=True):
                raise _blocked(f"EXPLAIN {first.upper()} that cannot be parsed")
            return kind
        if first in READING.get(self._dialect, READING[""]) - {"show", "explain"}:
            return "unparsed" if inner.check().kind == "unparsed" else kind
        if first in WRITING:
            raise _blocked(f"EXPLAIN {'ANALYZE ' if analyze else ''}{first.upper()}")
        if self._dialect == "mysql" or self._enforced:  # a table's name, or something the server will judge
            inner._check_tokens()
            inner._strictly()
            return kind if self._words[0].value == "explain" else "describe"
        raise UserError(f"EXPLAIN cannot explain {first.upper() or 'this'}", code="query.syntax")

    def _explain_options(self) -> tuple[int, bool]:
        """Return where the explained statement begins, and whether it would run."""
        words = self._words
        at, analyze = 1, False
        if self._opens_options(at):
            depth = 0
            while at < len(words):
                depth += words[at].is_sign("(") - words[at].is_sign(")")
                analyze = analyze or words[at].is_word("analyze", "analyse")
                at += 1
                if depth == 0:
                    break
        while at < len(words):
            if words[at].is_word("analyze", "analyse"):
                analyze = True
                at += 1
            elif words[at].is_word("verbose", "extended", "partitions"):
                at += 1
            elif words[at].is_word("format"):
                at += 3 if at + 1 < len(words) and words[at + 1].is_sign("=") else 2
            elif words[at].is_word("using") or (
                words[at].is_word("query") and words[at + 1 : at + 2] and words[at + 1].is_word("plan")
            ):
                at += 2
            else:
                break
        return at, analyze

    def _opens_options(self, at: int) -> bool:
        """Tell `EXPLAIN (ANALYZE, BUFFERS) SELECT …` from `EXPLAIN (SELECT …)`."""
        if at >= len(self._words) or not self._words[at].is_sign("("):
            return False
        inner = self._after(at)
        return inner is not None and inner._first_word() not in READING[""] | {"from"} | WRITING - {
            "analyze",
            "analyse",
        }

    def _after(self, at: int) -> _Checker | None:
        rest = self._words[at:]
        return _Checker(self._sql, rest, self._dialect, enforced=self._enforced) if rest else None

    # --- tokens ---

    def _check_tokens(self, *, changes_allowed: bool = False) -> None:
        reserved: frozenset[str] = RESERVED.get(self._dialect, frozenset())
        depth = 0
        for index, token in enumerate(self._words):
            before = self._words[index - 1] if index else None
            qualified = before is not None and before.is_sign(".")
            if token.kind == "sign":
                depth += (token.value in "([{") - (token.value in ")]}")
                if depth > MAX_DEPTH:
                    raise UserError("the statement is nested too deeply", code="query.syntax", hint="simplify it")
                self._check_pipe(index)
            if token.kind in ("word", "name", "string"):
                self._check_call(index)
            if token.kind == "word" and not qualified:
                if token.value in reserved:
                    raise _blocked(token.value.upper())
                if not changes_allowed:
                    self._check_clause(index)
            elif token.kind == "word" and token.value == "nextval" and self._dialect not in ("postgres", "duckdb"):
                raise _blocked("NEXTVAL (it advances a sequence)")
        for token in self._tokens:
            if token.kind == "hint":
                self._check_hint(token)

    def _check_clause(self, index: int) -> None:
        """Clauses that turn a SELECT into something else."""
        token, following = self._words[index], self._following(index)
        if token.value == "into":
            raise _blocked("SELECT … INTO", hint="leave INTO out: the result comes back to you")
        if token.value == "for" and following[0].is_word("update", "share"):
            raise _blocked("FOR UPDATE / FOR SHARE", hint="leave the locking clause out")
        if token.value == "for" and following[0].is_word("no", "key") and following[1].is_word("key", "share"):
            raise _blocked("FOR UPDATE / FOR SHARE", hint="leave the locking clause out")
        if token.value == "lock" and following[0].is_word("in"):
            raise _blocked("LOCK IN SHARE MODE", hint="leave the locking clause out")
        if token.value == "next" and following[0].is_word("value") and following[1].is_word("for"):
            raise _blocked("NEXT VALUE FOR (it advances a sequence)")
        opens = token.value in ("as", "materialized") and following[0].is_sign("(")
        if (
            opens and following[1].is_word(*_DATA_CHANGES) and not following[2].is_sign("(")
        ):  # MySQL has a function REPLACE()
            raise _blocked(f"WITH … {following[1].value.upper()}")
        if token.value == "u" and self._dialect == "postgres" and self._sql[token.end : token.end + 2] == '&"':
            raise _blocked('an escaped identifier (U&"…")', hint="write the name itself")

    def _check_pipe(self, index: int) -> None:
        if self._words[index].value == "|>" and self._following(index)[0].is_word(*WRITING - {"set", "rename"}):
            raise _blocked(f"|> {self._following(index)[0].value.upper()}")

    def _check_call(self, index: int) -> None:
        """A function's name stands before a bracket; a package's name also before a dot."""
        token = self._words[index]
        name = token.value.lower()
        called = self._following(index)[0].is_sign("(")
        qualifier = ""
        if index >= 2 and self._words[index - 1].is_sign("."):
            qualifier = self._words[index - 2].value.lower()
        elif token.kind == "string" and not (called and self._dialect == "mysql"):
            return  # MySQL reads "…" as a name when ANSI_QUOTES is set
        packaged = qualifier.startswith(("dbms_", "utl_")) and self._dialect in ("oracle", "")
        if (called or packaged) and forbidden_function(name, qualifier, self._dialect):
            shown = f"{qualifier}.{name}" if packaged else name
            raise _blocked(f"the function {shown[:80]}", hint="it can change something or reach outside the database")

    def _check_hint(self, token: Token) -> None:
        for hint in FORBIDDEN_HINTS:
            if hint in token.value:
                raise _blocked(f"the optimizer hint {hint.upper()}", hint="set time limits on the request")

    def _following(self, index: int) -> list[Token]:
        """The three tokens after `index`, filled up with nothing."""
        return [*self._words[index + 1 : index + 4], _NOTHING, _NOTHING, _NOTHING]

    # --- the tree ---

    def _reads_only(self, *, changes_allowed: bool) -> bool:
        """Look at the parsed statement; False when it cannot be parsed and the server must judge."""
        tree, problem = _parsed(self._clean(), self._dialect)
        if tree is None:
            if not self._enforced:
                raise UserError(
                    f"the statement cannot be parsed: {problem}" if problem else "the statement cannot be parsed",
                    code="query.syntax",
                    hint="check its syntax; what cannot be parsed cannot be checked",
                )
            self._strictly()
            return False
        if not changes_allowed:
            _check_tree(tree, self._file_names() if self._dialect == "duckdb" else set())
        return True

    def _file_names(self) -> set[str]:
        """Texts that stand where a table may stand: DuckDB reads a file of that name."""
        pairs = zip(self._words, self._words[1:], strict=False)
        return {
            _plain(b.value) for a, b in pairs if b.kind == "string" and (a.is_word("from", "join") or a.is_sign(","))
        }

    def _clean(self) -> str:
        """The statement for the parser: no comments, and every literal in the plainest form, so that the parser cannot see
        other limits of literals than the ones that were checked. Nothing else is changed.
        """
        parts: list[str] = []
        end = self._words[0].start
        for index, token in enumerate(self._words):
            gap = self._sql[end : token.start]
            parts.append("" if not gap else "\n" if "\n" in gap else " ")
            end = token.end
            if token.kind == "string":
                parts.append(f"'{_plain(token.value)}'")
            elif self._dialect == "oracle" and token.is_sign(":") and self._following(index)[0].kind == "number":
                parts.append(":p")  # the parser knows :name, but not :1
            else:
                parts.append(self._sql[token.start : token.end])
        return "".join(parts)

    def _strictly(self) -> None:
        """Without a tree, refuse the words of writing statements wherever they could be keywords."""
        for index, token in enumerate(self._words):
            qualified = index > 0 and self._words[index - 1].is_sign(".")
            if token.is_word(*NEVER_IN_A_READ) and not qualified and not self._following(index)[0].is_sign("("):
                raise _blocked(token.value.upper())
            if (
                self._dialect == "duckdb"
                and token.is_word("from", "join")
                and self._following(index)[0].kind == "string"
            ):
                raise _blocked("reading a file by its name", hint="query the connector's streams")


def _plain(text: str) -> str:
    return text.translate(_QUOTING)


_QUOTING: Final = str.maketrans("", "", "'\"`\\")
_NOTHING: Final = Token("sign", "", 0, 0)


def _parsed(text: str, dialect: str) -> tuple[Any, str]:
    """Return sqlglot's tree of the one statement, or None and what it complained about."""
    import logging

    import sqlglot
    from sqlglot.errors import ParseError

    logging.getLogger("sqlglot").setLevel(logging.ERROR)  # it warns about every command that it does not model
    try:
        trees = [tree for tree in sqlglot.parse(text, read=dialect or None) if tree is not None]
    except ParseError as exc:
        first: dict[str, Any] = exc.errors[0] if exc.errors else {}
        near = str(first.get("highlight") or "")[:40]
        return None, f"{str(first.get('description', '')).rstrip('.')} near {near!r}" if near else ""
    except Exception:  # noqa: BLE001
        # Its tokenizer and parser fail in many ways on odd input (recursion, index and type errors, unknown dialects). None of
        # them says that the statement reads.
        return None, ""
    return (trees[0], "") if len(trees) == 1 else (None, "")


_WRITING_NODES: Final = (
    "Insert", "Update", "Delete", "Merge", "MultitableInserts", "Create", "Drop", "Alter", "TruncateTable", "Copy", "LoadData",
    "Export", "Command", "Set", "Use", "Attach", "Detach", "Install", "Pragma", "Kill", "Analyze", "Transaction", "Commit",
    "Rollback", "Grant", "Revoke", "Comment", "Cache", "Uncache", "Refresh", "Execute", "Declare", "Into", "Lock", "Put", "Get",
)  # fmt: skip


def _check_tree(tree: Any, files: set[str]) -> None:
    from sqlglot import exp

    writing = tuple(kind for name in _WRITING_NODES if isinstance(kind := getattr(exp, name, None), type))
    reading = (exp.Query, exp.Values, exp.Table, exp.Show, exp.Describe, exp.Summarize)
    if not isinstance(tree, reading):
        raise _blocked(tree.key.upper())
    try:
        for node in tree.walk():
            if isinstance(node, writing):
                raise _blocked(f"{node.key.upper()} inside a reading statement")
            if files and isinstance(node, exp.Table) and _quoted_name(node.this) in files:
                raise _blocked("reading a file by its name", hint="query the connector's streams")
    except RecursionError as exc:
        raise UserError("the statement is nested too deeply", code="query.syntax", hint="simplify it") from exc


def _quoted_name(identifier: Any) -> str | None:
    return identifier.name if getattr(identifier, "quoted", False) else None


def _blocked(what: str, *, hint: str | None = None) -> UserError:
    return UserError(
        f"{what} is not allowed: only reading statements are",
        code="guard.write_blocked",
        hint=hint or "hfagent reads sources and never changes them; use the source's own client for this",
    )

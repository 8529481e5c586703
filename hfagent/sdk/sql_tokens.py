"""Cuts a statement into tokens the way the server will: quotes, comments and literals of each dialect.

The guard stands on this: what is inside a literal is data, what is outside is code, and the two must not be confused. Where
servers differ by setting, their defaults are assumed (standard-conforming strings, backslash escapes in MySQL); where a dialect
is unknown, comments do not nest, because text that is wrongly taken for code is refused and text that is wrongly taken for a
comment would run.

Not a parser: it knows no grammar, and it gives up only where a literal or comment does not end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["Token", "TokenError", "tokenize"]


class TokenError(ValueError):
    """The text cannot be cut into tokens. The message says what is wrong, in words for the user."""


@dataclass(frozen=True, slots=True)
class Token:
    """`value` is lower case for words, the name itself for quoted identifiers, the inner text for hints and strings."""

    kind: Literal["word", "name", "string", "number", "sign", "hint", "executable"]
    value: str
    start: int
    end: int

    def is_word(self, *words: str) -> bool:
        """Tell whether this is one of the bare `words`."""
        return self.kind == "word" and self.value in words

    def is_sign(self, sign: str) -> bool:
        """Tell whether this is the punctuation `sign`."""
        return self.kind == "sign" and self.value == sign


@dataclass(frozen=True, slots=True)
class _Lexis:
    """What differs between dialects."""

    line_comments: tuple[str, ...] = ("--",)
    nested_comments: bool = False
    executable_comments: bool = False
    hints: bool = False
    string_marks: str = "'"
    name_marks: str = '"'
    backslash: bool = False
    escape_prefix: bool = False
    """`E'…'` has backslash escapes, and a string that continues on the next line keeps its kind."""
    dollar: Literal["", "tagged", "plain"] = ""
    triple: bool = False
    alternative: bool = False
    """`q'[…]'` with a delimiter of one's own."""
    strict_dashes: bool = False
    """`--` begins a comment only before a blank."""
    word_extras: str = "$"
    """Characters besides letters, digits and `_` that may stand inside a word."""
    word_starts: str = ""


_DEFAULT: Final = _Lexis(name_marks='"`', word_extras="$")
_LEXES: Final[dict[str, _Lexis]] = {
    "postgres": _Lexis(nested_comments=True, escape_prefix=True, dollar="tagged"),
    "duckdb": _Lexis(nested_comments=True, escape_prefix=True, dollar="tagged"),
    "mysql": _Lexis(
        line_comments=("--", "#"), executable_comments=True, hints=True, string_marks="'\"", name_marks="`", backslash=True,
        strict_dashes=True,
    ),
    "tsql": _Lexis(nested_comments=True, name_marks='"[', word_extras="$#@", word_starts="#@"),
    "oracle": _Lexis(hints=True, alternative=True, word_extras="$#"),
    "snowflake": _Lexis(line_comments=("--", "//"), backslash=True, dollar="plain"),
    "bigquery": _Lexis(
        line_comments=("--", "#"), string_marks="'\"", name_marks="`", backslash=True, triple=True, word_extras=""
    ),
    "sqlite": _Lexis(name_marks='"`['),
}  # fmt: skip
_LEXES["spark"] = _LEXES["databricks"] = _LEXES["hive"] = _Lexis(string_marks="'\"", name_marks="`", backslash=True)
_LEXES["clickhouse"] = _Lexis(name_marks='"`', backslash=True)
_LEXES["mariadb"] = _LEXES["mysql"]
_LEXES["redshift"] = _LEXES["postgres"]

_NUMBER: Final = re.compile(r"\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?")
_DOLLAR: Final = {"tagged": re.compile(r"\$(?:[^\W\d]\w*)?\$"), "plain": re.compile(r"\$\$")}
_CONTINUED: Final = re.compile(r"[ \t\f\v]*[\r\n](?:\s|--[^\r\n]*[\r\n])*'")
_SIGNS: Final = ("->>", "|>", ":=")
_BLANKS: Final = " \t\r\n\f\v"
_CLOSING: Final = {"[": "]", "(": ")", "{": "}", "<": ">"}


def tokenize(sql: str, dialect: str) -> list[Token]:
    """Return the tokens of `sql` in the given dialect (a sqlglot name; unknown ones get a careful default).

    Comments are left out; optimizer hints and MySQL's executable comments are tokens. Raises `TokenError`.
    """
    return list(_Scanner(sql, _LEXES.get(dialect, _DEFAULT)).tokens())


class _Scanner:
    def __init__(self, sql: str, lexis: _Lexis) -> None:
        self._sql = sql
        self._lexis = lexis
        self._at = 0

    def tokens(self) -> Iterator[Token]:
        sql, lexis = self._sql, self._lexis
        end = len(sql)
        while self._at < end:
            start = self._at
            char = sql[start]
            if char in _BLANKS or (char > "\x7f" and char.isspace()):
                self._at += 1
            elif char < " " or char == "\x7f" or "\ud800" <= char <= "\udfff":
                raise TokenError(f"a character that cannot be part of a statement (U+{ord(char):04X})")
            elif sql.startswith("/*", start):
                yield from self._comment(start)
            elif self._begins_line_comment(start):
                self._skip_line()
            elif char in lexis.string_marks:
                yield self._string(start, start, raw=not lexis.backslash)
            elif char in lexis.name_marks:
                yield self._name(start)
            elif lexis.dollar and (match := _DOLLAR[lexis.dollar].match(sql, start)):
                yield self._dollar_quoted(start, match[0])
            elif match := _NUMBER.match(sql, start):
                self._at = match.end()
                yield Token("number", match[0], start, match.end())
            elif char == "_" or char.isalpha() or char in lexis.word_starts:
                yield self._word(start)
            else:
                sign = next((s for s in _SIGNS if sql.startswith(s, start)), char)
                self._at += len(sign)
                yield Token("sign", sign, start, self._at)

    # --- comments ---

    def _begins_line_comment(self, start: int) -> bool:
        for mark in self._lexis.line_comments:
            if self._sql.startswith(mark, start):
                after = self._sql[start + 2 : start + 3]
                return not (mark == "--" and self._lexis.strict_dashes) or after == "" or after <= " "
        return False

    def _skip_line(self) -> None:
        line = self._sql.find("\n", self._at)
        end = len(self._sql) if line < 0 else line
        if "\r" in self._sql[self._at : end].removesuffix("\r"):
            # For some servers the comment ends here, for others at the next line feed: what follows is code for one of them.
            raise TokenError("a carriage return inside a line comment")
        self._at = end

    def _comment(self, start: int) -> Iterator[Token]:
        sql = self._sql
        depth, at = 1, start + 2
        while depth:
            close = sql.find("*/", at)
            if close < 0:
                raise TokenError("a comment that does not end")
            opening = sql.find("/*", at) if self._lexis.nested_comments else -1
            # By the place where they begin: in `/*/` the opening comes first and takes the asterisk with it.
            depth, at = (depth + 1, opening + 2) if 0 <= opening < close else (depth - 1, close + 2)
        self._at = at
        inner = sql[start + 2 : at - 2]
        if self._lexis.executable_comments and inner.startswith(("!", "M!")):
            yield Token("executable", inner, start, at)
        elif self._lexis.hints and inner.startswith("+"):
            yield Token("hint", inner.lower(), start, at)

    # --- literals ---

    def _string(self, start: int, quote_at: int, *, raw: bool) -> Token:
        """A string whose opening quote is at `quote_at`; `raw` strings have no backslash escapes."""
        sql = self._sql
        mark = sql[quote_at]
        if self._lexis.triple and sql.startswith(mark * 3, quote_at):
            mark *= 3
        at = quote_at + len(mark)
        while True:
            at = self._find_end(at, mark, escapes=not raw)
            if not (self._lexis.escape_prefix and mark == "'"):
                break
            continued = _CONTINUED.match(sql, at)
            if continued is None:
                break
            at = continued.end()
        self._at = at
        return Token("string", sql[quote_at + len(mark) : at - len(mark)], start, at)

    def _find_end(self, at: int, mark: str, *, escapes: bool) -> int:
        sql, end = self._sql, len(self._sql)
        while at < end:
            if escapes and sql[at] == "\\":
                at += 2
            elif not sql.startswith(mark, at):
                at += 1
            elif len(mark) == 1 and sql.startswith(mark, at + 1):
                at += 2  # a doubled quote stands for itself
            else:
                return at + len(mark)
        raise TokenError("a quote that does not close")

    def _name(self, start: int) -> Token:
        mark = self._sql[start]
        close = "]" if mark == "[" else mark
        self._at = self._find_end(start + 1, close, escapes=self._lexis.triple)  # only BigQuery escapes in names
        value = self._sql[start + 1 : self._at - 1].replace(close * 2, close)
        return Token("name", value, start, self._at)

    def _dollar_quoted(self, start: int, tag: str) -> Token:
        close = self._sql.find(tag, start + len(tag))
        if close < 0:
            raise TokenError("a dollar quote that does not close")
        self._at = close + len(tag)
        return Token("string", self._sql[start + len(tag) : close], start, self._at)

    def _word(self, start: int) -> Token:
        sql, lexis = self._sql, self._lexis
        at = start + 1
        while at < len(sql) and (sql[at] == "_" or sql[at].isalnum() or sql[at] in lexis.word_extras):
            at += 1
        value = sql[start:at].lower()
        following = sql[at : at + 1]
        if following and following in lexis.string_marks:
            if value == "e" and lexis.escape_prefix:
                return self._string(start, at, raw=False)
            if lexis.triple and value in ("r", "b", "rb", "br"):
                # A raw string keeps its backslashes, but a quote behind one does not close it either.
                return self._string(start, at, raw=False)
            if lexis.alternative and value in ("q", "nq"):
                return self._alternative(start, at)
        self._at = at
        return Token("word", value, start, at)

    def _alternative(self, start: int, quote_at: int) -> Token:
        opening = self._sql[quote_at + 1 : quote_at + 2]
        closing = _CLOSING.get(opening, opening) + "'"
        close = self._sql.find(closing, quote_at + 2) if opening else -1
        if close < 0:
            raise TokenError("a quote that does not close")
        self._at = close + 2
        return Token("string", self._sql[quote_at + 2 : close], start, self._at)

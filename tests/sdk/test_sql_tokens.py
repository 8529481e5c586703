"""The tokenizer against real servers: where they see literals, comments and ends of statements, so must it.

Random statements are made of the pieces that lexers stumble over. The seeds are fixed: a failure is reproducible.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from hfagent.sdk.sql_tokens import Token, TokenError, tokenize
from tests.fixtures.mariadb import MariadbServer
from tests.fixtures.postgres import PostgresServer

PIECES = [
    "'", "''", "\\", "E'", "e'", "\n", "\r\n", " ", "--", "/*", "*/", "$$", "$a$", "$b$", '"', "x", "1", ";", "#", "/*!", "`",
    "N'", "-- ", "\t", "'a'",
]  # fmt: skip


def statements(count: int) -> list[str]:
    rng = random.Random(20240229)
    return ["SELECT " + "".join(rng.choices(PIECES, k=rng.randint(1, 9))) + " AS c" for _ in range(count)]


def seen(sql: str, dialect: str) -> tuple[str, list[Token]]:
    """One statement, several, or a literal that does not close."""
    try:
        tokens = tokenize(sql, dialect)
    except TokenError:
        return "open", []
    while tokens and tokens[-1].is_sign(";"):
        tokens.pop()
    return ("several" if any(token.is_sign(";") for token in tokens) else "one"), tokens


def compare(dialect: str, judge: Callable[[str], str], count: int) -> Counter[tuple[str, str]]:
    """Let the server judge; it may also complain of something that is not the tokenizer's business ("other")."""
    verdicts: Counter[tuple[str, str]] = Counter()
    for sql in statements(count):
        ours, theirs = seen(sql, dialect)[0], judge(sql)
        assert theirs in (ours, "other"), sql
        verdicts[ours, theirs] += 1
    return verdicts


def test_postgresql_agrees(postgres_server: PostgresServer) -> None:
    import psycopg

    with psycopg.connect(postgres_server.dsn(), autocommit=True) as connection:

        def judge(sql: str) -> str:
            try:
                connection.execute(sql.encode(), prepare=True, binary=True).fetchall()
            except psycopg.Error as exc:
                text = str(exc)
                return "several" if "multiple commands" in text else "open" if "unterminated" in text else "other"
            return "one"

        verdicts = compare("postgres", judge, 8000)
    assert min(verdicts["one", "one"], verdicts["open", "open"]) > 500


def test_duckdb_agrees() -> None:
    import duckdb

    with duckdb.connect() as connection:

        def judge(sql: str) -> str:
            try:
                return "one" if len(connection.extract_statements(sql)) == 1 else "several"
            except duckdb.Error as exc:
                return "open" if "unterminated" in str(exc) else "other"

        verdicts = compare("duckdb", judge, 8000)
    assert min(verdicts["one", "one"], verdicts["open", "open"]) > 500


def test_mariadb_agrees(mariadb_server: MariadbServer) -> None:
    """It says "syntax error" to everything else, so the comparison is on statements that one side takes for a single literal."""
    import pymysql

    accepted = literals = 0
    with mariadb_server.connect() as connection, connection.cursor() as cursor:
        for sql in statements(8000):
            ours, tokens = seen(sql, "mysql")
            try:
                cursor.execute(sql)
                cursor.fetchall()
                works = True
            except pymysql.Error:
                works = False
            literal = [t.kind for t in tokens] == ["word", "string", "word", "word"] and tokens[2].is_word("as")
            assert works or not literal, sql
            assert ours == "one" or not works, sql
            accepted += works
            literals += literal
    assert min(accepted, literals) > 100


@pytest.mark.parametrize("dialect", ["postgres", "mysql", "duckdb", "tsql", "oracle", "snowflake", "bigquery", ""])
def test_a_carriage_return_alone_does_not_end_a_comment_for_everybody(dialect: str) -> None:
    """PostgreSQL ends the comment there, MariaDB at the line feed: a quote or a semicolon between them is code for one only."""
    with pytest.raises(TokenError, match="carriage return"):
        tokenize("SELECT 1 -- x\r'\n; DROP TABLE t -- '", dialect)
    assert len(tokenize("SELECT 1 -- x\r\n+ 1", dialect)) == 4
    assert len(tokenize("SELECT 1\r+ 1 -- x\r", dialect)) == 4


def test_an_opening_takes_the_asterisk_with_it() -> None:
    """`/*/` opens twice and closes never where comments nest."""
    with pytest.raises(TokenError):
        tokenize("SELECT 1 /* a /*/ b */", "postgres")
    assert len(tokenize("SELECT 1 /* a /*/ b", "mysql")) == 3

"""What every connector type must do, written once (connector specification §0.11).

    class TestMySQL(ConnectorConformance):
        type_name = "mysql"

        @pytest.fixture
        def source(self, mysql_server) -> Iterator[Source]: ...

Everything is expected. A type that cannot do something names it in `unsupported`, with the reason; the suite then proves
that the gap is real and that asking for it is refused politely. What a subclass must bring is in the first block of the
class; the hooks of a gap need not be brought.

Times are never asserted. Where something has to happen soon, the suite waits for the fact with a deadline that is far
below what it would take if nothing were done (a statement that runs for minutes is gone within seconds).
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import CODES, AgentError, Cancelled, ConfigError
from hfagent.foundation.redaction import MASK, redact
from hfagent.model.report import STAGES, CheckReport
from hfagent.model.stream import Stream, parse_stream_id
from hfagent.sdk.connector import BaseConnector, Queryable
from hfagent.sdk.probe import Mode, Probe
from hfagent.sdk.reading import BatchReader, Bound, ReadRequest, SchemaRequest, Statement
from hfagent.sdk.registry import Registry, describe
from hfagent.sdk.sql import SQLBase
from tests.connectors.source import Broken, Source, TypeCase, make
from tests.fixtures.canary import assert_no_canary, new_canary
from tests.fixtures.servers import wait_until

NEGATIVE_CASES = (
    "wrong_host", "closed_port", "black_hole_port", "untrusted_certificate", "wrong_host_name", "wrong_password",
    "missing_database", "missing_namespace", "no_grants", "slow_server", "too_many_connections", "garbage_protocol",
)  # fmt: skip
"""The twelve ways a configuration is wrong, each with a stage and a code of its own."""

WEIRD_NAMES = (
    "plain",
    "MixedCase",
    "mixedcase",
    "with space",
    " padded ",
    'with "quotes"',
    "it's",
    "semi;colon",
    "dot.ted",
    "select",
    "naïve",
    "表",
    "emoji 🦆",
    "percent %s %(x)s %%",
    "back`tick",
    "back\\slash",
    "$1 {brace} :colon",
    "-- comment",
    "/* comment */",
    "new\nline",
    "tab\tulator",
    "a" * 60,
)
"""Legal names that break a connector which concatenates, folds case, or formats twice."""

INJECTIONS = (
    "victim; DROP TABLE victim; --",
    '"; DROP TABLE victim; --',
    "'; DROP TABLE victim; --",
    "`; DROP TABLE victim; --",
    'x" UNION SELECT * FROM victim --',
    "x' OR '1'='1",
    "x) FROM victim; DELETE FROM victim; --",
    "x*/ DROP TABLE victim /*",
)

SOON = 5.0
"""Seconds within which something that was stopped has to be gone. Whatever is stopped here would run for minutes."""

GAPS = frozenset(
    {
        *NEGATIVE_CASES,
        "sessions",
        "secrets",
        "query",
        "explain",
        "cancel",
        "permissions",
        "zero_columns",
        "broken_views",
        "case_twins",
        "restart",
        "kill",
        "writes",
        "params",
        "dirt",
        "pool",
        "defined_order",
    }
)
"""What a type may declare as unsupported."""


class ConnectorConformance:
    """The suite. Subclass it as `Test…` and bring the hooks."""

    # --- what a subclass brings ---

    type_name: ClassVar[str]
    """Name of the type: the file's name in `hfagent/connectors`."""
    unsupported: ClassVar[Mapping[str, str]] = {}
    """Behaviour (one of GAPS) → why this type cannot have it."""
    weird_names: ClassVar[tuple[str, ...]] = WEIRD_NAMES
    """Names of streams and columns; a type leaves out only what its source cannot store."""
    writes: ClassVar[tuple[str, ...]] = ()
    """At least 25 statements that change something, or try to; `{victim}` is a qualified stream with rows."""
    slow_statement: ClassVar[str] = ""
    """Runs for minutes before its first row, with the text `{marker}` in it."""
    endless_statement: ClassVar[str] = ""
    """Yields rows for minutes, with the text `{marker}` in it."""
    count_statement: ClassVar[str] = "SELECT count(*) FROM {victim}"
    param_statement: ClassVar[str] = "SELECT %s"
    """Returns its one text parameter."""
    dirt: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Kind of dirt → statements that leave it behind in a session, run by `run_raw`."""
    text_type: ClassVar[str] = "text"
    integer_type: ClassVar[str] = "integer"
    many: ClassVar[int] = 1_000_000
    memory_cap: ClassVar[int] = 192 * 1024 * 1024
    """How much the resident memory of a process may grow while `many` rows pass through it."""

    @pytest.fixture
    def source(self) -> Iterator[Source]:
        """An empty namespace of a running system."""
        raise NotImplementedError

    def type_cases(self) -> tuple[TypeCase, ...]:
        """Every native type, with its extremes."""
        raise NotImplementedError

    def make_unreadable(self, source: Source, name: str) -> None:
        """Take the right to read a stream from the connector's account."""
        raise NotImplementedError

    def make_broken_view(self, source: Source, name: str) -> None:
        """Make a view that can no longer be read or described because what it stands on is gone."""
        raise NotImplementedError

    def run_raw(self, connection: Any, statement: str) -> None:
        """Run a statement on a connector's connection, past every guard."""
        raise NotImplementedError

    def session_state(self, connection: Any) -> Any:
        """What the next user of a connection can see of the former one: settings, temporary things, transaction."""
        raise NotImplementedError

    @contextmanager
    def broken(self, case: str, source: Source, request: pytest.FixtureRequest) -> Iterator[Broken]:
        """Set up one of NEGATIVE_CASES; a subclass answers those that need its server and leaves the rest to this."""
        config = source.config
        fixture = request.getfixturevalue
        if case == "wrong_host":
            yield Broken(config | {"host": "no-such-host.invalid"}, "dns", "net.dns")
        elif case == "closed_port":
            yield Broken(config | {"host": "127.0.0.1", "port": fixture("closed_port")}, "tcp", "net.refused")
        elif case == "black_hole_port":
            port = fixture("blackhole_port")
            yield Broken(config | {"host": "127.0.0.1", "port": port, "connect_timeout_s": 1}, "tcp", "net.timeout")
        elif case == "slow_server":
            port = fixture("silent_port")
            yield Broken(
                config | {"host": "127.0.0.1", "port": port, "connect_timeout_s": 1}, "auth", "timeout.connect"
            )
        elif case == "garbage_protocol":
            proxy = fixture("fault_proxy")(config["host"], config["port"])
            proxy.garbage()
            yield Broken(config | {"host": proxy.host, "port": proxy.port}, "auth", "net.protocol")
        elif case == "wrong_password":
            yield Broken(config | {"password": "not the password"}, "auth", "auth.invalid_credentials")
        elif case == "missing_database":
            yield Broken(config | {"database": "no_such_database"}, "namespace", "namespace.not_found")
        elif case == "missing_namespace":
            yield Broken(config, "namespace", "namespace.not_found", output_schemas=("no_such_schema",))
        else:
            raise NotImplementedError(f"{type(self).__name__} brings no set-up for {case!r}")

    # --- fixtures built on them ---

    @pytest.fixture
    def connector_class(self) -> type[BaseConnector[Any]]:
        return Registry().get(self.type_name)

    @pytest.fixture
    def connector(self, connector_class: type[BaseConnector[Any]], source: Source) -> BaseConnector[Any]:
        return make(connector_class, source.config, *([source.namespace] if source.namespace else []))

    @pytest.fixture
    def connection(self, connector: BaseConnector[Any]) -> Iterator[Any]:
        connection = connector.connect(Deadline(20))
        yield connection
        connector.close(connection)

    def gap(self, name: str) -> str | None:
        """The declared reason why a behaviour is missing."""
        assert name in GAPS
        return self.unsupported.get(name)

    # --- the type itself ---

    def test_declared_gaps_exist_and_have_reasons(self) -> None:
        assert set(self.unsupported) <= GAPS
        assert all(len(reason) > 10 for reason in self.unsupported.values())

    def test_example_is_accepted(self, connector_class: type[BaseConnector[Any]]) -> None:
        example = connector_class.Config.example
        assert example, "a type shows an example of its configuration"
        connector_class.Config.parse(example)
        assert describe(connector_class).config_schema["examples"] == [example]

    def test_unknown_field_is_refused_with_a_near_name(self, connector_class: type[BaseConnector[Any]]) -> None:
        known = next(iter(connector_class.Config.model_fields))
        with pytest.raises(ConfigError) as caught:
            connector_class.Config.parse(connector_class.Config.example | {known + "x": "y"})
        assert caught.value.code == "config.unknown_field"
        assert caught.value.hint is not None
        assert known in caught.value.hint

    def test_missing_field_is_named(self, connector_class: type[BaseConnector[Any]]) -> None:
        example = connector_class.Config.example
        for name in connector_class.Config.json_schema()["required"]:
            with pytest.raises(ConfigError) as caught:
                connector_class.Config.parse({k: v for k, v in example.items() if k != name})
            assert (caught.value.code, caught.value.field) == ("config.missing_field", name)

    def test_aliases_are_stored_under_the_canonical_name(self, connector_class: type[BaseConnector[Any]]) -> None:
        config = connector_class.Config
        for name, spec in config.properties().items():
            for alias in spec.get("x-aliases", ()):
                assert config.canonical({alias: "v"}) == {name: "v"}

    # --- the test of a connection ---

    def test_good_configuration_passes(self, connector: BaseConnector[Any]) -> None:
        report = run_test(connector)
        assert report.ok, report.error
        assert [stage.stage for stage in report.stages] == list(STAGES)
        assert report.latency_ms > 0
        assert report.server.get("product")
        assert all(stage.code in CODES for stage in report.stages if stage.code)
        assert json.loads(report.model_dump_json())["ok"] is True

    def test_quick_test_ends_after_the_server_stage(self, connector: BaseConnector[Any]) -> None:
        report = run_test(connector, "quick")
        assert report.ok, report.error
        later = report.stages[STAGES.index("server") + 1 :]
        assert {stage.status for stage in later} == {"skipped"}

    def test_cancelled_test_stops(self, connector: BaseConnector[Any]) -> None:
        cancel = CancelToken()
        cancel.cancel()
        with pytest.raises(Cancelled):
            connector.test(Probe(cancel=cancel))

    @pytest.mark.parametrize("case", NEGATIVE_CASES)
    def test_negative_case(
        self, case: str, connector_class: type[BaseConnector[Any]], source: Source, request: pytest.FixtureRequest
    ) -> None:
        if self.gap(case):
            self.prove_gap(case, connector_class)
            return
        with self.broken(case, source, request) as broken:
            connector = make(connector_class, broken.config, *broken.output_schemas)
            report = run_test(connector)
            assert not report.ok, f"{case} passed: {report.model_dump_json()}"
            assert report.error is not None
            assert (report.error.stage, report.error.code) == (broken.stage, broken.code), report.error
            assert report.error.hint, f"{report.error} tells no next step"
            assert report.error.retryable == CODES[broken.code].retryable
            after = [s.status for s in report.stages[STAGES.index(broken.stage) + 1 :]]
            assert set(after) <= {"skipped"}, "a stage ran after the failed one"
            # What is proven before the sign-in must be the same when the pool connects without a test.
            if STAGES.index(broken.stage) <= STAGES.index("auth"):
                with pytest.raises(AgentError) as caught:
                    connector.close(connector.connect(Deadline(10)))
                assert caught.value.code == broken.code

    def prove_gap(self, case: str, connector_class: type[BaseConnector[Any]]) -> None:
        """A negative case that cannot happen: the type has no field that could be wrong in that way."""
        config = connector_class.Config
        if case in ("wrong_password",):
            assert config.secret_fields() == ()
        elif case in ("missing_database", "missing_namespace"):
            assert "database" not in config.json_schema()["required"]
        elif case == "no_grants":
            assert "username" not in config.model_fields
        else:
            assert "host" not in config.model_fields

    def test_test_leaves_no_session_behind(
        self, connector_class: type[BaseConnector[Any]], connector: BaseConnector[Any], source: Source,
        request: pytest.FixtureRequest,
    ) -> None:  # fmt: skip
        if self.gap("sessions"):
            assert "pool_size" not in connector_class.Config.model_fields
            return
        before = source.sessions()
        assert run_test(connector).ok
        for case in ("missing_namespace", "wrong_password"):
            if not self.gap(case):
                with self.broken(case, source, request) as broken:
                    assert not run_test(make(connector_class, broken.config, *broken.output_schemas)).ok
        wait_until(lambda: source.sessions() == before, "the sessions of the tests are gone")

    # --- secrets ---

    def test_secrets_are_never_shown(
        self, connector_class: type[BaseConnector[Any]], source: Source, request: pytest.FixtureRequest,
        caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        if self.gap("secrets"):
            assert connector_class.Config.secret_fields() == ()
            return
        assert connector_class.Config.secret_fields()
        shown: list[str] = []
        canaries: list[str] = []
        with caplog.at_level(logging.DEBUG):
            for case in (
                "wrong_password",
                *(c for c in NEGATIVE_CASES if c not in ("wrong_password", "no_grants", "missing_namespace")),
            ):
                if self.gap(case):
                    continue
                with self.broken(case, source, request) as broken:
                    canary = new_canary("password")
                    canaries.append(canary)
                    secret = next(n for n in connector_class.Config.secret_fields() if n in broken.config)
                    connector = make(connector_class, broken.config | {secret: canary})
                    shown += [repr(connector.config), str(connector.config), repr(connector), repr(vars(connector))]
                    shown += [connector.config.model_dump_json(), repr(connector.config.model_dump())]
                    shown.append(run_test(connector).model_dump_json())
                    try:
                        connector.close(connector.connect(Deadline(5)))
                    except AgentError as error:
                        shown += [str(error), repr(error), json.dumps(error.to_data())]
                        shown += traceback.format_exception(error)
            for name in connector_class.Config.secret_fields():
                canary = new_canary(name)
                canaries.append(canary)
                try:
                    config = connector_class.Config.parse(connector_class.Config.example | {name: canary})
                    assert MASK in config.model_dump_json()
                    shown += [repr(config), config.model_dump_json()]
                except (
                    ConfigError
                ) as error:  # some secrets have a form (a PEM text), and complaining must not quote them
                    shown += [str(error), repr(error), *traceback.format_exception(error)]
        shown += [redact(record.getMessage()) for record in caplog.records if not record.name.startswith("hfagent")]
        shown += [record.getMessage() for record in caplog.records if record.name.startswith("hfagent")]
        shown += [*capfd.readouterr()]
        assert_no_canary(shown, canaries)

    # --- discovery ---

    def test_weird_names_come_back_exactly(
        self, connector: BaseConnector[Any], connection: Any, source: Source
    ) -> None:
        names = self._distinct(self.weird_names)
        for name in names:
            source.create(name, {name: self.text_type, "n": self.integer_type}, [["'x'", "1"]])
        found = {s.name: s for s in connector.read_schema(connection, SchemaRequest())}
        assert set(names) <= set(found)
        for name in names:
            stream = found[name]
            assert [c.name for c in stream.columns] == [name, "n"]
            assert parse_stream_id(stream.id) == (stream.namespace, name)
            with connector.read_rows(connection, stream, ReadRequest()) as reader:
                assert read_all(reader).to_pylist() == [{name: "x", "n": 1}]

    def _distinct(self, names: tuple[str, ...]) -> tuple[str, ...]:
        if not self.gap("case_twins"):
            return names
        return tuple({name.lower(): name for name in names}.values())

    def test_injections_in_names_are_only_names(
        self, connector: BaseConnector[Any], connection: Any, source: Source
    ) -> None:
        source.create("victim", {"n": self.integer_type}, [["1"], ["2"]])
        payloads = [p for p in INJECTIONS if self._storable(p)]
        assert payloads
        for payload in payloads:
            source.create(payload, {payload: self.text_type}, [["'x'"]])
        before = source.contents()
        found = {s.name: s for s in connector.read_schema(connection, SchemaRequest())}
        for payload in payloads:
            request = ReadRequest(columns=(payload,), bounds=(Bound(payload, ">=", payload[:0]),), order_by=(payload,))
            with connector.read_rows(connection, found[payload], request) as reader:
                assert read_all(reader).to_pylist() == [{payload: "x"}]
            # A value is data as well: bound, it matches nothing and runs nothing.
            request = ReadRequest(bounds=(Bound(payload, "=", payload),))
            with connector.read_rows(connection, found[payload], request) as reader:
                assert read_all(reader).num_rows == 0
            # As a stream or a column that does not exist it is refused without reaching the server as text.
            with pytest.raises(AgentError):
                connector.read_rows(connection, found["victim"], ReadRequest(columns=(payload,)))
        list(
            connector.read_schema(connection, SchemaRequest(include=tuple(payloads), exclude=("'; DROP TABLE victim",)))
        )
        assert source.contents() == before

    def _storable(self, name: str) -> bool:
        """Whether the source can store a name at all; a subclass may know better."""
        return True

    def test_depth_globs_and_hashes(self, connector: BaseConnector[Any], connection: Any, source: Source) -> None:
        for name in ("alpha_1", "alpha_2", "beta"):
            source.create(name, {"n": self.integer_type, "t": self.text_type}, [["1", "'x'"]])

        def names(**request: Any) -> list[str]:
            return sorted(s.name for s in connector.read_schema(connection, SchemaRequest(**request)))

        prefix = f"{source.namespace}." if source.namespace else ""
        assert names() == ["alpha_1", "alpha_2", "beta"]
        assert names(include=(f"{prefix}alpha_*",)) == ["alpha_1", "alpha_2"]
        assert names(include=(f"{prefix}alpha_*",), exclude=("*_2",)) == ["alpha_1"]
        assert names(include=(f"{prefix}ALPHA_*",)) == []
        assert names(namespaces=("no such namespace",)) == []
        shallow = list(connector.read_schema(connection, SchemaRequest(depth="names")))
        assert {s.name for s in shallow} == {"alpha_1", "alpha_2", "beta"}
        assert all(s.columns == () for s in shallow)
        middle = list(connector.read_schema(connection, SchemaRequest(depth="columns")))
        full = list(connector.read_schema(connection, SchemaRequest(depth="full")))
        assert [[c.name for c in s.columns] for s in middle] == [["n", "t"]] * 3
        assert [s.name for s in full] == sorted(s.name for s in full) == [s.name for s in middle]
        assert all(s.schema_hash for s in full)
        assert [s.schema_hash for s in full] == [
            s.schema_hash for s in connector.read_schema(connection, SchemaRequest())
        ]
        assert all("full" in s.capabilities for s in full)

    def test_schema_without_columns(self, connector: BaseConnector[Any], connection: Any, source: Source) -> None:
        if self.gap("zero_columns"):
            with pytest.raises(Exception):  # noqa: B017  the source's own error, whatever its driver calls it
                source.create("nothing", {})
            return
        source.create("nothing", {})
        source.create("something", {"n": self.integer_type})
        found = {s.name: s for s in connector.read_schema(connection, SchemaRequest())}
        assert found["nothing"].columns == ()
        assert [c.name for c in found["something"].columns] == ["n"]
        with pytest.raises(AgentError) as caught:
            connector.read_rows(connection, found["nothing"], ReadRequest())
        assert caught.value.code == "column.not_found"

    def test_unreadable_stream_is_listed(self, connector: BaseConnector[Any], connection: Any, source: Source) -> None:
        if self.gap("permissions"):
            assert "username" not in type(connector).Config.model_fields
            return
        for name in ("open", "closed"):
            source.create(name, {"n": self.integer_type}, [["1"]])
        self.make_unreadable(source, "closed")
        found = {s.name: s for s in connector.read_schema(connection, SchemaRequest())}
        assert found["open"].readable == "yes"
        if "closed" not in found:
            # Some systems do not show what cannot be read. Then it must not be readable by name either.
            assert self._hides_unreadable
        else:
            assert found["closed"].readable == "no"
            assert found["closed"].warnings
        stream = found.get("closed") or dataclass_like(found["open"], name="closed")
        with pytest.raises(AgentError) as caught, connector.read_rows(connection, stream, ReadRequest()) as reader:
            read_all(reader)
        assert caught.value.code in ("permission.denied", "permission.read_missing")
        assert "GRANT" in (caught.value.hint or "")
        with connector.read_rows(connection, found["open"], ReadRequest()) as reader:
            assert read_all(reader).num_rows == 1

    _hides_unreadable: ClassVar[bool] = False

    def test_broken_views_do_not_abort(self, connector: BaseConnector[Any], connection: Any, source: Source) -> None:
        if self.gap("broken_views"):
            return
        source.create("good", {"n": self.integer_type}, [["1"]])
        self.make_broken_view(source, "shattered")
        found = {s.name: s for s in connector.read_schema(connection, SchemaRequest())}
        assert found["good"].columns
        assert "shattered" in found
        with (
            pytest.raises(AgentError) as caught,
            connector.read_rows(connection, found["shattered"], ReadRequest()) as reader,
        ):
            read_all(reader)
        assert caught.value.code != "internal.driver"
        with connector.read_rows(connection, found["good"], ReadRequest()) as reader:
            assert read_all(reader).num_rows == 1

    # --- values ---

    def test_type_matrix(self, connector: BaseConnector[Any], connection: Any, source: Source) -> None:
        cases = self.type_cases()
        columns = {f"c{i:03d}": case.native for i, case in enumerate(cases)}
        depth = max(len(case.values) for case in cases)
        literals = [[*case.values, *["NULL"] * (depth + 1 - len(case.values))] for case in cases]
        source.create("matrix", {"row_number": self.integer_type} | columns, [
            [str(row), *(column[row] for column in literals)] for row in range(depth + 1)
        ])  # fmt: skip
        stream = next(s for s in connector.read_schema(connection, SchemaRequest()) if s.name == "matrix")
        declared = {c.name: c for c in stream.columns}
        order = () if self.gap("defined_order") else ("row_number",)
        with connector.read_rows(connection, stream, ReadRequest(order_by=order)) as reader:
            result = {c.name: c for c in reader.columns}
            table = read_all(reader)
        wrong = []
        for name, case in zip(columns, cases, strict=True):
            what = f"{case.native} ({name})"
            if str(declared[name].type) != case.type:
                wrong.append(f"{what}: discovered as {declared[name].type}, expected {case.type}")
            if str(result[name].type) != case.type:
                wrong.append(f"{what}: read as {result[name].type}, expected {case.type}")
            expected = [*case.values.values(), *[None] * (depth + 1 - len(case.values))]
            for literal, value, want in zip(
                [*case.values, *["NULL"] * depth], table[name].to_pylist(), expected, strict=False
            ):
                if not same(value, want):
                    wrong.append(f"{what}: {literal} read as {value!r}, expected {want!r}")
        assert not wrong, "\n".join(wrong)

    def test_empty_result_keeps_its_columns(
        self, connector: BaseConnector[Any], connection: Any, source: Source
    ) -> None:
        source.create("empty", {"n": self.integer_type, "t": self.text_type})
        stream = next(s for s in connector.read_schema(connection, SchemaRequest()) if s.name == "empty")
        with connector.read_rows(connection, stream, ReadRequest()) as reader:
            assert [c.name for c in reader.columns] == ["n", "t"]
            assert reader.schema.names == ["n", "t"]
            assert read_all(reader).num_rows == 0

    def test_bounds_order_and_limit(self, connector: BaseConnector[Any], connection: Any, source: Source) -> None:
        source.create("ten", {"n": self.integer_type, "t": self.text_type}, [[str(i), f"'v{i}'"] for i in range(10)])
        stream = next(s for s in connector.read_schema(connection, SchemaRequest()) if s.name == "ten")

        def numbers(**request: Any) -> list[int]:
            with connector.read_rows(connection, stream, ReadRequest(order_by=("n",), **request)) as reader:
                return [int(n) for n in read_all(reader)["n"].to_pylist()]

        assert numbers() == list(range(10))
        assert numbers(bounds=(Bound("n", ">=", 3), Bound("n", "<", "6"))) == [3, 4, 5]
        assert numbers(bounds=(Bound("n", "is null"),)) == []
        assert numbers(limit=4) == [0, 1, 2, 3]
        assert numbers(limit=0) == []
        with connector.read_rows(connection, stream, ReadRequest(columns=("t",), limit=1)) as reader:
            assert reader.schema.names == ["t"]
        with pytest.raises(AgentError) as caught:
            connector.read_rows(connection, stream, ReadRequest(columns=("nope",)))
        assert caught.value.code == "column.not_found"

    def test_many_rows_in_little_memory(self, source: Source) -> None:
        source.create_rows("many", self.many)
        task = {"type": self.type_name, "config": source.config, "namespace": source.namespace, "name": "many"}
        done = subprocess.run(
            [sys.executable, "-m", "tests.connectors.drain"],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout)
        assert seen["rows"] == self.many
        assert seen["bytes"] > 100 * self.many, "the rows are too small to prove anything"
        assert seen["largest"] <= 64 * 1024 * 1024
        assert seen["growth"] < self.memory_cap, seen

    def test_closing_early_leaves_the_connection_usable_or_broken(
        self, connector: BaseConnector[Any], connection: Any, source: Source
    ) -> None:
        source.create_rows("rows", 200_000)
        stream = next(s for s in connector.read_schema(connection, SchemaRequest()) if s.name == "rows")
        reader = connector.read_rows(connection, stream, ReadRequest())
        first = next(iter(reader))
        assert first.num_rows > 0
        reader.close()
        reader.close()
        assert list(reader) == []
        if connector.reset(connection):
            assert connector.is_alive(connection, 5)
            with connector.read_rows(connection, stream, ReadRequest(limit=3)) as again:
                assert read_all(again).num_rows == 3

    # --- statements of the user ---

    def queryable(self, connector: BaseConnector[Any], connection: Any) -> SQLBase[Any] | None:
        """The connector when it takes statements; else the proof that it refuses them politely."""
        if not self.gap("query"):
            assert isinstance(connector, SQLBase)
            return connector
        assert not isinstance(connector, Queryable)
        assert "query" not in connector.capabilities()
        assert not type(connector).is_queryable or type(connector).category == "file"
        return None

    def test_max_rows_is_exact(self, connector: BaseConnector[Any], connection: Any, source: Source) -> None:
        if (sql := self.queryable(connector, connection)) is None:
            return
        source.create_rows("rows", 20_000)
        text = f"SELECT * FROM {source.qualified('rows')}"
        for limit in (0, 1, 7, 5_000, 19_999, 20_000, 20_001):
            with sql.execute(connection, Statement(text, max_rows=limit, first_rows=100)) as reader:
                assert read_all(reader).num_rows == min(limit, 20_000)
        assert sql.is_alive(connection, 5) or not sql.reset(connection)

    def test_first_rows_come_in_a_small_batch(
        self, connector: BaseConnector[Any], connection: Any, source: Source
    ) -> None:
        if (sql := self.queryable(connector, connection)) is None:
            return
        source.create_rows("rows", 20_000)
        with sql.execute(connection, Statement(f"SELECT * FROM {source.qualified('rows')}", first_rows=50)) as reader:
            sizes = [batch.num_rows for batch in reader]
        assert 50 <= sizes[0] <= 5_000
        assert sum(sizes) == 20_000

    def test_parameters_are_bound(self, connector: BaseConnector[Any], connection: Any, source: Source) -> None:
        if (sql := self.queryable(connector, connection)) is None:
            return
        source.create("victim", {"n": self.integer_type}, [["1"]])
        before = source.contents()
        for value in (*INJECTIONS, "", "plain", "%s %(x)s %%", "back\\slash", "naïve 表 🦆", "a\nb"):
            with sql.execute(connection, Statement(self.param_statement, (value,))) as reader:
                assert list(read_all(reader).to_pylist()[0].values()) == [value]
        assert source.contents() == before

    def test_errors_of_statements_are_typed(
        self, connector: BaseConnector[Any], connection: Any, source: Source
    ) -> None:
        if (sql := self.queryable(connector, connection)) is None:
            return
        source.create("victim", {"n": self.integer_type}, [["1"]])
        expected = {
            f"SELECT * FROM {source.qualified('no such stream')}": "model.not_found",
            f"SELECT nope FROM {source.qualified('victim')}": "column.not_found",
            "SELECT FROM WHERE": "query.syntax",
        }
        for text, code in expected.items():
            with pytest.raises(AgentError) as caught, sql.execute(connection, Statement(text)) as reader:
                read_all(reader)
            assert caught.value.code == code, caught.value
        # One failed statement does not spoil the connection for the next one.
        assert sql.reset(connection)
        with sql.execute(
            connection, Statement(self.count_statement.format(victim=source.qualified("victim")))
        ) as reader:
            assert next(iter(read_all(reader).to_pylist()[0].values())) == 1

    def test_explain(self, connector: BaseConnector[Any], connection: Any, source: Source) -> None:
        if self.gap("explain"):
            assert "explain" not in connector.capabilities()
            return
        sql = self.queryable(connector, connection)
        assert sql is not None
        source.create("victim", {"n": self.integer_type}, [["1"]])
        plan = sql.explain(connection, Statement(f"SELECT * FROM {source.qualified('victim')}"))
        assert plan.plan
        assert "victim" in json.dumps(plan.plan)
        before = source.contents()
        with pytest.raises(AgentError) as caught:
            sql.explain(connection, Statement(f"DELETE FROM {source.qualified('victim')}"))
        assert caught.value.code == "guard.write_blocked"
        assert source.contents() == before

    # --- stopping ---

    def test_cancel_before_the_first_row(self, connector: BaseConnector[Any], connection: Any, source: Source) -> None:
        self._stop(connector, connection, source, self.slow_statement)

    def test_cancel_in_the_middle_of_rows(self, connector: BaseConnector[Any], connection: Any, source: Source) -> None:
        self._stop(connector, connection, source, self.endless_statement)

    def _stop(self, connector: BaseConnector[Any], connection: Any, source: Source, template: str) -> None:
        if self.gap("cancel"):
            assert "cancel" not in connector.capabilities()
            return
        sql = self.queryable(connector, connection)
        assert sql is not None
        cancel = CancelToken()
        text = template.format(marker="hf_cancel_marker")
        with background(lambda: drain(sql.execute(connection, Statement(text, cancel=cancel)))) as work:
            wait_until(lambda: source.running("hf_cancel_marker") > 0, "the statement runs", 10)
            cancel.cancel()
            wait_until(lambda: source.running("hf_cancel_marker") == 0, "the statement is gone from the server", SOON)
            error = work(SOON)
        assert isinstance(error, Cancelled), error
        usable_or_discarded(sql, connection)

    def test_deadline_before_the_first_row(
        self, connector: BaseConnector[Any], connection: Any, source: Source
    ) -> None:
        self._expire(connector, connection, source, self.slow_statement)

    def test_deadline_in_the_middle_of_rows(
        self, connector: BaseConnector[Any], connection: Any, source: Source
    ) -> None:
        self._expire(connector, connection, source, self.endless_statement)

    def _expire(self, connector: BaseConnector[Any], connection: Any, source: Source, template: str) -> None:
        if (sql := self.queryable(connector, connection)) is None:
            return
        text = template.format(marker="hf_deadline_marker")
        with background(lambda: drain(sql.execute(connection, Statement(text, deadline=Deadline(0.5))))) as work:
            error = work(SOON + 5)
        assert isinstance(error, AgentError), error
        assert error.code in ("timeout.statement", "timeout.total"), error
        wait_until(lambda: source.running("hf_deadline_marker") == 0, "the statement is gone from the server", SOON)
        usable_or_discarded(sql, connection)

    def test_closing_early_stops_the_statement(
        self, connector: BaseConnector[Any], connection: Any, source: Source
    ) -> None:
        if (sql := self.queryable(connector, connection)) is None:
            return
        reader = sql.execute(
            connection, Statement(self.endless_statement.format(marker="hf_close_marker"), first_rows=10)
        )
        assert next(iter(reader)).num_rows > 0
        assert source.running("hf_close_marker") > 0
        with background(reader.close) as work:
            assert work(SOON + 5) is None
        wait_until(lambda: source.running("hf_close_marker") == 0, "the statement is gone from the server", SOON)
        usable_or_discarded(sql, connection)

    def test_abort_wakes_a_blocked_reader(self, connector: BaseConnector[Any], connection: Any, source: Source) -> None:
        if (sql := self.queryable(connector, connection)) is None:
            return
        text = self.slow_statement.format(marker="hf_abort_marker")
        with background(lambda: drain(sql.execute(connection, Statement(text)))) as work:
            wait_until(lambda: source.running("hf_abort_marker") > 0, "the statement runs", 10)
            sql.abort(connection)
            error = work(SOON)
        assert isinstance(error, AgentError), error
        assert not sql.is_alive(connection, 1)
        wait_until(lambda: source.running("hf_abort_marker") == 0, "the server noticed", 20)

    def test_killed_in_the_middle_of_rows(self, connector: BaseConnector[Any], connection: Any, source: Source) -> None:
        if self.gap("kill"):
            assert "host" not in type(connector).Config.model_fields
            return
        sql = self.queryable(connector, connection)
        assert sql is not None
        reader = sql.execute(
            connection, Statement(self.endless_statement.format(marker="hf_kill_marker"), first_rows=10)
        )
        batches = iter(reader)
        next(batches)
        source.kill_sessions()
        with pytest.raises(AgentError) as caught:
            for _ in batches:
                pass
        reader.close()
        assert caught.value.retryable, caught.value
        assert caught.value.code in ("transient.failover", "net.reset"), caught.value
        assert not sql.is_alive(connection, 2)
        assert not discarded_is_usable(sql, connection)

    # --- read-only ---

    def test_writes_are_refused(self, connector: BaseConnector[Any], connection: Any, source: Source) -> None:
        if self.gap("writes"):
            assert not isinstance(connector, Queryable)
            return
        sql = self.queryable(connector, connection)
        assert sql is not None
        assert len(self.writes) >= 25
        source.create("victim", {"n": self.integer_type, "t": self.text_type}, [["1", "'one'"], ["2", "'two'"]])
        before = source.contents()
        accepted = []
        for template in self.writes:
            text = template.format(victim=source.qualified("victim"), namespace=source.namespace)
            try:
                drain(sql.execute(connection, Statement(text)))
                accepted.append(text)
            except AgentError as error:
                assert error.code not in ("internal.bug", "internal.driver"), (text, error)
        assert source.contents() == before
        assert not accepted, "the guard let pass:\n" + "\n".join(accepted)

    def test_the_server_refuses_writes_by_itself(
        self, connector: BaseConnector[Any], connection: Any, source: Source
    ) -> None:
        if self.gap("writes"):
            return
        sql = self.queryable(connector, connection)
        assert sql is not None
        if not sql.server_enforces_read_only:
            return
        source.create("victim", {"n": self.integer_type, "t": self.text_type}, [["1", "'one'"], ["2", "'two'"]])
        before = source.contents()
        for template in self.writes:
            text = template.format(victim=source.qualified("victim"), namespace=source.namespace)
            try:
                drain(sql.open_result(connection, text, (), Statement(text)))
            except AgentError:
                pass  # what counts is what the source holds afterwards
            if not sql.reset(connection):
                sql.close(connection)
                connection = sql.connect(Deadline(10))
        sql.close(connection)
        assert source.contents() == before

    # --- the life of a connection ---

    def test_dirt_is_not_passed_on(self, connector: BaseConnector[Any], source: Source) -> None:
        if self.gap("dirt"):
            return
        assert len(self.dirt) >= 10
        source.create("victim", {"n": self.integer_type}, [["1"]])
        clean = connector.connect(Deadline(10))
        wanted = self.session_state(clean)
        connector.close(clean)
        passed_on = []
        for kind, statements in self.dirt.items():
            connection = connector.connect(Deadline(10))
            try:
                for statement in statements:
                    self.run_raw(connection, statement.format(victim=source.qualified("victim")))
                if connector.reset(connection) and self.session_state(connection) != wanted:
                    passed_on.append(kind)
            finally:
                connector.close(connection)
        assert not passed_on

    def test_is_alive_is_bounded(
        self, connector_class: type[BaseConnector[Any]], source: Source, request: pytest.FixtureRequest
    ) -> None:
        if self.gap("kill"):
            return
        proxy = request.getfixturevalue("fault_proxy")(source.config["host"], source.config["port"])
        connector = make(connector_class, source.config | {"host": proxy.host, "port": proxy.port})
        connection = connector.connect(Deadline(10))
        assert connector.is_alive(connection, 5)
        proxy.blackhole()
        answers: list[bool] = []
        with background(lambda: answers.append(connector.is_alive(connection, 0.5))) as work:
            assert work(SOON + 5) is None
        assert answers == [False]
        with background(lambda: connector.close(connection)) as work:
            assert work(SOON + 5) is None

    def test_connect_keeps_its_deadline(
        self, connector_class: type[BaseConnector[Any]], source: Source, request: pytest.FixtureRequest
    ) -> None:
        if self.gap("slow_server"):
            return
        port = request.getfixturevalue("silent_port")
        connector = make(connector_class, source.config | {"host": "127.0.0.1", "port": port, "connect_timeout_s": 60})
        with background(lambda: connector.connect(Deadline(1.0))) as work:
            error = work(15)
        assert isinstance(error, AgentError), error
        assert error.code in ("timeout.connect", "net.timeout"), error

    def test_pool_heals_after_a_restart(self, connector: BaseConnector[Any], source: Source) -> None:
        if self.gap("pool"):
            assert "pool_size" not in type(connector).Config.model_fields
            return
        from tests.connectors.pools import with_pool

        source.create("victim", {"n": self.integer_type}, [["1"]])
        text = self.count_statement.format(victim=source.qualified("victim"))
        with with_pool(connector) as borrow:

            def count() -> Any:
                with borrow() as connection:
                    assert isinstance(connector, SQLBase)
                    with connector.execute(connection, Statement(text)) as reader:
                        return next(iter(read_all(reader).to_pylist()[0].values()))

            assert [count() for _ in range(3)] == [1, 1, 1]
            source.restart()
            errors = []
            for _ in range(6):  # a caller that repeats once never sees the restart
                try:
                    assert count() == 1
                except AgentError as error:
                    assert error.retryable, error
                    errors.append(error)
            assert len(errors) <= 1, errors
            assert count() == 1


# --- what the tests are written with ---


def run_test(connector: BaseConnector[Any], mode: Mode = "standard") -> CheckReport:
    """Test a connection and return the report."""
    probe = Probe(mode=mode, deadline=Deadline(20))
    connector.test(probe)
    return probe.report()


def read_all(reader: BatchReader) -> pa.Table:
    """The whole result as a table; every batch must have the schema that was announced."""
    batches = []
    for batch in reader:
        assert batch.schema.equals(reader.schema), f"{batch.schema}\nannounced:\n{reader.schema}"
        batches.append(batch)
    return pa.Table.from_batches(batches, reader.schema)


def drain(reader: BatchReader) -> int:
    """Read to the end and close; return the number of rows."""
    with reader:
        return sum(batch.num_rows for batch in reader)


def same(value: Any, wanted: Any) -> bool:
    """Equal, of the same type, NaN equal to itself and the two zeros apart."""
    if isinstance(value, float) and isinstance(wanted, float):
        return repr(value) == repr(wanted)
    if isinstance(value, list) and isinstance(wanted, list):
        return len(value) == len(wanted) and all(map(same, value, wanted))
    return type(value) is type(wanted) and bool(value == wanted) and str(value) == str(wanted)


def dataclass_like(stream: Stream, **changes: Any) -> Stream:
    """A stream like another one."""
    return stream.model_copy(update=changes)


@contextmanager
def background(work: Callable[[], Any]) -> Iterator[Callable[[float], BaseException | None]]:
    """Run `work` in a thread. The given function waits for its end and returns its exception (None: it had none)."""
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            outcome.append(error)
        else:
            outcome.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def wait(seconds: float) -> BaseException | None:
        thread.join(seconds)
        assert outcome, f"still running after {seconds} s"
        return outcome[0]

    yield wait
    thread.join(30)
    assert not thread.is_alive(), "a thread of the test is stuck"


def usable_or_discarded(connector: BaseConnector[Any], connection: Any) -> None:
    """After a stop a connection is either as good as new or refused by `reset`: never busy."""
    if connector.reset(connection):
        assert connector.is_alive(connection, 5)


def discarded_is_usable(connector: BaseConnector[Any], connection: Any) -> bool:
    """Whether `reset` claims that a dead connection can be lent again."""
    try:
        return connector.reset(connection)
    except Exception:
        return False

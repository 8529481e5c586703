"""A test's stages: order, outcome, what is reported when one fails, and what never is."""

from __future__ import annotations

import pytest

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, Cancelled, ConfigError, SourceError
from hfagent.foundation.redaction import MASK, register_secret, unregister_all
from hfagent.model.report import STAGES, StageResult
from hfagent.sdk.probe import Probe, ProbeFailed


def statuses(probe: Probe) -> dict[str, str]:
    return {stage.stage: stage.status for stage in probe.report().stages}


def test_a_good_test_lists_every_stage_in_order() -> None:
    heard: list[StageResult] = []
    probe = Probe(on_stage=heard.append)
    with probe.stage("auth") as stage:
        stage.details["method"] = "scram"
        stage.message = "signed in"
    with probe.stage("config"):
        pass
    probe.record("tcp", ms=3, details={"by": "auth"})
    probe.record("auth", ms=99)  # already there: its own result counts
    probe.skip("tunnel", "none is configured")
    probe.skip("auth", "no")
    probe.rtt_ms = 1.5
    probe.server["product"] = "Fake"
    report = probe.report("c1")
    assert [stage.stage for stage in report.stages] == list(STAGES)
    assert (report.ok, report.error, report.connector_id, report.rtt_ms) == (True, None, "c1", 1.5)
    assert report.server == {"product": "Fake"}
    by_name = {stage.stage: stage for stage in report.stages}
    assert (by_name["auth"].details, by_name["auth"].message) == ({"method": "scram"}, "signed in")
    assert (by_name["tcp"].ms, by_name["tunnel"].message) == (3, "none is configured")
    assert by_name["capacity"].message == "does not apply"
    assert report.latency_ms == pytest.approx(by_name["auth"].ms + 3, abs=0.01)
    assert [one.stage for one in heard] == ["auth", "config", "tcp", "tunnel"]


def test_a_failed_stage_ends_the_test() -> None:
    probe = Probe()
    with probe.stage("config"):
        pass
    with pytest.raises(ProbeFailed), probe.stage("auth") as stage:
        stage.details["user"] = "etl"
        stage.warn("tls.unverified", "half-way warning")
        raise SourceError("password rejected", code="auth.invalid_credentials", hint="edit it", data={"tried": [1]})
    with pytest.raises(ProbeFailed), probe.stage("ping"):
        pytest.fail("must not run")
    report = probe.report()
    assert not report.ok
    assert report.error is not None
    assert (report.error.code, report.error.stage, report.error.retryable) == (
        "auth.invalid_credentials",
        "auth",
        False,
    )
    by_name = {stage.stage: stage for stage in report.stages}
    assert (by_name["auth"].status, by_name["auth"].code, by_name["auth"].hint) == (
        "failed", "auth.invalid_credentials", "edit it",
    )  # fmt: skip
    assert by_name["auth"].details == {"user": "etl", "tried": [1]}
    assert (by_name["config"].status, by_name["ping"].status) == ("passed", "skipped")
    assert by_name["ping"].message == "not reached: auth failed"
    assert report.warnings == ("half-way warning",)


def test_a_field_of_a_config_error_is_kept() -> None:
    probe = Probe()
    with pytest.raises(ProbeFailed), probe.stage("config"):
        raise ConfigError("too large", field="port", data={"more": "x"})
    report = probe.report()
    assert report.error is not None
    assert report.error.field == "port"


def test_driver_errors_are_mapped_or_pass() -> None:
    probe = Probe()
    with pytest.raises(ZeroDivisionError), probe.stage("ping"):
        _ = 1 / 0
    assert probe.error is None
    with (
        pytest.raises(ProbeFailed) as caught,
        probe.stage("ping", map_error=lambda exc: AgentError(f"mapped {type(exc).__name__}", code="net.reset")),
    ):
        raise OSError
    assert isinstance(caught.value.__cause__, OSError)
    failed = next(stage for stage in probe.report().stages if stage.status == "failed")
    assert failed.message == "mapped OSError"


def test_warnings_and_skips() -> None:
    probe = Probe()
    with probe.stage("safety") as stage:
        stage.warn("permission.can_write", "can write", "use another account")
        stage.warn("permission.superuser", "is superuser")
    with probe.stage("tls") as stage:
        stage.skip("no TLS here")
    report = probe.report()
    by_name = {stage.stage: stage for stage in report.stages}
    assert (by_name["safety"].status, by_name["safety"].code, by_name["safety"].hint) == (
        "warning", "permission.can_write", "use another account",
    )  # fmt: skip
    assert (by_name["tls"].status, by_name["tls"].message) == ("skipped", "no TLS here")
    assert report.warnings == ("can write", "is superuser")
    assert report.ok


def test_names_are_checked() -> None:
    probe = Probe()
    with pytest.raises(ValueError, match="weather"), probe.stage("weather"):
        pass
    with pytest.raises(KeyError), probe.stage("tls") as stage:
        stage.warn("tls.fashion", "out of style")


def test_quick_ends_after_the_server() -> None:
    quick, standard = Probe(mode="quick"), Probe()
    assert [name for name in STAGES if quick.wants(name)] == list(STAGES[:9])
    assert all(standard.wants(name) for name in STAGES)
    assert (quick.deadline.seconds, standard.deadline.seconds) == (15, 60)
    found = {stage.stage: stage.message for stage in quick.report().stages}
    assert (found["safety"], found["server"]) == ("not part of a quick test", "does not apply")


def test_cancelling_is_no_finding() -> None:
    token = CancelToken()
    probe = Probe(cancel=token)
    with pytest.raises(Cancelled), probe.stage("auth"):
        token.cancel()
        token.raise_if_cancelled()
    with pytest.raises(Cancelled), probe.stage("ping"):
        pytest.fail("must not run")
    assert (probe.error, "failed" in statuses(probe).values()) == (None, False)
    probe = Probe(cancel=(token := CancelToken()))
    with (
        pytest.raises(Cancelled) as caught,
        probe.stage("auth", map_error=lambda exc: SourceError("x", code="net.reset")),
    ):
        token.cancel()
        raise ConnectionResetError  # what the driver says when its socket is shut
    assert isinstance(caught.value.__cause__, ConnectionResetError)


def test_no_stage_begins_after_the_deadline() -> None:
    probe = Probe(deadline=Deadline(0))
    with pytest.raises(ProbeFailed), probe.stage("tcp"):
        pytest.fail("must not run")
    report = probe.report()
    assert report.error is not None
    assert (report.error.code, report.error.stage) == ("timeout.total", "tcp")


def test_an_error_may_be_filed_under_another_stage() -> None:
    probe = Probe()
    probe.fail("tls", SourceError("untrusted", code="tls.untrusted"), ms=7)
    assert statuses(probe)["tls"] == "failed"
    with pytest.raises(ProbeFailed), probe.stage("auth"):
        pytest.fail("must not run")


def test_nothing_secret_is_reported() -> None:
    register_secret("hunter22")
    heard: list[StageResult] = []
    probe = Probe(on_stage=heard.append)
    try:
        with probe.stage("auth") as stage:
            stage.details |= {"dsn": "u:hunter22", "nested": {"list": ["hunter22"]}}
            stage.message = "in with hunter22"
            stage.warn("tls.unverified", "hunter22 in the clear", "hide hunter22")
        text = probe.report().model_dump_json() + "".join(one.model_dump_json() for one in heard)
    finally:
        unregister_all()
    assert "hunter22" not in text
    assert MASK in text

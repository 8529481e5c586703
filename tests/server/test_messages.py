"""The grammar of JSON-RPC: the exact error for every kind of wrong message, ids echoed exactly, silence for notifications."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from hfagent.transport.framing import Encoding
from tests.fixtures.daemon import RawClient, RunningServer, StartServer, wait_until
from tests.transport.test_encoding import MSGPACK_REFUSED, REFUSED


def test_ids_are_echoed_exactly(server: RunningServer) -> None:
    for encoding in ("json", "msgpack"):
        with server.raw(encoding=encoding) as client:  # type: ignore[arg-type]
            for request_id in (0, -1, 2**53 + 1, -(2**63), 2**64 - 1, "", "1", "é\U0001f600\x00\n", "x" * 5000):
                client.send({"jsonrpc": "2.0", "id": request_id, "method": "test/echo"})
                reply = client.receive()
                assert reply["id"] == request_id
                assert type(reply["id"]) is type(request_id)
                assert "result" in reply


def test_one_and_the_string_one_are_different_ids(server: RunningServer) -> None:
    with server.raw() as client:
        client.request("test/hold", request_id=1)
        client.request("test/hold", request_id="1")
        assert all(server.services.held.acquire(timeout=10) for _ in range(2))
        client.notify("$/cancelRequest", {"id": "1"})
        reply = client.receive()
        assert (reply["id"], reply["error"]["code"]) == ("1", -32800)
        server.services.release()
        assert client.receive()["id"] == 1


@pytest.mark.parametrize(
    ("message", "number", "request_id"),
    [
        ([], -32600, None),
        ([{"jsonrpc": "2.0", "id": 1, "method": "test/echo"}], -32600, None),
        (7, -32600, None),
        ("text", -32600, None),
        (None, -32600, None),
        ({}, -32600, None),
        ({"jsonrpc": "2.0"}, -32600, None),
        ({"jsonrpc": "2.0", "method": 1}, -32600, None),
        ({"jsonrpc": "2.0", "id": None, "method": "test/echo"}, -32600, None),
        ({"jsonrpc": "2.0", "id": True, "method": "test/echo"}, -32600, None),
        ({"jsonrpc": "2.0", "id": 1.0, "method": "test/echo"}, -32600, None),
        ({"jsonrpc": "2.0", "id": {}, "method": "test/echo"}, -32600, None),
        ({"jsonrpc": "2.0", "id": [1], "method": "test/echo"}, -32600, None),
        ({"jsonrpc": "2.0", "id": 5}, -32600, 5),
        ({"jsonrpc": "2.0", "id": 5, "method": None}, -32600, 5),
        ({"jsonrpc": "2.0", "id": 5, "method": ["test/echo"]}, -32600, 5),
        ({"jsonrpc": "1.0", "id": 5, "method": "test/echo"}, -32600, 5),
        ({"id": 5, "method": "test/echo"}, -32600, 5),
        ({"jsonrpc": 2.0, "id": 5, "method": "test/echo"}, -32600, 5),
        ({"jsonrpc": "2.0", "id": 5, "method": ""}, -32601, 5),
        ({"jsonrpc": "2.0", "id": 5, "method": "x" * 5000}, -32601, 5),
        ({"jsonrpc": "2.0", "id": 5, "method": "test/echo", "params": []}, -32602, 5),
        ({"jsonrpc": "2.0", "id": 5, "method": "test/echo", "params": "x"}, -32602, 5),
        ({"jsonrpc": "2.0", "id": 5, "method": "test/echo", "params": {"workDoneToken": {}}}, -32602, 5),
    ],
)
@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_wrong_messages(server: RunningServer, encoding: Encoding, message: Any, number: int, request_id: Any) -> None:
    with server.raw(encoding=encoding) as client:
        client.send(message)
        reply = client.receive()
        assert reply["jsonrpc"] == "2.0"
        assert reply["id"] == request_id
        assert reply["error"]["code"] == number
        assert len(json.dumps(reply["error"])) < 2000
        assert client.ask("test/echo", request_id="after")["id"] == "after"


def test_hostile_bodies_get_a_parse_error_and_the_client_goes_on(server: RunningServer) -> None:
    with server.raw() as client:
        for body in REFUSED:
            client.send_body(body)
            reply = client.receive()
            assert (reply["id"], reply["error"]["code"]) == (None, -32700), body[:30]
            assert reply["error"]["data"]["code"] == "request.malformed"
        assert "result" in client.ask("test/echo", request_id=1)
    with server.raw(encoding="msgpack") as client:
        for name, body in MSGPACK_REFUSED.items():
            client.send_body(body)
            assert client.receive()["error"]["code"] == -32700, name
        assert "result" in client.ask("test/echo", request_id=1)


@pytest.mark.parametrize(
    "garbage",
    [
        b'{"jsonrpc":"2.0","id":1,"method":"initialize"}\n',
        b"Content-Length: 2\n\n{}",
        b"Content-Length: x\r\n\r\n",
        b"Content-Length: 2\r\nContent-Type: application/json; charset=iso-8859-2\r\n\r\n{}",
        b"\x00" * 100,
        b"X" * 20_000,
    ],
)
def test_a_broken_stream_is_told_and_closed(server: RunningServer, garbage: bytes) -> None:
    with server.raw(initialize=False) as client:
        client.send_bytes(garbage)
        error = client.receive()
        assert error["id"] is None
        assert error["error"]["code"] in (-32700, -32600)
        assert client.at_end()
    wait_until(lambda: not server.server.sessions, "the session ends")


def test_sizes(server: RunningServer) -> None:
    def padded(size: int) -> bytes:
        empty = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"x":"%b"}}'
        return empty % (b"x" * (size - len(empty) + 2))

    with server.raw(initialize=False) as client:  # before anybody introduced himself
        client.send_bytes(b"Content-Length: %d\r\n\r\n" % (64 * 1024 + 1))
        error = client.receive()["error"]
        assert (error["code"], error["data"]["code"]) == (-32600, "request.too_large")
        assert client.at_end()
    with server.raw(initialize=False) as client:
        client.send_body(padded(64 * 1024))
        assert "result" in client.receive()
        client.request("test/echo", {"text": "x" * 15_000_000})
        assert len(client.receive()["result"]["text"]) == 15_000_000
        client.send_bytes(b"Content-Length: 1073741824\r\n\r\n" + b"x" * 1000)
        assert client.receive()["error"]["data"]["code"] == "request.too_large"
        assert client.at_end()


def test_a_result_over_the_limit_is_an_error_that_tells_to_page(start_server: StartServer) -> None:
    for encoding in ("json", "msgpack"):
        with start_server().raw(encoding=encoding) as client:  # type: ignore[arg-type]
            text = encoding == "json"
            size = 16 * 1024 * 1024 - 1000
            result = client.ask("test/blob", {"size": size, "as_text": text})["result"]
            assert len(result["text" if text else "data"]) == size
            error = client.ask("test/blob", {"size": 17_000_000, "as_text": text})["error"]
            assert (error["code"], error["data"]["code"]) == (-32803, "request.too_large")
            assert "page_size" in error["data"]["hint"]
            assert "result" in client.ask("test/echo")


def test_bytes_travel_in_msgpack_only(server: RunningServer) -> None:
    with server.raw(encoding="msgpack") as client:
        assert client.ask("test/blob", {"size": 3, "as_text": False})["result"]["data"] == b"xxx"
        assert client.ask("test/echo")["result"]["binary"] is True
    with server.raw() as client:
        assert client.ask("test/blob", {"size": 3, "as_text": False})["error"]["code"] == -32603
        assert client.ask("test/echo")["result"]["binary"] is False


def test_a_reply_uses_the_encoding_of_its_request(server: RunningServer) -> None:
    with server.raw() as client:
        for encoding in ("msgpack", "json", "msgpack"):
            client.encoding = encoding  # type: ignore[assignment]
            client.ask("test/echo")
            assert client.last_encoding == encoding
            client.ask("no/such")
            assert client.last_encoding == encoding


def test_notifications_are_never_answered(server: RunningServer) -> None:
    with server.raw() as client:
        for method in (
            "initialized",
            "$/setTrace",
            "$/nonsense",
            "no/such",
            "test/echo",
            "test/fail",
            "agent/shutdown",
            "",
            "x" * 999,
        ):
            for params in (None, {}, {"nonsense": 1}, [1]):
                client.notify(method, params)
        client.send({"method": "test/echo"})
        client.send({"jsonrpc": "1.0", "method": "test/echo", "params": 7})
        for params in (None, {}, {"id": None}, {"id": 99}, {"id": {}}, {"id": [1]}, [1], "x"):
            client.notify("$/cancelRequest", params)
        client.send({"jsonrpc": "2.0", "id": 3, "result": 1})  # a reply to nothing
        client.send({"jsonrpc": "2.0", "id": 3, "error": {"code": 1, "message": "x"}})
        client.request("test/echo", request_id="end")
        assert client.receive()["id"] == "end"
        assert server.services.calls["echo"] == 1


def test_an_id_in_use_is_refused_and_the_first_request_lives(server: RunningServer) -> None:
    with server.raw() as client:
        client.request("test/hold", request_id=7)
        assert server.services.held.acquire(timeout=10)
        client.request("test/echo", request_id=7)
        error = client.receive()
        assert (error["id"], error["error"]["code"]) == (7, -32600)
        server.services.release()
        assert client.receive() == {"jsonrpc": "2.0", "id": 7, "result": {"ok": True}}
        assert "result" in client.ask("test/echo", request_id=7)  # free again


def test_wrong_parameters_name_the_field(server: RunningServer) -> None:
    def fault(params: dict[str, Any], method: str = "test/echo") -> dict[str, Any]:
        error = client.ask(method, params)["error"]
        assert error["code"] == -32602
        assert error["data"]["code"] == "request.invalid_params"
        return dict(error["data"])

    with server.raw() as client:
        data = fault({"texte": "x"})
        assert (data["field"], data["hint"]) == ("texte", "did you mean text?")
        data = fault({"zzzzzz": "x"})
        assert "known fields: nested, number, text" in data["hint"]
        data = fault({"number": 500})
        assert data["field"] == "number"
        assert "100" in data["message"]
        data = fault({"text": ["canary-secret"]})
        assert data["field"] == "text"
        data = fault({}, "test/blob")
        assert (data["field"], "required" in data["message"]) == ("size", True)
        data = fault({"connector": "x", "changes": {"desciption": "y"}}, "connectors/update")
        assert (data["field"], data["hint"]) == ("changes.desciption", "did you mean description?")
        data = fault({"number": 500, "text": 7, "other": 1})
        assert {entry["field"] for entry in data["errors"]} == {"number", "text", "other"}
        assert "canary" not in json.dumps(fault({"nested": "canary-secret", "text": {"p": "canary-secret"}}))
        assert "result" in client.ask("test/echo", {"workDoneToken": "t", "partialResultToken": "u", "text": "x"})


def test_an_unknown_method_gets_a_suggestion(server: RunningServer) -> None:
    with server.raw() as client:
        error = client.ask("test/ecko")["error"]
        assert (error["code"], error["data"]["hint"]) == (-32601, "did you mean test/echo?")
        assert client.ask("connectors/List")["error"]["data"]["hint"] == "did you mean connectors/list?"
        assert "rpc.discover" in client.ask("zzz")["error"]["data"]["hint"]


def test_failures(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    with server.raw() as client:
        error = client.ask("test/fail", {"how": "source"})["error"]
        assert error == {
            "code": -32803,
            "message": "the server said no",
            "data": {
                "code": "query.failed",
                "message": "the server said no",
                "hint": "ask again",
                "retryable": False,
                "native": {"sqlstate": "42P01"},
            },
        }
        for how in ("bug", "bug at once", "model", "timeout", "exit", "exit at once"):
            caplog.clear()
            error = client.ask("test/fail", {"how": how})["error"]
            assert (error["code"], error["data"]["code"]) == (-32603, "internal.bug")
            text = json.dumps(error)
            assert "canary" not in text
            assert "Traceback" not in text
            reference = error["data"]["reference"]
            records = [r for r in caplog.records if reference in r.getMessage()]
            assert len(records) == 1
            assert records[0].exc_info
            assert "canary-in-the-model" not in caplog.text  # a rejected value may be a secret
        assert client.ask("test/fail", {"how": "other"})["error"]["data"]["code"] == "access.denied"
        assert "result" in client.ask("test/echo")


# --- grammar fuzz -----------------------------------------------------------------------------------------------------

METHOD_NAMES = [
    "test/echo",
    "test/blob",
    "test/fail",
    "agent/status",
    "rpc.discover2",
    "no/such",
    "",
    "initialize",
    "agent/hello",
    "$/x",
]
ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    2**63,
    2**64 - 1,
    "",
    "x",
    "\U0001f600",
    [],
    {},
    [[]],
    {"a": {}},
    {"id": 1},
]


def random_message(rng: random.Random, number: int) -> tuple[Any, bool]:
    """A message, and whether a reply is due."""
    request_id: Any = rng.choice([number, f"id-{number}"])
    message: dict[str, Any] = {"jsonrpc": "2.0", "id": request_id, "method": rng.choice(METHOD_NAMES)}
    if rng.random() < 0.7:
        message["params"] = rng.choice(
            [
                {"text": "x"},
                {"number": rng.randint(-5, 200)},
                {"how": rng.choice(["source", "x"])},
                {"size": 10},
                rng.choice(ODD),
            ]
        )
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        key = rng.choice(["jsonrpc", "id", "method", "params", "extra", "result"])
        if rng.random() < 0.4:
            message.pop(key, None)
        else:
            message[key] = rng.choice(ODD)
    whole: Any = message
    if rng.random() < 0.05:
        whole = rng.choice([*ODD, [message]])
    if type(whole) is not dict:
        return whole, True
    has_id = "id" in whole
    if not has_id:
        return whole, type(whole.get("method")) is not str and "result" not in whole
    valid = type(whole["id"]) is str or type(whole["id"]) is int
    if valid and whole.get("method") is None and ("result" in whole or "error" in whole):
        return whole, False
    return whole, True


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
@pytest.mark.parametrize("seed", range(3))
def test_grammar_fuzz(server: RunningServer, encoding: Encoding, seed: int) -> None:
    """1,000 messages each: as many replies as are due, none more, ids as sent, every error number known."""
    rng = random.Random(seed)
    with server.raw(encoding=encoding) as client:
        for number in range(1000):
            message, due = random_message(rng, number + 10)
            client.send(message)
            client.request("test/echo", request_id="marker")
            replies = []
            while (reply := client.receive())["id"] != "marker" or "result" not in reply:
                replies.append(reply)
            assert len(replies) == (1 if due else 0) or _later(client, replies, due), message
            for reply in replies:
                valid = type(message) is dict and type(message.get("id")) in (int, str)
                assert reply["id"] == (message["id"] if valid else None)
                assert ("result" in reply) != ("error" in reply)
                if "error" in reply:
                    assert reply["error"]["code"] in (-32700, -32600, -32601, -32602, -32603, -32002, -32803)
                    assert isinstance(reply["error"]["message"], str)


def _later(client: RawClient, replies: list[Any], due: bool) -> bool:
    """Requests run side by side, so the marker's reply may overtake."""
    if due and not replies:
        replies.append(client.receive())
        return True
    return False


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_mutation_fuzz(server: RunningServer, encoding: Encoding) -> None:
    """1,000 valid messages with bytes flipped, cut and doubled, each in a whole frame: the session always goes on."""
    from hfagent.transport.encoding import encode

    rng = random.Random(encoding)
    with server.raw(encoding=encoding) as client:
        for number in range(1000):
            body = bytearray(
                encode({"jsonrpc": "2.0", "id": number, "method": "test/echo", "params": {"text": "héllo"}}, encoding)
            )
            for _ in range(rng.randint(1, 4)):
                place = rng.randrange(len(body)) if body else 0
                match rng.randrange(4):
                    case 0 if body:
                        body[place] ^= 1 << rng.randrange(8)
                    case 1:
                        del body[place : place + rng.randint(1, 5)]
                    case 2:
                        body[place:place] = rng.randbytes(rng.randint(1, 4))
                    case _:
                        body += body[place:]
            client.send_body(bytes(body))
            if number % 20 == 19:
                client.request("test/echo", request_id="marker")
                while client.receive().get("id") != "marker":
                    pass
        assert len(server.server.sessions) == 1

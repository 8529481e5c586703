"""The bytes of replies and notifications, in both encodings. A result is encoded once and spliced into its envelope."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from hfagent.foundation.errors import AgentError, InternalError
from hfagent.transport.encoding import encode, encode_json, encode_msgpack
from hfagent.transport.framing import JSON, Encoding

__all__ = ["Encoded", "RequestId", "encode_model", "error_reply", "notification", "result_reply", "too_large"]

RequestId = int | str


@dataclass(frozen=True, slots=True)
class Encoded:
    """A result that is bytes already, in one encoding."""

    body: bytes


def result_reply(request_id: RequestId, result: Any, encoding: Encoding) -> bytes:
    """Build the reply that carries `result`: a model, an `Encoded`, or plain JSON-like data."""
    if isinstance(result, Encoded):
        body = result.body
    elif isinstance(result, BaseModel):
        body = encode_model(result, encoding)
    else:
        body = encode(result, encoding)
    if encoding == JSON:
        return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (_json_id(request_id), body)
    return b"\x83\xa7jsonrpc\xa32.0\xa2id%b\xa6result%b" % (encode_msgpack(request_id), body)


def error_reply(request_id: RequestId | None, code: int, message: str, data: Any, encoding: Encoding) -> bytes:
    """Build the reply that carries an error; without an id when the request's could not be read."""
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return encode({"jsonrpc": "2.0", "id": request_id, "error": error}, encoding)


def notification(method: str, params: Any, encoding: Encoding) -> bytes:
    """Build a notification."""
    return encode({"jsonrpc": "2.0", "method": method, "params": params}, encoding)


def encode_model(model: BaseModel, encoding: Encoding) -> bytes:
    """Encode a result model. Raises `InternalError` when JSON would have to carry bytes."""
    if encoding == JSON:
        for name in _bytes_fields(type(model)):
            if getattr(model, name) is not None:
                raise InternalError(f"the field {name} of {type(model).__name__} is binary and the reply is JSON")
        return model.__pydantic_serializer__.to_json(model)
    try:
        return encode_msgpack(model.__pydantic_serializer__.to_python(model))
    except OverflowError as exc:
        raise InternalError("an integer of the result is beyond 64 bits") from exc


_bytes_fields_of: dict[type[BaseModel], tuple[str, ...]] = {}


def _bytes_fields(model: type[BaseModel]) -> tuple[str, ...]:
    found = _bytes_fields_of.get(model)
    if found is None:
        names = (n for n, f in model.model_fields.items() if f.annotation is bytes or bytes in get_args(f.annotation))
        found = _bytes_fields_of[model] = tuple(names)
    return found


def _json_id(request_id: RequestId) -> bytes:
    return b"%d" % request_id if isinstance(request_id, int) else encode_json(request_id)


def too_large(size: int, limit: int) -> AgentError:
    """The error that stands in for a result over the message limit."""
    return AgentError(
        f"the result takes {size:,} bytes, over the limit of {limit:,} for one message",
        code="request.too_large",
        hint="ask for smaller pages (page_size), fewer columns, or use query/export",
    )

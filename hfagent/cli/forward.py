"""`hfagent rpc`: from stdio to the daemon's socket. Says hello first, then pumps bytes both ways.

What an editor starts must be there at once, so nothing is imported that a plain `python -c pass` has not loaded already,
save two built-in C modules; the introduction is written by hand. Everything else (starting the daemon, explaining why that
failed) is imported when it comes to it.

* Descriptor 1 carries protocol bytes and nothing else, from the first instruction on.
* Two blocking directions, two threads: a client that does not read its replies cannot keep its requests from being read.
* The client closes its side: so do we, towards the daemon, and deliver what is still to come.
* No daemon to be had: the first request is answered with an error that names the log, and the exit code is 1.
"""

from __future__ import annotations

import _socket
import _thread
import os
import select
import sys

import hfagent
from hfagent.transport.stdio import claim

__all__ = ["forward", "socket_path"]

# `_socket` is the C module that `socket` wraps; the wrapper would cost as much time again as the interpreter's start.
_CHUNK = 256 * 1024
_HELLO_LIMIT = 1024 * 1024
_ENVIRONMENT = (
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
    "AWS_PROFILE", "SSH_AUTH_SOCK", "KRB5CCNAME", "LANG",
)  # fmt: skip

USAGE = """\
usage: hfagent rpc [--data-dir DIR] [--socket PATH] [--config FILE] [--no-start]

Connect standard input and output to the agent's daemon: JSON-RPC 2.0 with Content-Length headers, JSON or MessagePack.
The daemon is started when none runs, unless --no-start is given.
"""


def forward(arguments: list[str], *, name: str = "rpc") -> int:
    """Run the forwarder and return its exit code. `name` is what it calls itself in the introduction."""
    options = _options(arguments)
    if isinstance(options, int):
        return options
    reading, writing = claim()
    try:
        connection = _connect(options)
        early = _introduce(connection, f"hfagent {name}")
    except Exception as exc:  # noqa: BLE001  whatever it is, the client is owed an answer in its own language
        return _apologise(exc, reading, writing)
    return _pump(connection, early, reading, writing)


def socket_path(data_dir: str = "", socket: str = "") -> str:
    """The daemon's socket, as `foundation.paths` finds it, without that module's imports."""
    env = os.environ
    chosen = data_dir or env.get("HFAGENT_DATA_DIR") or env.get("STATE_DIRECTORY", "").split(":")[0]
    runtime = env.get("RUNTIME_DIRECTORY", "").split(":")[0]
    path = socket or env.get("HFAGENT_SOCK") or ""
    if path:
        pass
    elif runtime:
        path = f"{runtime}/agent.sock"
    elif chosen:
        path = f"{chosen}/run/agent.sock"
    elif env.get("XDG_RUNTIME_DIR"):
        path = f"{env['XDG_RUNTIME_DIR']}/hfagent/agent.sock"
    else:
        path = "~/.local/state/hfagent/run/agent.sock"
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111  no pathlib here: it costs 10 ms


# --- connecting -------------------------------------------------------------------------------------------------------


def _options(arguments: list[str]) -> dict[str, str] | int:
    """Parse by hand: argparse costs half an interpreter start. Return the exit code when there is nothing to forward."""
    options: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        if word in ("-h", "--help"):
            os.write(1, USAGE.encode())
            return 0
        if word == "--no-start" and not equals:
            options[word] = "yes"
        elif word in ("--data-dir", "--socket", "--config") and (equals or rest):
            options[word] = value if equals else rest.pop(0)
        else:
            _complain(f"unknown or incomplete option {word}\n{USAGE}")
            return 2
    return options


def _connect(options: dict[str, str]) -> int:
    """Return the descriptor of a connected socket."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        connection.connect(socket_path(options.get("--data-dir", ""), options.get("--socket", "")))
        peer = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        if int.from_bytes(peer[4:8], sys.byteorder) in (os.geteuid(), 0):
            return connection.detach()
    except OSError:
        pass
    connection.close()
    # Not there, not ours, or not in a mood to answer: the module that starts and explains takes over.
    from hfagent.client.launch import connect
    from hfagent.foundation.paths import AgentPaths

    paths = AgentPaths(
        data_dir=options.get("--data-dir"), socket=options.get("--socket"), config_file=options.get("--config")
    )
    return connect(paths, start="--no-start" not in options).detach()


def _introduce(connection: int, client: str) -> bytes:
    """Send `agent/hello`, read its reply; return what came after it (nothing, as a rule)."""
    body = _hello(client).encode()
    _write(connection, b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    received = b""
    while True:
        head, end, rest = received.partition(b"\r\n\r\n")
        if end:
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            if len(rest) >= length:
                break
        data = os.read(connection, _CHUNK)
        if not data or len(received) > _HELLO_LIMIT:
            raise ConnectionError("the daemon closed the connection instead of answering agent/hello")
        received += data
    reply = rest[:length]
    if b'"error"' in reply[:200] or b'"skew":null' not in reply:
        _judge(reply)
    return rest[length:]


def _hello(client: str) -> str:
    env = {k: v for k, v in os.environ.items() if k in _ENVIRONMENT or (k.startswith("PG") and k != "PGPASSWORD")}
    variables = ",".join(f"{_quoted(key)}:{_quoted(value)}" for key, value in env.items() if len(value) <= 4096)
    try:
        cwd = _quoted(os.getcwd())  # noqa: PTH109
    except OSError:
        cwd = "null"  # started in a directory that is gone
    return (
        '{"jsonrpc":"2.0","id":0,"method":"agent/hello","params":{"protocol":[1,1],'
        f'"build":{_quoted(hfagent.__version__)},"pid":{os.getpid()},"cwd":{cwd},"client":{_quoted(client)},'
        f'"env":{{{variables}}}}}}}'
    )


def _quoted(text: str) -> str:
    """A JSON string, in ASCII. Half characters (undecodable bytes of the environment) become question marks."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    escaped = []
    for char in text:
        code = ord(char)
        if char in '"\\':
            escaped.append("\\" + char)
        elif 32 <= code < 127:
            escaped.append(char)
        elif 0xD800 <= code < 0xE000:
            escaped.append("?")
        elif code < 0x10000:
            escaped.append(f"\\u{code:04x}")
        else:
            code -= 0x10000
            escaped.append(f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}")
    return '"' + "".join(escaped) + '"'


def _judge(reply: bytes) -> None:
    """Look into an unusual reply: tell the user about skew, raise when the daemon refuses."""
    import json

    message = json.loads(reply)
    if "error" in message:
        from hfagent.client.wire import error_from

        raise error_from(message["error"])
    if skew := (message.get("result") or {}).get("skew"):
        _complain(f"note: {skew}")


# --- pumping ----------------------------------------------------------------------------------------------------------


def _pump(connection: int, early: bytes, reading: int, writing: int) -> int:
    """Carry bytes until the daemon closes; return the exit code."""
    _thread.start_new_thread(_upstream, (reading, connection))
    try:
        if early:
            _write(writing, early)
        while data := os.read(connection, _CHUNK):
            _write(writing, data)
    except (ConnectionError, KeyboardInterrupt):
        pass  # the client went first; the daemon notices when our socket closes
    # Not a normal exit: the other thread may sit in a read for as long as the client lives.
    os._exit(0)


def _upstream(reading: int, connection: int) -> None:
    end = _socket.socket(fileno=os.dup(connection))
    try:
        while data := _read(reading):
            _write(connection, data)
        end.shutdown(_socket.SHUT_WR)
    except OSError:
        # The daemon is gone. A client that is stuck in writing to us must hear of it, or it never comes to read the rest.
        os.close(reading)
    finally:
        end.detach()


def _read(descriptor: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, _CHUNK)
        except BlockingIOError:  # the client made its end of a shared description non-blocking
            _await(descriptor, select.POLLIN)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            _await(descriptor, select.POLLOUT)


def _await(descriptor: int, event: int) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    poll.poll()


# --- failing ----------------------------------------------------------------------------------------------------------


def _apologise(exc: Exception, reading: int, writing: int) -> int:
    """Answer the first request on standard input with the reason, so that the editor can show it."""
    from hfagent.foundation.errors import AgentError
    from hfagent.transport.encoding import DecodeError, decode, encode
    from hfagent.transport.framing import FrameDecoder, FrameError, encode_frame

    if isinstance(exc, AgentError):
        error = exc
    else:
        error = AgentError(
            f"the agent cannot be reached: {exc}", code="agent.offline", hint="hfagent doctor checks the agent"
        )
    _complain(f"error: {error}" + (f"\ntry: {error.hint}" if error.hint else ""))
    decoder = FrameDecoder()
    try:
        while data := _read(reading):
            for body, encoding in decoder.feed(data):
                message = decode(body, encoding)
                if isinstance(message, dict) and "id" in message and "method" in message:
                    problem = {"code": -32803, "message": error.message, "data": error.to_data()}
                    reply = encode({"jsonrpc": "2.0", "id": message["id"], "error": problem}, encoding)
                    _write(writing, encode_frame(reply, encoding))
                    return 1
    except (FrameError, DecodeError, OSError):
        pass  # no request that could be answered; the user has the reason on standard error
    return 1


def _complain(text: str) -> None:
    os.write(2, f"hfagent: {text}\n".encode(errors="replace"))

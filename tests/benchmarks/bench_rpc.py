"""Measures the wire beside its limit, in one run: `python tests/benchmarks/bench_rpc.py`. Prints a table, asserts nothing.

* round trip over a unix socket: the server under test against a bare asyncio.Protocol that cuts the same frames and echoes
  them (once decoding and encoding JSON as any server must, once not even that);
* messages per second with 16 to 32 requests in flight;
* process start: `python -c pass`, `hfagent --version`, `hfagent rpc` until `initialize` is answered.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from hfagent.transport.encoding import encode
from hfagent.transport.framing import Encoding, FrameDecoder, encode_frame
from tests.fixtures.daemon import REPOSITORY, RunningServer

ROUNDS = 10_000
WINDOW = 32
STARTS = 31


class BareEcho(asyncio.Protocol):
    """The least that a server with this framing can do."""

    def __init__(self, decode: bool) -> None:
        self._decode = decode
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        out = []
        while True:
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                break
            length = int(head[16:])
            if len(rest) < length:
                break
            body, self._buffer = rest[:length], rest[length:]
            if self._decode:
                message = json.loads(body)
                answer = {"jsonrpc": "2.0", "id": message["id"], "result": message["params"]}
                body = json.dumps(answer, separators=(",", ":")).encode()
            out.append(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self._transport.write(b"".join(out))  # type: ignore[attr-defined]


def serve_bare(path: str, decode: bool) -> None:
    """Serve for ever in a thread."""
    ready = threading.Event()

    async def main() -> None:
        server = await asyncio.get_running_loop().create_unix_server(lambda: BareEcho(decode), path)
        ready.set()
        await server.serve_forever()

    threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
    ready.wait(5)


def connect(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    return client


def request(number: int, encoding: Encoding, method: str = "test/echo") -> bytes:
    message = {"jsonrpc": "2.0", "id": number, "method": method, "params": {"text": "hello", "number": 7}}
    return encode_frame(encode(message, encoding), encoding)


def round_trips(client: socket.socket, encoding: Encoding, method: str, rounds: int) -> list[float]:
    """Microseconds of each."""
    times = []
    for number in range(rounds):
        message = request(number, encoding, method)
        start = time.perf_counter()
        client.sendall(message)
        client.recv(65536)
        times.append((time.perf_counter() - start) * 1e6)
    return times


def pipelined(client: socket.socket, encoding: Encoding, method: str) -> float:
    """Messages per second, between 16 and 32 of them under way."""
    total = 20_000
    messages = [request(number, encoding, method) for number in range(WINDOW)]
    decoder = FrameDecoder()
    start = time.perf_counter()
    sent = received = 0
    while received < total:
        if sent - received <= WINDOW // 2 and sent < total:
            more = min(WINDOW - (sent - received), total - sent)
            client.sendall(
                b"".join(
                    messages[sent % WINDOW : sent % WINDOW + more] + messages[: max(0, sent % WINDOW + more - WINDOW)]
                )
            )
            sent += more
        received += sum(1 for _ in decoder.feed(client.recv(262144)))
    return total / (time.perf_counter() - start)


def took_ms(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1e3


def child_server(kind: str, directory: Path) -> tuple[subprocess.Popen[bytes], str]:
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", kind, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().decode().strip()


def serve(kind: str, directory: Path) -> None:
    if kind == "hfagent":
        running = RunningServer(directory).start()
        print(running.path, flush=True)
    else:
        path = str(directory / f"{kind}.sock")
        serve_bare(path, kind == "echo-json")
        print(path, flush=True)
    sys.stdin.read()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        servers = {kind: child_server(kind, directory) for kind in ("echo", "echo-json", "hfagent")}
        path = servers["hfagent"][1]
        at_hand, awaited = "test/echo", "test/slowEcho"
        clients: list[tuple[str, socket.socket, Encoding, str]] = [
            ("bare echo, framing only", connect(servers["echo"][1]), "json", at_hand),
            ("bare echo, json decoded and encoded", connect(servers["echo-json"][1]), "json", at_hand),
        ]
        for encoding in ("json", "msgpack"):
            client = connect(path)
            message = encode({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}, encoding)
            client.sendall(encode_frame(message, encoding))
            client.recv(65536)
            clients.append((f"hfagent, {encoding}, answer at hand", client, encoding, at_hand))
            clients.append((f"hfagent, {encoding}, async handler", client, encoding, awaited))
        samples: dict[str, list[float]] = {name: [] for name, *_ in clients}
        for _ in range(ROUNDS // 50):  # finely interleaved, so that the machine's moods meet all alike
            for name, client, encoding, method in clients:
                samples[name] += round_trips(client, encoding, method, 60)[10:]
        base = statistics.median(samples["bare echo, framing only"])
        base_json = statistics.median(samples["bare echo, json decoded and encoded"])
        title = "round trip over a unix socket"
        print(f"{title:40} {'p50 µs':>8} {'p99 µs':>8} {'x frame':>8} {'x json':>8} {'msgs/s, 16-32 in flight':>24}")
        for name, client, encoding, method in clients:
            times = sorted(samples[name])
            middle, late = statistics.median(times), times[int(len(times) * 0.99)]
            rate = statistics.median(pipelined(client, encoding, method) for _ in range(5))
            print(f"{name:40} {middle:8.1f} {late:8.1f} {middle / base:8.2f} {middle / base_json:8.2f} {rate:24,.0f}")

        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

        def run(*command: str) -> None:
            subprocess.run([sys.executable, *command], check=True, env=environment, stdout=subprocess.DEVNULL)

        def rpc() -> None:
            body = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}'
            process = subprocess.Popen(
                [sys.executable, *script, "rpc", "--socket", path],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
            )  # fmt: skip
            assert process.stdin is not None and process.stdout is not None
            os.write(process.stdin.fileno(), encode_frame(body))
            assert os.read(process.stdout.fileno(), 65536)
            process.stdin.close()
            process.wait()
            process.stdout.close()

        # What pip writes into bin/hfagent.
        script = ["-c", "import sys; from hfagent.__main__ import main; sys.exit(main())"]
        starts: list[tuple[str, Callable[[], None]]] = [
            ("python -c pass", lambda: run("-c", "pass")),
            ("python -c 'import socket'", lambda: run("-c", "import socket")),
            ("python -c 'import asyncio'", lambda: run("-c", "import asyncio")),
            ("hfagent --version", lambda: run(*script, "--version")),
            ("python -m hfagent --version", lambda: run("-m", "hfagent", "--version")),
            ("hfagent rpc, until initialize is answered", rpc),
        ]
        print(f"\n{'process start (median)':44} {'ms':>7} {'x':>6}")
        taken: dict[str, list[float]] = {name: [] for name, _ in starts}
        for _ in range(STARTS):
            for name, action in starts:
                taken[name].append(took_ms(action))
        first = statistics.median(taken["python -c pass"])
        for name, times in taken.items():
            print(f"{name:44} {statistics.median(times):7.1f} {statistics.median(times) / first:6.2f}")
        for process, _ in servers.values():
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
            process.stdout.close()
            process.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], Path(sys.argv[3]))
    else:
        main()

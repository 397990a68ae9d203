"""The sandbox as a process: sockets, connections, and how each answer leaves them."""

import argparse
import contextlib
import itertools
import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from http.client import responses
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from .api import EVENT_TYPES, Answer, Api, Request, compact, refused
from .consumer import Consumer
from .control import Control
from .journal import Journal
from .model import Refusal, Smartpay
from .scenarios import Faults, Outcome, play
from .webhooks import Deliveries
from .world import World

SECRET_KEY: Final = "sk_test_sandbox"  # noqa: S105  # any well-formed key is taken; this one is for whoever needs one
_MAX_BODY: Final = 1 << 20
_LOGGED_HEADERS: Final = ("authorization", "idempotency-key", "content-type", "user-agent", "accept", "host")


class Sandbox:
    """Smartpay, its faults and its control door, on two ports.

    The second port serves the same, and goes on when the first refuses connections.
    """

    def __init__(self, smartpay: Smartpay, *, webhook: str = "", webhook_secret: str = "") -> None:
        self.smartpay = smartpay
        self._webhook, self._webhook_secret = webhook, webhook_secret
        self._api, self._consumer, self._faults = Api(smartpay), Consumer(smartpay), Faults()
        self._control = Control(
            smartpay,
            self._faults,
            Deliveries(smartpay, compact),
            play=self._api.handle,
            refuse=self._refuse,
            listen=self._listen,
            begin=self._begin,
            addresses=lambda: self.addresses,
        )
        self.addresses: dict[str, str] = {}
        self._begin()

    def start(self, port: int) -> None:
        """Listen on a port (0: any free one), and on another for the control door."""
        self._listener = _Listener(self, port)
        self._listener.open()
        door = _Listener(self, 0, door=True)
        door.open()
        self.addresses = {
            "url": f"http://127.0.0.1:{self._listener.port}/v1",
            "control": f"http://127.0.0.1:{door.port}/_sandbox/",
            "secret_key": SECRET_KEY,
        }

    def answer(self, request: Request, connection: int) -> Outcome:
        if request.path.startswith("/_sandbox/"):
            return Outcome(self._control.handle(request))
        self._control.requests.append(
            {
                "method": request.method,
                "path": request.path,
                "query": request.query,
                "headers": {
                    name: request.headers[name] for name in _LOGGED_HEADERS if name in request.headers
                },
                "body": request.body.decode(errors="replace"),
                "at": self.smartpay.clock.now(),
                "connection": connection,
            }
        )
        shopper = self._consumer.handle(request)
        return Outcome(shopper) if shopper else play(self._api, self._faults, request)

    def closes_at_accept(self) -> bool:
        return self._faults.take_connection()

    def cleared(self) -> threading.Event:
        """Set when faults are cleared: silent connections end then."""
        return self._faults.cleared

    def _refuse(self, seconds: float | None) -> None:
        self._listener.close()
        if seconds is not None:
            timer = threading.Timer(seconds, self._listen)
            timer.daemon = True
            timer.start()

    def _listen(self) -> None:
        self._listener.open()

    def _begin(self) -> None:
        """Register the endpoint given on the command line, unless a journal brought it back."""
        if not self._webhook:
            return
        account = self.smartpay.accounts["test"]
        with self.smartpay.changing():
            known = [one for _, one in account.walk("webhookEndpoint", None, newest_first=True)]
            same = next((one for one in known if one["url"] == self._webhook), None)
            if same:
                self.smartpay.update(account, "webhookEndpoint", same, signingSecret=self._webhook_secret)
            else:
                self.smartpay.create(
                    account,
                    "webhookEndpoint",
                    active=True,
                    eventSubscriptions=list(EVENT_TYPES),
                    metadata={},
                    signingSecret=self._webhook_secret,
                    url=self._webhook,
                )


class _Listener:
    """A port that can stop listening, so that connections are refused, and listen again."""

    def __init__(self, sandbox: Sandbox, port: int, *, door: bool = False) -> None:
        self.port, self._door = port, door
        self._sandbox = sandbox
        self._server: _Server | None = None
        self._lock = threading.Lock()

    def open(self) -> None:
        with self._lock:
            if self._server is None:
                self._server = _Server(("127.0.0.1", self.port), partial(_Handler, self._sandbox))
                self._server.sandbox, self._server.door = self._sandbox, self._door
                self.port = self._server.server_address[1]
                threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        with self._lock:
            if self._server is not None:
                self._server.shutdown()
                self._server.server_close()
                self._server.hang_up()
                self._server = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    sandbox: Sandbox
    door = False  # faults of connections spare the control door's port

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._open: set[socket.socket] = set()

    def server_bind(self) -> None:
        """Bind without asking a name server for our own name, as HTTPServer would."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return self.door or not self.sandbox.closes_at_accept()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nothing to report; anything else is our own fault, and shown."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def hang_up(self) -> None:
        """Close the connections that are still open."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):  # gone already
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"  # connections are kept
    disable_nagle_algorithm = True
    _numbers = itertools.count(1)

    def __init__(self, sandbox: Sandbox, *args: Any) -> None:
        self._sandbox = sandbox
        self._number = next(self._numbers)
        super().__init__(*args)

    def handle_one_request(self) -> None:
        if not self.server.door:
            self.connection.settimeout(self._sandbox.smartpay.switches.idle_seconds)
        super().handle_one_request()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: what came in is at /_sandbox/requests."""

    def _serve(self) -> None:
        length = self.headers.get("Content-Length") or "0"
        if "Transfer-Encoding" in self.headers or not length.isdigit() or int(length) > _MAX_BODY:
            self.close_connection = True
            self._send(
                refused(Refusal(413, "request.too-large", "A body of at most 1 MiB with its length, please"))
            )
            return
        parts = urlsplit(self.path)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True  # the client died in the middle: half a request is none
            return
        request = Request(
            method=self.command,
            path=unquote(parts.path),
            query=dict(parse_qsl(parts.query, keep_blank_values=True)),
            headers={name.lower(): value for name, value in self.headers.items()},
            body=body,
        )
        self.connection.settimeout(None)
        try:
            outcome = self._sandbox.answer(request, self._number)
        except Exception:
            self.close_connection = True
            self._send(refused(Refusal(500, "server.error", "The sandbox itself failed")))
            raise
        match outcome.manner:
            case "send":
                self._send(outcome.answer)
            case "cut":
                self._cut(outcome.answer)
            case "drip":
                self._drip(outcome.answer, outcome.seconds)
            case "silent":
                self._stay_silent(outcome.seconds)
            case "reset":
                self._reset()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _serve  # noqa: N815

    def _send(self, answer: Answer) -> None:
        self.connection.sendall(self._head(answer) + (b"" if self.command == "HEAD" else answer.body))

    def _cut(self, answer: Answer) -> None:
        """Promise the whole, send half, close in good order: only the length tells."""
        self.connection.sendall(self._head(answer) + answer.body[: len(answer.body) // 2])
        self.close_connection = True

    def _drip(self, answer: Answer, seconds: float) -> None:
        self.connection.sendall(self._head(answer))
        for byte in answer.body:
            time.sleep(seconds)
            self.connection.sendall(bytes([byte]))

    def _stay_silent(self, seconds: float) -> None:
        """Keep the connection open without a word, until the client leaves or the faults are cleared."""
        self.close_connection = True
        until, cleared = time.monotonic() + seconds, self._sandbox.cleared()
        while time.monotonic() < until and not cleared.wait(0.02):
            readable, _, _ = select.select([self.connection], [], [], 0)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                return

    def _reset(self) -> None:
        """Close with RST: no lingering, and the socket gone before the server could end it politely."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def _head(self, answer: Answer) -> bytes:
        lines = [
            f"HTTP/1.1 {answer.status} {responses.get(answer.status, 'Unknown')}",
            f"Date: {self.date_time_string()}",
        ]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        if answer.status != 204:
            lines.append(f"Content-Length: {len(answer.body)}")
        if self.close_connection:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of both `python -m refunds.sandbox` and `manage.py run_sandbox`."""
    parser.add_argument("--port", type=int, default=8090, help="0 takes any free port (default %(default)s)")
    parser.add_argument(
        "--orders", type=int, default=300, help="how many orders there are (default %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="another seed, another world (default %(default)s)"
    )
    parser.add_argument("--state", type=Path, help="file that keeps what changed from one start to the next")
    parser.add_argument("--webhook", default="", help="address that gets all events from the start")
    parser.add_argument("--webhook-secret", default="", help="signing secret of that address")


def run(options: argparse.Namespace) -> None:
    """Start, announce the addresses in one line, and serve until interrupted."""
    if options.webhook and not options.webhook_secret:
        raise SystemExit("--webhook needs --webhook-secret")
    now, journal = int(time.time() * 1_000), None
    if options.state:
        try:
            journal = Journal(options.state, seed=options.seed, orders=options.orders, now=now)
        except ValueError as error:
            raise SystemExit(str(error)) from None
    world = World(seed=options.seed, orders=options.orders, epoch=journal.epoch if journal else now)
    smartpay = Smartpay(world, journal=journal)
    sandbox = Sandbox(smartpay, webhook=options.webhook, webhook_secret=options.webhook_secret)
    sandbox.start(options.port)
    told = sandbox.addresses | {"orders": options.orders, "seed": options.seed}
    words = " ".join(f"{name}={value}" for name, value in told.items())
    sys.stdout.write(f"Smartpay sandbox {words}\n")
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m refunds.sandbox", description="Smartpay on this machine")
    add_arguments(parser)
    run(parser.parse_args(arguments))

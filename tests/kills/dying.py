"""The web server and the worker as they are, except that they die at a named point, of SIGKILL, when told to.

The product knows nothing of it: what it calls is wrapped here, from outside. A death is a file that World lays out
(`deaths/armed/<refund> <role> <point>`); who reaches the point for that refund moves the file and kills itself, so
that each is died once.

    python -m tests.kills.dying web --bind …     gunicorn, whose own master starts a killed worker anew
    python -m tests.kills.dying worker           manage.py run_worker, with a parent that does the same
"""

import functools
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.parents import end_with_parent

# In the order of a refund's life. "uncommitted": everything is written, the commit is the next thing.
POINTS = {
    "requested.uncommitted": "the row is not committed yet",
    "lease.before": "a turn is about to be taken",
    "unknown.uncommitted": "a lease that ran out is being taken over",
    "lease.taken": "the turn is taken",
    "payment.read": "in the middle of the reading: the payment is read",
    "sending.uncommitted": "the intent to send is not committed yet; of a new refund, nor is the row",
    "attempt.begun": "the intent to send is committed",
    "mark.half": "the file that remembers the newest attempt is half written",
    "send.first_byte": "connected to nobody yet, no byte sent",
    "send.half": "half of the request's body has left",
    "send.unanswered": "all of the request has left; nobody has heard the answer",
    "answer.unbooked": "the answer is logged, not booked",
    "succeeded.uncommitted": "the outcome is written, not committed",
    "mirrored.uncommitted": "ledger and mirror have the outcome, neither is committed",
    "booked": "all is done",
    "refund.read": "Smartpay showed the refund, alone or in a list; nothing of it is written",
    "mirrored.unbooked": "the mirror has what was read, the ledger has not",
    "webhook.followed": "the event was followed, and is not remembered as such",
}

_role = ""
_dying = threading.Lock()
_here = threading.local()  # .refund: whose turn this thread has; .seen: what was read


def die(point: str, refund: object) -> None:
    """End here, if that was planned for this refund: without a word to anybody, as a machine that lost its power."""
    home = Path(os.environ["DEATHS"])
    name = f"{refund} {_role} {point}"
    with _dying:  # the second thread that would die here dies with the first
        try:
            (home / "armed" / name).rename(home / "died" / name)
        except FileNotFoundError:
            return
        os.utime(home / "died" / name)  # when
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace a function, or a class's method, by one that is given the real one first."""
    real = getattr(owner, name)

    @functools.wraps(real)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        return around(real, *arguments, **options)

    setattr(owner, name, wrapped)


def arm(role: str) -> None:
    """Wrap every step between two points. After Django's setup."""
    global _role  # noqa: PLW0603  one process, one role
    _role = role
    from urllib3.connection import HTTPConnection

    from refunds import audit, mirror, smartpay, webhooks
    from refunds.models import Refund
    from refunds.services import sending

    def record(real: Any, actor: Any, action: str, obj: Any = None, **data: Any) -> Any:
        entry = real(actor, action, obj, **data)
        if isinstance(obj, Refund) and not data.get("refused"):
            die(f"{action.removeprefix('refund.')}.uncommitted", obj.pk)
        return entry

    def take_turn(real: Any, refund_id: Any, **options: Any) -> None:
        _here.refund = refund_id
        try:
            real(refund_id, **options)
        finally:
            _here.refund = None

    def take_lease(real: Any, refund_id: Any, **options: Any) -> Any:
        die("lease.before", refund_id)
        taken = real(refund_id, **options)
        if taken:
            die("lease.taken", refund_id)
        return taken

    def fsync(real: Any, descriptor: int) -> None:
        die("mark.half", getattr(_here, "refund", None))
        real(descriptor)

    def send(real: Any, attempt: Any, **options: Any) -> Any:
        _here.refund = attempt.refund_id
        die("attempt.begun", attempt.refund_id)
        answer = real(attempt, **options)
        die("answer.unbooked", attempt.refund_id)
        return answer

    def book(real: Any, attempt: Any, answer: Any) -> Any:
        refund = real(attempt, answer)
        die("booked", attempt.refund_id)
        _here.refund = None
        return refund

    def record_answer(real: Any, refund: Any, **options: Any) -> None:
        real(refund, **options)
        die("mirrored.uncommitted", options["ours_id"])

    def get_payment(real: Any, client: Any, payment_id: str) -> Any:
        payment = real(client, payment_id)
        die("payment.read", getattr(_here, "refund", None))
        return payment

    def get_refund(real: Any, client: Any, refund_id: str) -> Any:
        refund = real(client, refund_id)
        _here.seen = refund.reference
        return refund

    def record_refund(real: Any, refund: Any, **options: Any) -> Any:
        die("refund.read", refund.reference)
        row = real(refund, **options)
        die("mirrored.unbooked", row.ours_id)
        return row

    def read_named(real: Any, *args: Any) -> None:
        _here.seen = None
        real(*args)
        die("webhook.followed", _here.seen)

    def request(real: Any, connection: Any, method: str, url: str, **options: Any) -> None:
        connection.of_refund = (options.get("headers") or {}).get("Idempotency-Key")
        die("send.first_byte", connection.of_refund)
        real(connection, method, url, **options)

    def send_bytes(real: Any, connection: Any, data: Any) -> None:
        refund = getattr(connection, "of_refund", None)
        if refund and isinstance(data, bytes) and data.startswith(b"{"):
            real(connection, data[: len(data) // 2])
            # The line is cut with the process: an orderly end would make half a request look like a whole one.
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            die("send.half", refund)
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
            data = data[len(data) // 2 :]
        real(connection, data)

    def getresponse(real: Any, connection: Any) -> Any:
        die("send.unanswered", getattr(connection, "of_refund", None))
        return real(connection)

    wrap(audit, "record", record)
    wrap(sending, "take_turn", take_turn)
    wrap(sending, "take_lease", take_lease)
    wrap(os, "fsync", fsync)
    wrap(sending, "send", send)
    wrap(sending, "book", book)
    wrap(smartpay.Client, "get_payment", get_payment)
    wrap(smartpay.Client, "get_refund", get_refund)
    wrap(mirror, "record_refund", record_refund)
    wrap(mirror, "record_answer", record_answer)
    wrap(webhooks, "_read", read_named)
    wrap(HTTPConnection, "request", request)
    wrap(HTTPConnection, "send", send_bytes)
    wrap(HTTPConnection, "getresponse", getresponse)


def web() -> Any:
    """The application, for gunicorn, whose master loads it; its workers are those that die."""
    from dashboard.wsgi import application

    arm("web")
    return application


def nurse(work: Callable[[], None]) -> None:
    """Do the work in a child, and in another one when that was killed, as gunicorn's master does with its workers.

    What all of them need was imported before, so that a death costs a fork and not the start of a program.
    """
    told, child = False, 0

    def pass_on(*_: object) -> None:
        nonlocal told
        told = True
        if child:
            os.kill(child, signal.SIGTERM)

    signal.signal(signal.SIGTERM, pass_on)
    while True:
        child = os.fork()
        if not child:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            end_with_parent(signal.SIGKILL)
            work()
            sys.exit()
        if told:
            os.kill(child, signal.SIGTERM)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if told or ended != -signal.SIGKILL:
            sys.exit(ended)


def main() -> None:
    end_with_parent(signal.SIGKILL)
    match sys.argv[1:]:
        case ["web", *options]:
            from gunicorn.app.wsgiapp import run  # type: ignore[import-untyped]

            sys.argv = ["gunicorn", "tests.kills.dying:web()", *options]
            run()
        case ["worker"]:
            os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dashboard.settings")
            import django
            from django.core.management import execute_from_command_line

            django.setup()
            arm("worker")
            nurse(lambda: execute_from_command_line(["manage.py", "run_worker"]))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    # Under its own name: gunicorn imports this file once more.
    from tests.kills import dying  # noqa: PLW0406

    dying.main()

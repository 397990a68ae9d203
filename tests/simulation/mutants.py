"""The rules that keep money safe, each taken out of the product in turn: a simulation that does not notice proves
nothing.

A mutant changes some lines of the product as they are imported, in a process of its own; no file is touched. Rules
that the database defends as well are taken out there too. Each names the first seed that notices it. Where ordinary
lives come to it once in thousands, a mutant has a climate of its own, in which the untouched product must live well.

    python -m tests.simulation 1 300 --mutant NAME --until-noticed    finds the first such seed

Chance takes another course through a life as soon as the product asks the database once more or less: where a test says
that a rule is not missed any more, look for another seed first.

Two kinds of rules have no mutant, since lives without them are as safe as far as the simulation can tell. They guard
each other, or against a Smartpay that does not keep its promises: reading before a further sending, the lease, and
the first turn's fence (the key makes the sendings one); the second of the two reads that prove absence (the first one
is late enough).
"""

import importlib.abc
import importlib.machinery
import sqlite3
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType


@dataclass(frozen=True)
class Edit:
    """Other text for a piece of a module, which has to be there exactly once."""

    module: str
    old: str
    new: str

    def apply(self, source: str) -> str:
        if (found := source.count(self.old)) != 1:
            raise LookupError(f"{self.module} has this {found} times, not once:\n{self.old}")
        return source.replace(self.old, self.new)


@dataclass(frozen=True)
class Mutant:
    rule: str  # as the code has it, and without which life is not safe
    edits: tuple[Edit, ...]
    seed: int  # a life that notices
    guards: tuple[str, ...] = ()  # words of the database's guards that defend the same
    indexes: tuple[str, ...] = ()
    checks: bool = True  # whether the database keeps its CHECK constraints
    climate: tuple[Edit, ...] = ()  # of the lives that notice, where ordinary ones seldom come to it

    def disarm(self, database: sqlite3.Connection) -> None:
        """Take the rule out of a migrated database."""
        for words in self.guards:
            guards = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND instr(sql, ?)"
            names = [name for (name,) in database.execute(guards, (words,))]
            if not names:
                raise LookupError(f"no guard says: {words}")
            for name in names:
                database.execute(f"DROP TRIGGER {name}")
        for index in self.indexes:
            database.execute(f"DROP INDEX {index}")


def sending(old: str, new: str) -> Edit:
    return Edit("refunds.services.sending", old, new)


def observing(old: str, new: str) -> Edit:
    return Edit("refunds.services.observing", old, new)


def absence(old: str, new: str) -> Edit:
    return Edit("refunds.services.absence", old, new)


def asking(old: str, new: str) -> Edit:
    return Edit("refunds.services.requesting", old, new)


def states(old: str, new: str) -> Edit:
    return Edit("refunds.services.states", old, new)


def client(old: str, new: str) -> Edit:
    return Edit("refunds.smartpay", old, new)


def weather(old: str, new: str) -> Edit:
    return Edit("tests.simulation.weather", old, new)


MUTANTS = {
    "sent for a day": Mutant(
        "nothing is sent later than five hours after the first sending",
        (states("SEND_WINDOW = timedelta(hours=5)", "SEND_WINDOW = timedelta(hours=24)"),),
        guards=("the send window is over",),
        seed=51,
    ),
    "a key for each attempt": Mutant(
        "one refund has one key for ever",
        (sending("key=str(refund.pk),", "key=str(refund.pk if attempt.number == 1 else uuid.uuid4()),"),),
        seed=1,
    ),
    "a 5xx is a no": Mutant(
        "a server error leaves the outcome open",
        (
            client(
                "            case _:\n                return Unclear(message, **about)",
                "            case status:\n                return (Refused if status >= 500 else Unclear)(message, **about)",
            ),
        ),
        seed=10,
    ),
    "silence is a no": Mutant(
        "no answer leaves the outcome open",
        (
            sending(
                "isinstance(answer, smartpay.Refused) and attempt.number == 1",
                "(isinstance(answer, smartpay.Refused) or answer.http_status is None) and attempt.number == 1",
            ),
        ),
        guards=("Smartpay refuses the first attempt",),
        seed=7,
    ),
    "any 4xx is a no": Mutant(
        "only Smartpay's own refusals, in its own shape, say that nothing happened",
        (
            client(
                "            case 403 | 404 | 405 | 415:\n                return NotAccepted(message, **about)",
                "            case 400 | 403 | 404 | 405 | 415:\n                return Refused(message, **about)",
            ),
        ),
        seed=4,
    ),
    "a later no is a no": Mutant(
        "a refusal of a further attempt may mean that the first one was carried out",
        (
            sending(
                "isinstance(answer, smartpay.Refused) and attempt.number == 1",
                "isinstance(answer, smartpay.Refused)",
            ),
        ),
        guards=("Smartpay refuses the first attempt",),
        seed=943,
    ),
    "absence at once": Mutant(
        "absence is proved only when no request can be under way any more",
        (
            states(
                "ABSENT_AFTER_FIRST_SENDING = timedelta(hours=6, minutes=30)",
                "ABSENT_AFTER_FIRST_SENDING = timedelta(0)",
            ),
            states(
                "ABSENT_AFTER_LAST_SENDING = timedelta(minutes=45)",
                "ABSENT_AFTER_LAST_SENDING = timedelta(0)",
            ),
        ),
        seed=18,
    ),
    "a failed read shows absence": Mutant(
        "what could not be read is not absent",
        (
            absence(
                "        _book_failed_read(refund_id, error, owner=owner)\n        return False",
                "        return _book_absence(refund_id, kind=Evidence.Kind.READ, complete_at=read_at, owner=owner)",
            ),
        ),
        seed=644,
    ),
    "no list is an empty list": Mutant(
        "a payment that does not list its refunds says nothing of them",
        (Edit("refunds.mirror", "        return False, ()\n", "        return True, ()\n"),),
        seed=16,
    ),
    "sent before it is written": Mutant(
        "the intent to send is committed before the first byte leaves",
        (
            sending(
                "    attempt = begin_attempt(refund_id, owner=owner)\n    if attempt is not None:\n"
                "        book(attempt, send(attempt, client=client))",
                "    early = Attempt(id=0, refund=Refund.objects.get(pk=refund_id), started_at=clock.now())\n"
                "    answer = send(early, client=client)\n"
                "    attempt = begin_attempt(refund_id, owner=owner)\n    if attempt is not None:\n"
                "        book(attempt, answer)",
            ),
            asking(
                "    refund, attempt = _request_and_begin(",
                "    client = client or smartpay.client()\n"
                "    asked = Refund(id=request.request_id, payment_id=request.payment_id, amount=request.amount)\n"
                "    asked.currency, asked.body = 'JPY', smartpay.refund_body(payment_id=request.payment_id,\n"
                "        amount=request.amount, currency='JPY', reason=request.reason, description='', key=str(asked.pk))\n"
                "    early = Attempt(id=0, refund=asked, number=1, started_at=clock.now())\n"
                "    answer = sending.send(early, client=client)\n"
                "    refund, attempt = _request_and_begin(",
            ),
            asking(
                "sending.book(attempt, sending.send(attempt, client=client or smartpay.client()))",
                "sending.book(attempt, answer)",
            ),
        ),
        seed=1,
    ),
    "sent after a sleep": Mutant(
        "a process that slept after its commit does not send any more",
        (sending("if clock.now() > too_late:", "if False:"),),
        # A sleep of hours at one moment, and a refund of which nothing else arrives: one ordinary life in thousands.
        climate=(
            weather("requests=random.choice((0.3, 0.6, 0.9, 0.97))", "requests=0.97"),
            weather("stalls=random.choice((0, 0, 0.002, 0.01))", "stalls=0.1"),
        ),
        seed=68,
    ),
    "sent while stopped": Mutant(
        "while sending is stopped, nothing is sent",
        (
            Edit(
                "refunds.services.control",
                "    if not control.sends_enabled:\n        return",
                "    if False:\n        return",
            ),
        ),
        seed=8,
    ),
    "withdrawn on its way": Mutant(
        "what was sent can't be withdrawn",
        (
            asking(
                "if refund.state not in Refund.NEVER_SENT or refund.first_sent_at:",
                "if refund.is_settled:",
            ),
        ),
        guards=("no such change of state",),
        checks=False,
        seed=15,
    ),
    "matched by amount": Mutant(
        "a refund is ours by its reference, not by looking alike",
        (
            Edit(
                "refunds.mirror",
                "    return [claim for text in texts if (claim := _uuid(text)) is not None]",
                "    alike = Refund.objects.filter(payment=refund.payment, amount=refund.amount, state='unknown')\n"
                "    return [claim for text in texts if (claim := _uuid(text)) is not None] or list(\n"
                "        alike.values_list('pk', flat=True)\n    )",
            ),
        ),
        seed=179,
    ),
    "nothing is reserved": Mutant(
        "what is asked for is reserved until its proof",
        (
            Edit(
                "refunds.models.orders",
                "return max(0, self.captured - self.refunded - self.external - self.reserved)",
                "return max(0, self.captured - self.refunded - self.external)",
            ),
        ),
        guards=("more than is left of the payment",),
        seed=6,
    ),
    "unknown is not reserved": Mutant(
        "an unknown refund may have been made, and stays reserved",
        (
            Edit(
                "refunds.migrations.0002_guards",
                "RESERVING = \"('awaiting_approval', 'queued', 'sending', 'unknown', 'review')\"",
                "RESERVING = \"('awaiting_approval', 'queued', 'sending', 'review')\"",
            ),
        ),
        seed=1,
    ),
    "made elsewhere does not count": Mutant(
        "refunds made in Smartpay's own dashboard lower what is left",
        (
            Edit(
                "refunds.mirror",
                "UPDATE refunds_payment SET external = counted.total",
                "UPDATE refunds_payment SET external = 0",
            ),
        ),
        seed=5,
    ),
    "two at once": Mutant(
        "a payment has one refund on its way at a time",
        (
            asking(
                "if payment.refunds.blocking().exists():",
                "if payment.refunds.filter(state=State.REVIEW).exists():",
            ),
            sending("    if others.exists():", "    if False:"),
        ),
        indexes=("refund_one_in_flight",),
        seed=63,
    ),
    "a form makes many": Mutant(
        "a form that is sent twice is one refund",
        (
            asking("refund = Refund.objects.filter(pk=request.request_id).first()", "refund = None"),
            asking("        id=request.request_id,", "        id=uuid.uuid4(),"),
        ),
        seed=1,
    ),
    "success is not believed": Mutant(
        "evidence of success wins over every state",
        (
            observing(
                "        elif not failed:\n", "        elif not failed and refund.state == State.SENDING:\n"
            ),
        ),
        seed=4,
    ),
    "a failed refund is one": Mutant(
        "a refund whose status is failed gave nothing back",
        (
            observing(
                '    """Settle a locked refund by what Smartpay shows of it: evidence of success wins over every state."""\n',
                '    shown = __import__("dataclasses").replace(shown, status="succeeded")\n',
            ),
        ),
        seed=56,
    ),
    "people are asked too soon": Mutant(
        "only what can't be read for twelve hours is a case for people",
        (absence("UNREADABLE_AFTER = timedelta(hours=12)", "UNREADABLE_AFTER = timedelta(minutes=1)"),),
        seed=129,
    ),
    "a late answer wins": Mutant(
        "an answer is booked only while the refund is still its attempt's",
        (sending("if refund.state != State.SENDING or refund.attempt_no != attempt.number:", "if False:"),),
        guards=("no such change of state",),
        seed=21,
    ),
}


# --- How it is done -----------------------------------------------------------------------------------------


class _Loader(SourceFileLoader):
    """Loads a module with its edits, and never from compiled files."""

    def __init__(self, name: str, path: str, edits: Sequence[Edit]) -> None:
        super().__init__(name, path)
        self._edits = edits

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_data(self.path).decode()
        for edit in self._edits:
            source = edit.apply(source)
        return compile(source, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, edits: Sequence[Edit]) -> None:
        self._edits = edits

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        edits = [edit for edit in self._edits if edit.module == fullname]
        spec = PathFinder.find_spec(fullname, path) if edits else None
        if spec is not None and spec.origin:
            spec.loader = _Loader(fullname, spec.origin, edits)
        return spec


def install(name: str, *, intact: bool = False) -> Mutant | None:
    """Have this process import the product without a rule; or, intact, with it, in the climate of its lives."""
    mutant = MUTANTS[name]
    sys.meta_path.insert(0, _Finder((*mutant.climate, *(() if intact else mutant.edits))))
    return None if intact else mutant

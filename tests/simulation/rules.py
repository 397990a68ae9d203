"""What has to hold after every step of a life, in the ledger and at Smartpay.

The simulation knows both sides, which nobody in the world does: each change of either is compared with the other.
A violation is one of

    twice    money went out twice for one decision, or could have: a second refund, another key, a request too late
    lost     the ledger and Smartpay disagree: a refund without its row, one told as made or not made that is not so
    over     more is refunded or reserved than there is, or the account does not add up
    stuck    a refund is neither done nor certainly not done long after it should be, or a case for no reason
    defect   anything else that must not happen: an exception nobody expects, a call inside a transaction
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from refunds.sandbox.api import Request
from refunds.sandbox.world import Resource
from tests.simulation.weather import HOUR, LARGEST_CLOCK_ERROR, LONGEST_OUTAGE, MINUTE

if TYPE_CHECKING:
    from tests.simulation.shop import Shop

type Kind = Literal["twice", "lost", "over", "stuck", "defect"]

RESERVING = ("awaiting_approval", "queued", "sending", "unknown", "review")
IN_FLIGHT = ("sending", "unknown")
NOT_MADE = ("rejected", "not_executed", "cancelled")
FINAL = (*NOT_MADE, "succeeded")
ENTRY = {"queued": "refund.approved"}  # the audit entry of a state, where it is not the state's own name

# Five hours by the database's clock, which may have been ten minutes ahead at the first sending and ten behind at the
# last; and a minute between the commit and the first byte, half a lease.
LATEST_REQUEST = 5 * HOUR + 2 * LARGEST_CLOCK_ERROR + MINUTE
SETTLED_WITHIN = 7 * HOUR
MOST_IN_AN_HOUR = 25  # requests for one refund: pauses grow, though whoever resumes sending begins them anew


@dataclass(frozen=True)
class Violation:
    kind: Kind
    text: str


class Row(NamedTuple):
    """A refund of the ledger, as committed."""

    id: str
    payment: str
    amount: int
    state: str
    attempts: int
    first_sent: str | None
    smartpay_id: str | None
    next_check: str | None
    because: str
    message: str


ROWS = (
    # As text: moments would be converted, which costs time.
    "SELECT id, payment_id, amount, state, attempt_no, first_sent_at || '', smartpay_id, next_check_at || '', "
    "cancelled_because, error_message FROM refunds_refund ORDER BY id"
)
ACCOUNTS = "SELECT id, captured, reserved, refunded, external FROM refunds_payment ORDER BY id"
ENTRIES = "SELECT id, action, object_id FROM refunds_auditentry WHERE id > ? ORDER BY id"
SWITCH = "SELECT 0 + sends_enabled FROM refunds_control"


@dataclass
class Requests:
    """What left for one row."""

    body: bytes
    left: list[float]  # when


class Rules:
    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self.violations: list[Violation] = []
        self.rows: dict[str, Row] = {}
        self.accounts: dict[str, tuple[int, int, int, int]] = {}
        self.intents: dict[str, int] = {}  # which decision of a person a row stands for
        self.unknown_since: dict[str, float] = {}
        self.settled_after: list[tuple[float, float]] = []  # when it became unknown, when it was settled
        self._sent: dict[str, Requests] = {}
        self._made: dict[str, list[Resource]] = defaultdict(
            list
        )  # Smartpay's refunds that did not fail, by row
        self._elsewhere: dict[str, list[Resource]] = defaultdict(list)  # those of others, by payment
        # When a worker read a payment in full; and when anything went wrong anywhere.
        self._reads: dict[str, list[float]] = defaultdict(list)
        self._troubles: list[float] = []
        self._contradicted: set[str] = set()
        self.sends_are_on = True
        self._sends_were_off = False
        self._seen_refunds = 0
        self._seen_entries = 0
        self._seen_changes = -1

    def violate(self, kind: Kind, text: str) -> None:
        self._shop.tell(f"VIOLATION {kind}: {text}")
        self.violations.append(Violation(kind, text))

    # -- what the network tells

    def network_is_used(self) -> None:
        if self._shop.database.in_atomic_block:
            self.violate("defect", "the network is used inside a transaction")

    def request_leaves(self, request: Request) -> None:
        """R1, R2, R3: one key and one body for ever, committed before, and never too late."""
        key, now = request.headers["idempotency-key"], self._shop.scheduler.now
        row = self.read_row(_hex(key))
        if row is None:
            self.violate("twice", f"a request leaves under {key}, which is no row's key")
            return
        sent = self._sent.setdefault(row.id, Requests(request.body, []))
        sent.left.append(now)
        count, since_first = len(sent.left), now - sent.left[0]
        if sent.body != request.body:
            self.violate("twice", f"another body is sent under {key}")
        if _names(json.loads(request.body)) != {row.id}:
            self.violate("twice", f"the request under {key} names another row")
        if count > row.attempts:
            self.violate("twice", f"request {count} of {key} leaves, {row.attempts} were recorded before")
        if row.state in NOT_MADE:
            self.violate("twice", f"a request leaves for {key}, which is {row.state}")
        if since_first > LATEST_REQUEST:
            self.violate("twice", f"a request of {key} leaves {since_first / HOUR:.2f} h after the first")
        if count > MOST_IN_AN_HOUR and now - sent.left[-MOST_IN_AN_HOUR] < HOUR:
            self.violate("defect", f"{key} is sent more than {MOST_IN_AN_HOUR} times in an hour")

    def request_was_handled(self, request: Request, *, contradicted: bool) -> None:
        if contradicted:
            self._contradicted.add(_hex(request.headers["idempotency-key"]))

    def was_read(self, path: str) -> None:
        switches, running = self._shop.smartpay.switches, self._shop.scheduler.running
        in_full = switches.payments_list_refunds and not switches.read_lag_seconds
        if in_full and running and running.name.startswith("worker"):
            self._reads[path].append(self._shop.scheduler.now)

    def something_goes_wrong(self) -> None:
        self._troubles.append(self._shop.scheduler.now)

    def is_executed(self, key: str) -> bool:
        self.look_at_smartpay()
        return bool(self._made.get(_hex(key)))

    # -- what is compared after each step

    def check(self) -> bool:
        """Compare what changed since the last step; return whether something is wrong."""
        self.look_at_smartpay()
        if self._shop.raw.total_changes != self._seen_changes:
            self.look_at_ledger()
        return bool(self.violations)

    def look_at_smartpay(self) -> None:
        account = self._shop.account
        made = account.made["refund"]
        for refund_id in made[self._seen_refunds :]:
            refund = account.objects[refund_id]
            assert refund is not None
            if refund["status"] != "failed":
                self._refund_appears(refund)
        self._seen_refunds = len(made)

    def _refund_appears(self, refund: Resource) -> None:
        names = _names(refund)
        self._shop.tell(
            f"Smartpay: {refund['id']} {refund['amount']} of {refund['payment']} for {names or 'others'}"
        )
        if not names:
            self._elsewhere[refund["payment"]].append(refund)
        for name in names:
            self._made[name].append(refund)
            row = self.read_row(name)
            if row is None:
                self.violate("lost", f"Smartpay made {refund['id']} for {name}, which has no row")
            elif row.state in NOT_MADE:
                self.violate("lost", f"Smartpay made {refund['id']} for {name}, which is {row.state}")
            if len(self._made[name]) > 1:
                self.violate("twice", f"Smartpay made {len(self._made[name])} refunds for {name}")
            intent = self.intents.get(name)
            of_intent = [made for other, made in self._made.items() if self.intents.get(other) == intent]
            if intent is not None and sum(map(len, of_intent)) > 1:
                self.violate(
                    "twice", f"Smartpay refunded twice what a person wanted once (decision {intent})"
                )
        given_back = self._given_back(refund["payment"])
        captured = self._shop.captured[refund["payment"]]
        if given_back > captured:
            self.violate("over", f"Smartpay gave back {given_back} of {captured}")

    def _given_back(self, payment: str) -> int:
        ours = [refund for made in self._made.values() for refund in made if refund["payment"] == payment]
        return sum(refund["amount"] for refund in (*ours, *self._elsewhere[payment]))

    def look_at_ledger(self) -> None:
        raw = self._shop.raw
        self._seen_changes = raw.total_changes
        before, rows = self.rows, {row[0]: Row(*row) for row in raw.execute(ROWS)}
        entries = raw.execute(ENTRIES, (self._seen_entries,)).fetchall()
        if entries:
            self._seen_entries = entries[-1][0]
        told = {(_hex(about), action) for _id, action, about in entries}
        self._sends_were_off = not self.sends_are_on
        self.sends_are_on = (0,) not in raw.execute(SWITCH).fetchall()
        self.rows = rows
        for row in rows.values():
            old = before.get(row.id)
            if row != old:
                self._row_changed(old, row, told)
        if lost := before.keys() - rows.keys():
            self.violate("lost", f"the row {min(lost)} is gone")
        if rows != before:
            in_flight = [row.payment for row in rows.values() if row.state in IN_FLIGHT]
            if len(in_flight) != len(set(in_flight)):
                self.violate("twice", "two refunds of one payment are on their way at once")
        accounts = {payment: tuple(sums) for payment, *sums in raw.execute(ACCOUNTS)}
        if accounts != self.accounts or rows != before:
            self._accounts_changed(accounts)
        if rows != before:
            self._shop.ledger_changed()

    def _row_changed(self, old: Row | None, row: Row, told: set[tuple[str, str]]) -> None:
        if old is None and row.id not in self.intents:
            self.violate("twice", f"{row.id} is a row that nobody asked for")
        if old is not None and row.attempts > old.attempts and self._sends_were_off and not self.sends_are_on:
            self.violate("twice", f"{row.id} is sent while sending is stopped")
        if old is not None and old.state == row.state:
            return
        if old is not None and old.state in FINAL:
            self.violate("lost", f"{row.id} was told as {old.state}, and became {row.state}")
        self._shop.tell(
            f"row {row.id}: {old.state if old else 'none'} -> {row.state} {row.because}{row.message}"
        )
        entry = ENTRY.get(row.state, f"refund.{row.state}") if old else "refund.requested"
        if (row.id, entry) not in told:
            self.violate("lost", f"{row.id} became {row.state}, and no audit entry says so")
        self.row_is_true(row)
        if row.state == "cancelled" and row.id in self._sent:
            self.violate("lost", f"{row.id} is cancelled, and was sent")
        if row.state == "review":
            self._case_appears(old, row)
        now = self._shop.scheduler.now
        if row.state == "unknown":
            self.unknown_since.setdefault(row.id, now)
        elif row.state not in IN_FLIGHT and (since := self.unknown_since.pop(row.id, None)):
            self.settled_after.append((since, now))

    def row_is_true(self, row: Row) -> None:
        """What a row says of its refund has to be so at Smartpay."""
        made = self._made.get(row.id, [])
        if row.state == "succeeded":
            refund = next((refund for refund in made if refund["id"] == row.smartpay_id), None)
            if refund is None:
                self.violate("lost", f"{row.id} is told as made, as {row.smartpay_id}, and is not")
            elif (refund["amount"], refund["payment"]) != (row.amount, row.payment):
                self.violate("lost", f"{row.id} is told as made, and another amount or payment was")
        elif row.state in NOT_MADE and made:
            self.violate("lost", f"{row.id} is {row.state}, and Smartpay has made it")

    def _case_appears(self, old: Row | None, row: Row) -> None:
        """A case for people needs a cause that the world has put there: the machine settles everything else."""
        self._shop.count("review", row.message[:40])
        could_be_it = any(refund["amount"] == row.amount for refund in self._elsewhere[row.payment])
        if row.id not in self._contradicted and not could_be_it and self._was_looked_for(row.payment):
            self.violate("stuck", f"{row.id} is a case for people, for no reason ({row.message})")

    def _was_looked_for(self, payment: str) -> bool:
        """Whether a worker read the payment twice in the last hours and no reading, process or database failed in
        between: the first of its two turns was a whole one.
        """
        since = self._shop.scheduler.now - LONGEST_OUTAGE + 2 * LARGEST_CLOCK_ERROR
        reads = [at for at in self._reads[f"/v1/payments/{payment}"] if at > since]
        return any(
            not any(first <= trouble <= second for trouble in self._troubles)
            for first, second in itertools.pairwise(reads)
        )

    def _accounts_changed(self, accounts: dict[str, tuple[int, int, int, int]]) -> None:
        """R11: counters are the sums of their rows, and nothing is reserved that is not there."""
        before, self.accounts = self.accounts, accounts
        for payment, (captured, reserved, refunded, external) in accounts.items():
            rows = [row for row in self.rows.values() if row.payment == payment]
            if reserved != sum(row.amount for row in rows if row.state in RESERVING):
                self.violate("over", f"{payment} reserves {reserved}, which is not the sum of its rows")
            if refunded != sum(row.amount for row in rows if row.state == "succeeded"):
                self.violate(
                    "over", f"{payment} counts {refunded} as refunded, which is not the sum of its rows"
                )
            grew = payment in before and reserved > before[payment][1]
            if grew and reserved + refunded + external > captured:
                self.violate("over", f"{reserved} is reserved of {payment}, which has not so much left")

    def was_told(self, refund: Any) -> None:
        """A person read this of a refund: it has to be true at that moment."""
        self.look_at_smartpay()
        row = self.read_row(refund.pk.hex)
        if row is None:
            self.violate("lost", f"a person was told of {refund.pk}, which has no row")
        else:
            self.row_is_true(row._replace(state=refund.state, smartpay_id=refund.smartpay_id))

    # -- what is compared at the end

    def check_at_end(self) -> None:
        """The world has been healthy for seven hours: everything is settled but cases, and the books agree."""
        self._seen_changes = -1
        self.check()
        cases = {row.payment for row in self.rows.values() if row.state == "review"}
        for row in self.rows.values():
            self.row_is_true(row)
            if row.state in IN_FLIGHT or (row.state == "queued" and row.payment not in cases):
                self.violate("stuck", f"{row.id} is still {row.state}; its next turn is {row.next_check}")
            if row.state == "awaiting_approval":
                self.violate("stuck", f"{row.id} still waits for approval, and should have expired")
        for payment, (captured, _reserved, _refunded, external) in self.accounts.items():
            if external != sum(refund["amount"] for refund in self._elsewhere[payment]):
                self.violate("over", f"{external} of {payment} counts as refunded elsewhere, which is not so")
            if self._given_back(payment) > captured:
                self.violate("over", f"more was given back of {payment} than captured")

    def read_row(self, id: str) -> Row | None:
        """A row as it is committed now."""
        if not self._shop.database.in_atomic_block and self._shop.raw.total_changes != self._seen_changes:
            self.look_at_ledger()
        return self.rows.get(id)


def _hex(id: str) -> str:
    """As SQLite keeps it."""
    return id.replace("-", "")


def _names(refund: Resource) -> set[str]:
    """The rows that a refund, or a request for one, names."""
    metadata = refund.get("metadata") or {}
    return {_hex(name) for name in (refund.get("reference"), metadata.get("refund_dashboard_id")) if name}

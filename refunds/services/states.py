"""The states of a refund, how it is locked while it changes, and the small steps that every change is made of.

    awaiting_approval ─▶ queued ─▶ sending ─▶ succeeded | rejected
            │               │        │  ▲
            └──▶ cancelled ◀┘        ▼  │
                                   unknown ─▶ succeeded | rejected | not_executed

A refund about which Smartpay contradicts the ledger goes to `review`. Evidence, or two people, move it on to succeeded
or not_executed. The database allows exactly these changes (TRANSITIONS in migrations/0002_guards.py). Refund.State
tells what each state means.

The small steps change the given object inside the caller's transaction. The caller saves it, and may change more
before. Only cancel() saves the object and writes its own audit entry.
"""

import functools
import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import structlog
from django.conf import settings
from django.db import OperationalError, transaction
from django.db.models import QuerySet

from dashboard.models import User
from refunds import audit, clock
from refunds.models import Control, Payment, Refund

log = structlog.get_logger(__name__)

State = Refund.State

# Note [The send window]
# Smartpay keeps an idempotency key for six hours from when it first receives it. After that, the same key would make a
# second refund. We count from our first attempt, which is earlier, and stop an hour before the end: a request may be
# held back by the network, and clocks differ. The database refuses a later attempt too.
SEND_WINDOW = timedelta(hours=5)

# Note [Proof of absence]
# A refund is "not executed" only after two complete reads without our reference, a quarter of an hour apart. Both must
# begin after the last moment at which a request of ours could still be executed, or a refund be hidden from a read.
ABSENT_AFTER_FIRST_SENDING = timedelta(hours=6, minutes=30)
ABSENT_AFTER_LAST_SENDING = timedelta(minutes=45)
ABSENT_TWICE_WITHIN = timedelta(minutes=15)

LONGEST_PAUSE = timedelta(minutes=30)
# The columns of a payment and of its order that the ledger needs; an order has forty.
ACCOUNT = (
    *("currency", "captured", "reserved", "refunded", "external"),
    *("order__order_id", "order__email_folded", "order__name_folded"),
)
NO_LEASE = ""  # Refund.lease_owner while no worker holds the lease
TRIES = 3  # for a transaction that the database rolled back because of others


def absence_counts_from(refund: Refund) -> datetime:
    """Return the earliest beginning of a complete read that counts towards the proof of absence.

    See Note [Proof of absence]. The first of the two reads is written to `absent_since`.
    """
    if refund.absent_since:
        return refund.absent_since + ABSENT_TWICE_WITHIN
    first, last = refund.first_sent_at, refund.last_sent_at
    if first is None or last is None:
        return could_be_sent_until(refund) + ABSENT_AFTER_FIRST_SENDING
    return max(first + ABSENT_AFTER_FIRST_SENDING, last + ABSENT_AFTER_LAST_SENDING)


def could_be_sent_until(refund: Refund) -> datetime:
    """Return the latest moment at which a lost copy of the database may first have sent this refund.

    That is the request itself, or a restore since.
    """
    restores = Control.objects.values_list("restored_at", "restore_accepted_at")
    return max([refund.requested_at, *(moment for row in restores for moment in row if moment)])


# --- Transactions -------------------------------------------------------------------------------------------


@contextmanager
def locked(refund_id: uuid.UUID, *, payment_id: str = "") -> Iterator[Refund]:
    """Lock a refund, its payment first, for the length of a transaction. See Note [Lock order] in models/ledger.py.

    `payment_id`: the refund's payment, if the caller knows it, which saves a query. It never changes.
    """
    with transaction.atomic(durable=True):
        payment_id = payment_id or Refund.objects.values_list("payment_id", flat=True).get(pk=refund_id)
        payment = locked_payment(payment_id)
        refund = Refund.objects.select_for_update().get(pk=refund_id)
        refund.payment = payment
        yield refund


def locked_payment(payment_id: str) -> Payment:
    """Return the payment, locked, with its order, which is not locked. Columns beside ACCOUNT are loaded on access."""
    return _payments_to_lock().get(pk=payment_id)


def locked_with_siblings(payment_id: str) -> Payment:
    """Return the payment like locked_payment(), and lock the other payments of its order as well.

    So no two refunds of one order are requested at the same time.
    """
    payments = _payments_to_lock().filter(order__payments=payment_id).order_by("pk")
    return {payment.pk: payment for payment in payments}[payment_id]


def _payments_to_lock() -> QuerySet[Payment]:
    return Payment.objects.select_for_update(of=("self",)).select_related("order").only(*ACCOUNT)


def retried[**P, R](step: Callable[P, R]) -> Callable[P, R]:
    """Run a step of the ledger again if the database gave its transaction up, as after a deadlock or a lock timeout.

    Only an error that certainly rolled the transaction back leads to another try. Never use it around a call to
    Smartpay.
    """

    @functools.wraps(step)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        for attempt in range(1, TRIES):
            try:
                return step(*args, **kwargs)
            except OperationalError as error:
                if not _was_given_up(error):
                    raise
                log.warning("ledger.tried_again", step=step.__name__, attempt=attempt)
                time.sleep(random.uniform(0.01, 0.1) * attempt)  # noqa: S311  (parts two that collided)
        return step(*args, **kwargs)

    return run


GIVEN_UP = {"40001", "40P01", "55P03"}  # serialization failure, deadlock, lock not available


def _was_given_up(error: OperationalError) -> bool:
    """Return whether the transaction was rolled back only because of others, and may succeed if tried again."""
    cause = error.__cause__
    return getattr(cause, "sqlstate", None) in GIVEN_UP or getattr(cause, "sqlite_errorname", "").startswith(
        ("SQLITE_BUSY", "SQLITE_LOCKED")
    )


@retried
def make_due(refund_id: uuid.UUID) -> None:
    """Make a refund due now if it is backing off. A lease is left alone."""
    with locked(refund_id) as refund:
        now = clock.now()
        waits = refund.state in (State.QUEUED, State.UNKNOWN) and refund.lease_until is None
        if waits and refund.next_check_at and refund.next_check_at > now:
            refund.next_check_at = now
            refund.save(update_fields=["next_check_at"])


# --- Small steps --------------------------------------------------------------------------------------------


def move(refund: Refund, state: State) -> None:
    refund.moved_from, refund.state = refund.state, state
    refund.lease_until, refund.lease_owner = None, NO_LEASE


def lease(refund: Refund, owner: str, now: datetime) -> None:
    refund.lease_until = refund.next_check_at = now + timedelta(seconds=settings.REFUND_LEASE_SECONDS)
    refund.lease_owner = owner


def back_off(refund: Refund, now: datetime, *, at_least: float | None = None) -> None:
    """Give the turn back, and set the next one: twice as late each time, up to half an hour, with a random factor.

    The next turn is no later than the moment from which absence can be proved, so that the proof is not delayed.

    `at_least`: seconds that Smartpay asked us to wait, or that the next proof needs. It wins over that moment, and is
    cut off at half an hour.
    """
    seconds = min(
        settings.REFUND_BACKOFF_SECONDS * 2 ** min(max(refund.turns - 1, 0), 10),
        LONGEST_PAUSE.total_seconds(),
    ) * random.uniform(0.5, 1.5)  # noqa: S311  (spreads load, hides nothing)
    if refund.first_sent_at and now < (proof := absence_counts_from(refund)):
        seconds = min(seconds, (proof - now).total_seconds())
    seconds = max(seconds, min(at_least or 0, LONGEST_PAUSE.total_seconds()))
    refund.next_check_at = now + timedelta(seconds=seconds)
    refund.lease_until, refund.lease_owner = None, NO_LEASE


def settle(refund: Refund, state: State, now: datetime) -> None:
    move(refund, state)
    refund.settled_at, refund.next_check_at = now, None


def cancel(refund: Refund, because: Refund.Cancelled, *, by: User | None) -> None:
    settle(refund, State.CANCELLED, clock.now())
    refund.cancelled_because = because
    refund.save()
    audit.record(by, "refund.cancelled", refund, because=because)


def to_review(refund: Refund, why: str) -> None:
    move(refund, State.REVIEW)
    refund.next_check_at = None
    refund.reviews += 1
    refund.error_message = refund.error_message or why
    alarm("refund.review", refund, why=why)


def alarm(name: str, refund: Refund, **about: object) -> None:
    """Log an error that is marked as an alarm. It may hold ids and states only."""
    log.error(name, alarm=True, refund=str(refund.pk), state=str(refund.state), **about)

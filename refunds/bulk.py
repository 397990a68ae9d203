"""一括返金: a file of refunds. A worker checks it, a person starts it, and a worker requests it line by line.

Nothing is sent from here. services.request_refund() makes a line a row of the ledger, under an id derived from the
file's contents and the line's number. From there on it is a refund like any other. So a process may die anywhere,
several workers may run at once, and the same file may come again: a line that has its row gets no second one.
"""

import unicodedata
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache

import structlog
from django import forms
from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, transaction
from django.db.models import Count, Exists, OuterRef, Q, QuerySet, Sum
from django.utils.translation import gettext as _
from django.utils.translation import override

from dashboard.models import User
from refunds import audit, bulk_file, clock, roles, services, waiting
from refunds.folding import fold_reference
from refunds.forms import DESCRIPTION_LENGTH, PlainText, YenField
from refunds.models import Bulk, BulkLine, Order, Refund, RefundQuerySet

log = structlog.get_logger(__name__)

NAMESPACE = uuid.UUID("5d3c4c1e-0f6f-4c53-9a53-0d9a1b7c6e2f")  # of the refunds' ids; never changes
CHUNK, CHUNKS = 100, 5  # lines checked in one transaction, and transactions in one turn
AHEAD = 20  # refunds of a file that may wait to be sent or be 結果不明; a pause does not stop them
LEASE = timedelta(seconds=60)  # a worker that has not renewed it for so long has died
DESCRIPTION = PlainText(limit=DESCRIPTION_LENGTH, required=False)
ALL_THAT_IS_LEFT = {"残額", "残額すべて", "全額", "rest"}

LineState, Problem = BulkLine.State, BulkLine.Problem
PROBLEMS: dict[type[services.RefundError], BulkLine.Problem] = {
    services.AboveMaximum: Problem.MAXIMUM,
    services.AboveDailyLimit: Problem.DAILY_LIMIT,
    services.AmountTooHigh: Problem.TOO_HIGH,
    services.BalanceMoved: Problem.MOVED,
    services.SimilarRefund: Problem.SIMILAR,
    services.SimilarUnexplained: Problem.SIMILAR,
    services.RequestReused: Problem.USED,
}


HAS_ROW = Exists(Refund.objects.filter(pk=OuterRef("request_id")))
IS_BLOCKED = Exists(Refund.objects.blocking().filter(payment=OuterRef("payment")))
WHAT_IS_CHECKED = ["payment", "amount", "reason", "refundable", "is_similar", "state", "problem"]
DECISION = ("decided_by", "decided_at", "decision_note")


class BulkError(Exception):
    """An error that a person can act on; str(error) is its message. `field`: of the form; None for the whole form."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


# --- What people do: upload, start, decide, stop ---------------------------------------------------------------


def upload(file_name: str, data: bytes, *, by: User) -> tuple[Bulk, bool]:
    """Store a file to be checked; return it, and whether it is new. The same contents are the same Bulk.

    Raises: PermissionDenied, csv_file.BadFile.
    """
    roles.require(by, roles.REQUEST_REFUND)
    written = bulk_file.read(data)
    digest = bulk_file.digest(written)
    try:
        with transaction.atomic():
            bulk = Bulk.objects.create(
                file_name=file_name[:120],
                digest=digest,
                lines_count=len(written),
                uploaded_by=by,
                uploaded_at=clock.now(),
            )
            BulkLine.objects.bulk_create(
                [
                    BulkLine(
                        bulk=bulk,
                        number=line.number,
                        order_text=line.order,
                        reference_text=line.reference,
                        amount_text=line.amount,
                        description=line.description,
                        reason_text=line.reason,
                        request_id=uuid.uuid5(NAMESPACE, f"{digest}:{line.number}"),
                    )
                    for line in written
                ],
                batch_size=500,
            )
            audit.record(by, "bulk.uploaded", bulk, lines=len(written), digest=digest)
    except IntegrityError:
        known = Bulk.objects.exclude(state__in=Bulk.GIVEN_UP).filter(digest=digest).first()
        if known is None:
            raise
        audit.record(by, "bulk.uploaded", known, refused=True, why="same contents")
        return known, False
    return bulk, True


def start(bulk_id: uuid.UUID, *, by: User, similar_reason: str = "") -> Bulk:
    """Start refunding the lines that are ready and, if a reason is given, those with a similar refund.

    If their sum is above REFUND_APPROVAL_ABOVE, the file waits for a second person first.
    Raises: PermissionDenied if another person uploaded it, BulkError.
    """
    with _locked(bulk_id) as bulk:
        roles.require(by, roles.REQUEST_REFUND)
        if bulk.uploaded_by_id != by.pk:
            raise PermissionDenied
        if bulk.state != Bulk.State.CHECKED:
            raise BulkError(_("この一括返金はすでに開始されたか、中止されています。"))
        _check_age(bulk.uploaded_at)
        similar = bulk.lines.filter(state=LineState.SIMILAR)
        if similar_reason:
            similar.update(state=LineState.READY)
        else:
            similar.update(state=LineState.LEFT_OUT, problem=Problem.NO_REASON)
        total = bulk.lines.filter(state=LineState.READY).aggregate(total=Sum("amount"))["total"]
        if not total:
            raise BulkError(_("返金する行がありません。"))
        _check_day(total, by=by)
        waits = services.needs_approval(total)
        bulk.state = Bulk.State.AWAITING_APPROVAL if waits else Bulk.State.RUNNING
        bulk.total, bulk.similar_reason, bulk.started_at = total, similar_reason, clock.now()
        bulk.save(update_fields=["state", "total", "similar_reason", "started_at"])
        audit.record(by, "bulk.started", bulk, total=total, similar=bool(similar_reason), state=bulk.state)
    return bulk


def _check_day(total: int, *, by: User) -> None:
    limit = settings.REFUND_DAILY_LIMIT
    if limit is not None and total + services.refunded_today(by) > limit:
        raise BulkError(_("一日の返金の上限を超えます。ファイルを分けて、日を改めて取り込んでください。"))


def decide(bulk_id: uuid.UUID, *, by: User, approved: bool, note: str = "") -> Bulk:
    """Approve a file as a whole, or reject it with a reason.

    Raises: PermissionDenied (also for the person's own file), BulkError.
    """
    with _locked(bulk_id) as bulk:
        roles.require(by, roles.APPROVE_REFUND)
        if bulk.uploaded_by_id == by.pk:
            raise PermissionDenied
        if bulk.state != Bulk.State.AWAITING_APPROVAL:
            raise BulkError(_("この一括返金はすでに決定されたか、中止されています。"))
        if approved:
            _check_age(bulk.uploaded_at)
        if not approved and not note:
            raise BulkError(_("却下する理由を入力してください。"), "note")
        bulk.decided_by, bulk.decided_at, bulk.decision_note = by, clock.now(), note
        if approved:
            bulk.state = Bulk.State.RUNNING
        else:
            _stop(bulk, Bulk.State.REJECTED)
        bulk.save(update_fields=["state", "ended_at", *DECISION])
        audit.record(by, "bulk.approved" if approved else "bulk.rejected", bulk, total=bulk.total)
    return bulk


def pause(bulk_id: uuid.UUID, *, by: User, paused: bool) -> Bulk:
    """Hold the lines that have no row in the ledger yet, or resume them.

    The uploader or an approver may do it; only an approver may resume what somebody else paused.
    Raises: PermissionDenied, BulkError.
    """
    before, after = Bulk.State.RUNNING, Bulk.State.PAUSED
    if not paused:
        before, after = after, before
    with _locked(bulk_id) as bulk:
        if bulk.uploaded_by_id != by.pk:
            roles.require(by, roles.APPROVE_REFUND)
        roles.require(by, roles.REQUEST_REFUND)
        if bulk.state != before:
            raise BulkError(_("この一括返金の状態が変わりました。いまの状態を確かめてください。"))
        if not paused and not may_resume(bulk, by):
            raise BulkError(_("ほかの人が一時停止したため、再開できるのは承認者だけです。"))
        if not paused:
            _check_age(bulk.decided_at or bulk.started_at)
        bulk.state, bulk.paused_by = after, by if paused else None
        bulk.save(update_fields=["state", "paused_by"])
        audit.record(by, "bulk.paused" if paused else "bulk.resumed", bulk)
    return bulk


def may_resume(bulk: Bulk, person: User) -> bool:
    """Return whether this person may resume what is paused: an approver anything, others what they paused."""
    return bulk.paused_by_id == person.pk or person.has_perm(roles.APPROVE_REFUND)


def cancel(bulk_id: uuid.UUID, *, by: User) -> Bulk:
    """Give up what was not sent. The uploader or an approver may do it. Lines without a row get none.

    Rows that were never sent are withdrawn, here or when their turn comes: see sending.py.
    Raises: PermissionDenied, BulkError.
    """
    with _locked(bulk_id) as bulk:
        if bulk.uploaded_by_id != by.pk:
            roles.require(by, roles.APPROVE_REFUND)
        if bulk.state not in Bulk.OPEN:
            raise BulkError(_("この一括返金はすでに終わっています。"))
        _stop(bulk, Bulk.State.CANCELLED)
        bulk.save(update_fields=["state", "ended_at"])
        audit.record(by, "bulk.cancelled", bulk)
    for refund in _rows(bulk).never_sent().filter(first_sent_at=None, requested_by=by):
        try:
            services.withdraw(refund.pk, by=by)
        except services.NotWaiting:
            continue  # sent a moment ago: it goes on to its end
    return bulk


def _stop(bulk: Bulk, state: Bulk.State) -> None:
    """End the file. No line gets a row from here on: the database refuses one whose file is not running."""
    bulk.state, bulk.ended_at = state, clock.now()
    _leave_out(
        bulk.lines.filter(state__in=[LineState.UNCHECKED, LineState.READY, LineState.SIMILAR]),
        Problem.STOPPED,
    )


def _leave_out(lines: QuerySet[BulkLine], problem: BulkLine.Problem) -> int:
    """Close the lines of a locked file; return how many have no row in the ledger."""
    # A worker may have died after it made the row and before it marked the line.
    lines.filter(HAS_ROW, state=LineState.READY).update(state=LineState.ASKED)
    return lines.update(state=LineState.LEFT_OUT, problem=problem)


def _check_age(moment: datetime | None) -> None:
    """Raise BulkError if the moment of the check or approval is more than REFUND_REQUEST_DAYS ago."""
    if moment and moment < waiting.expired_before():
        raise BulkError(
            _(
                "この一括返金は期限が切れました。残りの行が必要なら、中止してから、もう一度取り込んでください。"
            )
        )


def _expire() -> None:
    """Cancel files that nobody started or decided within REFUND_REQUEST_DAYS, as single requests expire."""
    waits = (Bulk.State.CHECKED, Bulk.State.AWAITING_APPROVAL)
    old = Bulk.objects.filter(state__in=waits, uploaded_at__lt=waiting.expired_before())
    for bulk_id in old.values_list("pk", flat=True):
        with _locked(bulk_id) as bulk:
            if bulk.state in waits:
                _stop(bulk, Bulk.State.CANCELLED)
                bulk.save(update_fields=["state", "ended_at"])
                audit.record(None, "bulk.cancelled", bulk, why="expired")


@contextmanager
def _locked(bulk_id: uuid.UUID) -> Iterator[Bulk]:
    with transaction.atomic():
        yield Bulk.objects.select_for_update().get(pk=bulk_id)


# --- What became of it --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Share:
    """A number of lines, and the sum that they refund, in yen."""

    lines: int = 0
    total: int = 0


def tally(bulk: Bulk) -> dict[str, Share]:
    """Count the lines by what became of them: a LineState; for lines in the ledger the Refund.State of their row."""
    lines = (
        bulk.lines.exclude(state=LineState.ASKED).values("state").annotate(n=Count("pk"), sum=Sum("amount"))
    )
    rows = _rows(bulk).order_by().values("state").annotate(n=Count("pk"), sum=Sum("amount"))
    return {row["state"]: Share(row["n"], row["sum"] or 0) for row in (*lines, *rows)}


def _rows(bulk: Bulk) -> RefundQuerySet:
    asked = bulk.lines.filter(state=LineState.ASKED)
    return Refund.objects.filter(pk__in=asked.values("request_id"))


def with_rows(lines: Sequence[BulkLine]) -> list[tuple[BulkLine, Refund | None]]:
    """Return each line with its row in the ledger; None if it has none."""
    rows = Refund.objects.in_bulk([line.request_id for line in lines])
    return [(line, rows.get(line.request_id)) for line in lines]


# --- Workers ------------------------------------------------------------------------------------------------


def work(*, stop: Callable[[], bool] = lambda: False) -> None:
    """Check uploaded files and request refunds of started ones, once. Any number of workers may run it."""
    _expire()
    me = str(uuid.uuid4())
    at_work = Bulk.objects.filter(state__in=[Bulk.State.CHECKING, Bulk.State.RUNNING])
    for bulk in at_work.order_by("uploaded_at"):
        if stop() or not _lease(bulk, me):
            continue
        try:
            if bulk.state == Bulk.State.CHECKING:
                _check(bulk, stop)
            else:
                _ask(bulk)
        except Exception as error:
            has_moved = not Bulk.objects.filter(pk=bulk.pk, state=bulk.state).exists()
            if isinstance(error, IntegrityError) and has_moved:
                continue  # a guard refused a line of a file that was stopped meanwhile
            # A defect, or the database is gone. Other files must not wait for it.
            log.exception("bulk.turn_failed", alarm=True, bulk=str(bulk.pk))
        finally:
            Bulk.objects.filter(pk=bulk.pk, lease_owner=me).update(lease_owner="", lease_until=None)


def _lease(bulk: Bulk, me: str) -> bool:
    """Lease the file for LEASE; return whether it was free. Two workers at one file would only be slower, not wrong."""
    now = clock.now()
    free = Q(lease_until=None) | Q(lease_until__lt=now) | Q(lease_owner=me)
    mine = Bulk.objects.filter(free, pk=bulk.pk, state=bulk.state)
    return bool(mine.update(lease_owner=me, lease_until=now + LEASE))


def _check(bulk: Bulk, stop: Callable[[], bool]) -> None:
    """Check some chunks of lines, in their order; not all, so that no other file waits for long."""
    for _chunk in range(CHUNKS):
        lines = list(bulk.lines.filter(state=LineState.UNCHECKED).order_by("number")[:CHUNK])
        if not lines:
            Bulk.objects.filter(pk=bulk.pk, state=Bulk.State.CHECKING).update(state=Bulk.State.CHECKED)
            return
        if stop():
            return
        _Check(bulk, lines).run()
        BulkLine.objects.bulk_update(lines, WHAT_IS_CHECKED, batch_size=CHUNK)


class _Check:
    """Finds the payment, amount and problem of each line of a chunk. It sets them on the lines and saves nothing."""

    def __init__(self, bulk: Bulk, lines: list[BulkLine]) -> None:
        self._bulk, self._lines = bulk, lines
        by_id = Order.objects.filter(order_id__in={line.order_text for line in lines})
        by_reference = Order.objects.filter(
            reference_folded__in={fold_reference(line.reference_text) for line in lines} - {""}
        )
        orders = [*by_id.prefetch_related("payments"), *by_reference.prefetch_related("payments")]
        self._by_id = {order.order_id: order for order in orders}
        self._by_reference: dict[str, dict[str, Order]] = {}
        for order in orders:
            self._by_reference.setdefault(order.reference_folded, {})[order.order_id] = order
        before = bulk.lines.filter(state__in=[LineState.READY, LineState.SIMILAR]).order_by()
        of_orders = before.filter(payment__order__in={order.pk for order in orders})
        # Of the lines so far: the sum taken from each payment, the orders, and (customer, amount) pairs.
        self._taken: dict[str, int] = {
            row["payment"]: row["sum"] for row in of_orders.values("payment").annotate(sum=Sum("amount"))
        }
        self._orders = {int(key) for key in of_orders.values_list("payment__order", flat=True)}
        people = Q(payment__order__email_folded__in={order.email_folded for order in orders} - {""}) | Q(
            payment__order__name_folded__in={order.name_folded for order in orders} - {""}
        )
        self._given = {
            (text, line.amount)
            for line in before.filter(people).select_related("payment__order")
            if line.payment
            for text in _customer_identities(line.payment.order)
        }

    def run(self) -> None:
        for line in self._lines:
            problem = self._understand(line) or self._look_at_payment(line)
            line.problem = problem or ""
            if problem:
                line.state = LineState.PROBLEM

    def _understand(self, line: BulkLine) -> BulkLine.Problem | None:
        order = self._order(line)
        if isinstance(order, BulkLine.Problem):
            return order
        payments = list(order.payments.all())
        open_ones = [payment for payment in payments if payment.refundable()]
        if not payments:
            return Problem.NOT_PAID
        if len(open_ones) > 1:
            return Problem.PAYMENTS
        if any(payment.currency != "JPY" for payment in payments):
            return Problem.CURRENCY
        if not open_ones:
            return Problem.NOTHING_LEFT
        payment = open_ones[0]
        left = payment.refundable() - self._taken.get(payment.pk, 0)
        amount = left if line.amount_text in ALL_THAT_IS_LEFT else yen(line.amount_text)
        if amount is None:
            return Problem.AMOUNT
        reason = _reasons().get(line.reason_text)
        if reason is None:
            return Problem.REASON
        if not _is_description(line.description):
            return Problem.DESCRIPTION
        if left <= 0:
            return Problem.NOTHING_LEFT
        line.payment, line.amount, line.refundable = payment, amount, left
        line.reason = reason
        return Problem.TOO_HIGH if amount > left else None

    def _order(self, line: BulkLine) -> Order | BulkLine.Problem:
        # Found by the folded reference, as a search does, then compared exactly: two numbers may differ in a dot only.
        by_reference = {
            order_id: order
            for order_id, order in self._by_reference.get(fold_reference(line.reference_text), {}).items()
            if line.reference_text and _plain(order.reference) == _plain(line.reference_text)
        }
        if not (line.order_text or line.reference_text):
            return Problem.NO_ORDER
        if line.order_text:
            order = self._by_id.get(line.order_text)
            if order is None:
                return Problem.ORDER
            return (
                Problem.ORDERS_DIFFER if line.reference_text and order.order_id not in by_reference else order
            )
        # A shopper's unpaid attempts carry the same reference.
        paid = [
            order
            for order in by_reference.values()
            if order.status not in Order.UNPAID or order.payments.all()
        ]
        if len(paid) > 1:
            return Problem.ORDERS
        return next(iter(paid or by_reference.values()), Problem.ORDER)

    def _look_at_payment(self, line: BulkLine) -> BulkLine.Problem | None:
        assert line.payment is not None and line.amount is not None  # noqa: PT018, S101  (understood)
        try:
            preview = services.preview_refund(_request(line), by=self._bulk.uploaded_by)
        except services.RefundUnsettled:
            return Problem.UNSETTLED
        except services.RefundError as error:
            return PROBLEMS[type(error)]
        except PermissionDenied:
            return Problem.NOT_ENTITLED
        if known := Refund.objects.filter(pk=line.request_id).first():
            # A row that was never sent belongs to a cancelled file: it is withdrawn when its turn comes.
            is_made = known.state in (Refund.State.SUCCEEDED, *Refund.OPEN)
            return Problem.USED if is_made else Problem.NOT_MADE
        order = preview.payment.order
        # services.similar_refunds() tells customers apart in the same way.
        customer = order.email_folded or order.name_folded
        line.is_similar = (
            bool(preview.similar)
            or line.payment.order_id in self._orders
            or (customer, line.amount) in self._given
        )
        line.state = LineState.SIMILAR if line.is_similar else LineState.READY
        self._given |= {(text, line.amount) for text in _customer_identities(order)}
        self._taken[line.payment.pk] = self._taken.get(line.payment.pk, 0) + line.amount
        self._orders.add(line.payment.order_id)
        return None


def _customer_identities(order: Order) -> list[str]:
    """Return the folded mail and name, by either of which another order of the same customer is recognised."""
    return [text for text in (order.email_folded, order.name_folded) if text]


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip()


def yen(text: str) -> int | None:
    """Return the amount that the text says, in yen, or None if it is no amount."""
    try:
        return YenField().clean(text)
    except forms.ValidationError:
        return None


@cache
def _reasons() -> dict[str, Refund.Reason]:
    """Map what may stand in the reason column to the reason: blank, Smartpay's code, and the label in each language."""
    words = {"": Refund.Reason.REQUESTED_BY_CUSTOMER}
    for reason in Refund.Reason:
        words[reason.value] = reason
        for language, _name in settings.LANGUAGES:
            with override(language):
                words[str(reason.label)] = reason
    return words


def _is_description(text: str) -> bool:
    try:
        DESCRIPTION.clean(text)
    except forms.ValidationError:
        return False
    return True


def _request(line: BulkLine) -> services.RefundRequest:
    assert line.payment_id is not None and line.amount is not None  # noqa: PT018, S101  (a constraint says so)
    return services.RefundRequest(
        request_id=line.request_id,
        payment_id=line.payment_id,
        amount=line.amount,
        reason=line.reason,
        description=DESCRIPTION.clean(line.description),
        memo="",
    )


def _ask(bulk: Bulk) -> None:
    """Request refunds in the order of the lines, AHEAD at a time, until the start or approval expires."""
    authorised_at = bulk.decided_at or bulk.started_at
    if authorised_at is None or authorised_at < waiting.expired_before():
        with _locked(bulk.pk):
            if lines := _leave_out(bulk.lines.filter(state=LineState.READY), Problem.EXPIRED):
                audit.record(None, "refund.requested", bulk, refused=True, lines=lines, why="expired")
    ready = bulk.lines.filter(state=LineState.READY)
    if not ready.exists():
        # The file does not wait for cases under review: they may last for days.
        # A refund waits for its own approval only if the limit was lowered after its file was started.
        if not _rows(bulk).filter(state__in=[*Refund.NEVER_SENT, *Refund.IN_FLIGHT]).exists():
            _finish(bulk)
        return
    # A refund that waits behind an unsettled one of its payment does not count, so it holds up no other payment. Those
    # that are 結果不明 do count: if one after the other becomes so, no more are requested.
    queued = _rows(bulk).filter(state__in=[Refund.State.QUEUED, Refund.State.SENDING])
    unknown = _rows(bulk).filter(state=Refund.State.UNKNOWN)
    under_way = queued.exclude(IS_BLOCKED).count() + unknown.count()
    for line in ready.exclude(IS_BLOCKED).order_by("number")[: max(0, AHEAD - under_way)]:
        try:
            _ask_for(bulk, line)
        except services.RefundUnsettled:
            return  # became unsettled just now: the lines of the payment wait and keep their order
        except services.RefundError as error:
            _refuse(bulk, line, PROBLEMS[type(error)])
        except PermissionDenied:
            _refuse(bulk, line, Problem.NOT_ENTITLED)
        else:
            BulkLine.objects.filter(pk=line.pk, state=LineState.READY).update(state=LineState.ASKED)


def _refuse(bulk: Bulk, line: BulkLine, problem: BulkLine.Problem) -> None:
    refused = BulkLine.objects.filter(pk=line.pk, state=LineState.READY)
    if refused.update(state=LineState.REFUSED, problem=problem):
        audit.record(None, "refund.requested", bulk, refused=True, line=line.number, why=str(problem))


def _ask_for(bulk: Bulk, line: BulkLine) -> None:
    approval = None
    if bulk.decided_by and bulk.decided_at:
        approval = services.Approval(by=bulk.decided_by, at=bulk.decided_at, note=bulk.decision_note)
    services.request_refund(
        _request(line),
        refundable=line.refundable or 0,
        by=bulk.uploaded_by,
        similar_reason=bulk.similar_reason if line.is_similar else "",
        bulk=bulk.pk,
        approval=approval,
        head_start=timedelta(0),
    )


def _finish(bulk: Bulk) -> None:
    with _locked(bulk.pk) as row:
        if row.state != Bulk.State.RUNNING:
            return
        row.state, row.ended_at = Bulk.State.DONE, clock.now()
        row.save(update_fields=["state", "ended_at"])
        audit.record(None, "bulk.done", row)

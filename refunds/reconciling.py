"""照合: compare the ledger with Smartpay's refunds, one Japanese day at a time. It reads and books; it never sends.

All of Smartpay's refunds are read first, through observe_refund() as in any sweep, so that a refund which a restored
database had lost is in the ledger again. Then two of our own tables are compared: the ledger, and the mirror as that
read left it. A refund belongs to the day of Smartpay's `createdAt`, or of its settlement if only the ledger has it.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from typing import Any, cast

import structlog
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.utils import timezone

from refunds import audit, clock, scanning, services, smartpay
from refunds.models import Difference, Payment, Reconciliation, Refund, SmartpayRefund
from refunds.spreadsheet import moment

log = structlog.get_logger(__name__)

Kind = Difference.Kind
DAYS = 8  # compared by schedule: a refund may be settled hours after its day, or fail later
LATELY = timedelta(days=1)
DUE_AT = time_of_day(4)  # in Japan; refunds sent before midnight are settled by then
OTHERS_SCAN_SECONDS = 5.0  # between two looks whether another process has ended its scan
OTHERS_SCAN_AT_MOST = timedelta(hours=1)
HEADING = [
    "day", "kind", "repaired", "refund", "smartpay_id", "payment", "order", "currency", "ours_amount",
    "theirs_amount", "ours_state", "theirs_status", "at",
]  # fmt: skip


def reconcile(first: date, last: date, *, client: smartpay.Client) -> list[Reconciliation]:
    """Read all of Smartpay's refunds, then compare the days from first to last, both included; return them in order.

    A day that was compared before is compared again. Safe to kill: the days compared so far are kept.
    Raises: smartpay.SmartpayError, with nothing compared.
    """
    read_at = _read_everything(client)
    days = [compare(first + timedelta(n), read_at=read_at) for n in range((last - first).days + 1)]
    told = {name: sum(getattr(day, name) for day in days) for name in ("equal", *Kind.values)}
    audit.record(None, "reconciliation.done", None, first=str(first), last=str(last), **told)
    return days


def reconcile_due() -> None:
    """Compare the last DAYS days, and earlier ones that were missed, once a day after DUE_AT.

    Raises: smartpay.SmartpayError, with nothing compared.
    """
    due = datetime.combine(timezone.localdate(clock.now()), DUE_AT, timezone.get_default_timezone())
    if clock.now() < due:
        due -= timedelta(days=1)
    if scanning.scanned_at() is None:
        return  # the first complete scan is left to the sweeps
    yesterday = due.date() - timedelta(days=1)
    if first := _first_to_compare(yesterday, due):
        reconcile(first, yesterday, client=smartpay.client())


def reread_lately() -> None:
    """Read each payment with a refund of the last day again: a refund may have been made elsewhere since.

    Raises: smartpay.SmartpayError if Smartpay can't be read; the next call reads them all.
    """
    since, client = clock.now() - LATELY, smartpay.client()
    ours = Refund.objects.filter(settled_at__gte=since).values_list("payment", flat=True)
    theirs = SmartpayRefund.objects.filter(created_at__gte=since).values_list("payment", flat=True)
    for payment_id in sorted({*ours, *theirs}):
        try:
            services.read_payment(payment_id, client=client)
        except smartpay.NotFound:
            log.warning("payment.not_found", payment=payment_id)


def _first_to_compare(last: date, due: datetime) -> date | None:
    """Return the first day up to `last` that is to be compared; None if there is none.

    A day is done if it was compared with a read that began after its end; for the last DAYS days, after `due`.
    """
    read_at = dict(Reconciliation.objects.filter(day__lte=last).values_list("day", "read_at"))
    lately = last - timedelta(days=DAYS - 1)
    day = min([lately, *read_at])
    while day <= last:
        _begins, ends = _span(day)
        if day not in read_at or read_at[day] < (ends if day < lately else due):
            return day
        day += timedelta(days=1)
    return None


def _read_everything(client: smartpay.Client) -> datetime:
    """Read the newest orders, since refunds may belong to them, and then all refunds; return when that scan began."""
    began = clock.now()
    scanning.sync(client, observe=services.observe_refund)
    while clock.now() < began + OTHERS_SCAN_AT_MOST:
        scanning.scan_refunds(client, observe=services.observe_refund)
        read_at = scanning.scanned_at()
        if read_at is not None and read_at >= began:
            return read_at
        time.sleep(OTHERS_SCAN_SECONDS)
    raise smartpay.Unclear("Another scan of the refunds never came to its end.")


def compare(day: date, *, read_at: datetime) -> Reconciliation:
    """Compare a day's rows of the ledger and of the mirror, after the complete scan that began at `read_at`."""
    found: list[Difference] = []
    counts: Counter[str] = Counter()
    theirs_total = ours_total = 0
    with transaction.atomic():
        for mirrored in _theirs(day, read_at).iterator():
            kind = _kind(mirrored)
            counts[kind or "equal"] += 1
            if mirrored.counts and mirrored.currency == "JPY":
                theirs_total += mirrored.amount
            ours = mirrored.ours
            if (
                ours
                and ours.state == Refund.State.SUCCEEDED
                and ours.smartpay_id == mirrored.pk
                and ours.currency == "JPY"
            ):
                ours_total += ours.amount
            if kind:
                found.append(_difference(kind, mirrored=mirrored, ours=ours, at=mirrored.created_at))
        for ours in _missing(day, read_at).iterator():
            counts[Kind.ONLY_OURS] += 1
            ours_total += ours.amount if ours.currency == "JPY" else 0
            found.append(
                _difference(Kind.ONLY_OURS, mirrored=None, ours=ours, at=cast(datetime, ours.settled_at))
            )
        compared, _new = Reconciliation.objects.update_or_create(
            day=day,
            defaults={
                "compared_at": clock.now(),
                "read_at": read_at,
                "theirs_total": theirs_total,
                "ours_total": ours_total,
                **{name: counts[name] for name in ("equal", *Kind.values)},
            },
        )
        compared.found.all().delete()
        _name_orders(found)
        for difference in found:
            difference.reconciliation = compared
        Difference.objects.bulk_create(found, batch_size=500)
    if counts[Kind.ONLY_OURS] or counts[Kind.DIFFERING]:
        # A refund made elsewhere is a difference too, but no reason for an alarm.
        log.error(
            "reconciliation.differs",
            alarm=True,
            day=str(day),
            only_ours=counts[Kind.ONLY_OURS],
            differing=counts[Kind.DIFFERING],
        )
    return compared


def _span(day: date) -> tuple[datetime, datetime]:
    """Return the day's beginning and end, midnight in Japan."""
    begins = datetime.combine(day, time_of_day(), timezone.get_default_timezone())
    return begins, begins + timedelta(days=1)


def _mirrored_since(read_at: datetime) -> QuerySet[SmartpayRefund]:
    """Return Smartpay's refunds that the scan showed, or that were read since."""
    return SmartpayRefund.objects.filter(read_at__gte=read_at)


def _theirs(day: date, read_at: datetime) -> QuerySet[SmartpayRefund]:
    """Return Smartpay's refunds of a day, without failed ones made elsewhere: these moved no money."""
    begins, ends = _span(day)
    return (
        _mirrored_since(read_at)
        .filter(created_at__gte=begins, created_at__lt=ends)
        .exclude(ours=None, status=SmartpayRefund.Status.FAILED)
        .select_related("ours")
        .order_by("created_at", "id")
    )


def _missing(day: date, read_at: datetime) -> QuerySet[Refund]:
    """Return the ledger's refunds that were settled on this day before the scan, and that Smartpay does not show."""
    begins, ends = _span(day)
    return (
        Refund.objects.filter(
            state=Refund.State.SUCCEEDED, settled_at__gte=begins, settled_at__lt=min(ends, read_at)
        )
        .exclude(Exists(_mirrored_since(read_at).filter(pk=OuterRef("smartpay_id"))))
        .order_by("settled_at", "id")
    )


def _kind(mirrored: SmartpayRefund) -> Difference.Kind | None:
    """Return how the ledger differs from what Smartpay shows; None if it does not."""
    ours = mirrored.ours
    if ours is None or ours.recovered:
        return Kind.ONLY_THEIRS
    if not mirrored.counts:
        return (
            Kind.DIFFERING
            if ours.state == Refund.State.SUCCEEDED and ours.smartpay_id == mirrored.pk
            else None
        )
    if mirrored.status not in ("", SmartpayRefund.Status.SUCCEEDED):
        return Kind.DIFFERING  # neither succeeded nor failed
    here = (ours.state, ours.smartpay_id, ours.payment_id, ours.amount, ours.currency)
    there = (Refund.State.SUCCEEDED, mirrored.pk, mirrored.payment_id, mirrored.amount, mirrored.currency)
    return None if here == there else Kind.DIFFERING


def _difference(
    kind: Difference.Kind, *, mirrored: SmartpayRefund | None, ours: Refund | None, at: datetime
) -> Difference:
    either = mirrored or ours
    assert either is not None  # noqa: S101  (one of the two differs)
    return Difference(
        kind=kind,
        repaired=ours is not None and ours.recovered,
        refund=ours,
        smartpay_id=(mirrored.pk if mirrored else ours and ours.smartpay_id) or "",
        payment_id=either.payment_id,
        currency=either.currency,
        ours_amount=ours.amount if ours else None,
        theirs_amount=mirrored.amount if mirrored else None,
        ours_state=ours.state if ours else "",
        theirs_status=mirrored.status if mirrored else "",
        at=at,
    )


def _name_orders(found: list[Difference]) -> None:
    """Fill in the order of each difference whose payment the mirror knows."""
    payments = {difference.payment_id for difference in found}
    orders = dict(Payment.objects.filter(pk__in=payments).values_list("pk", "order__order_id"))
    for difference in found:
        difference.order_id = orders.get(difference.payment_id, "")


def oldest_unsettled() -> Refund | None:
    """Return the ledger's oldest refund without an outcome; None if all have one."""
    return Refund.objects.open().order_by("requested_at", "id").first()


def rows(found: Iterable[Difference]) -> Iterator[list[Any]]:
    """Return the differences as rows of a table under HEADING."""
    for each in found:
        yield [
            each.reconciliation_id,
            each.kind,
            "yes" if each.repaired else "",
            each.refund_id,
            each.smartpay_id,
            each.payment_id,
            each.order_id,
            each.currency,
            each.ours_amount,
            each.theirs_amount,
            each.ours_state,
            each.theirs_status,
            moment(each.at),
        ]

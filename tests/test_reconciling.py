"""照合: what is equal, what only one side has, what differs; the command, the page, and that nothing is ever sent."""

import csv
import uuid
from datetime import UTC, date, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from dashboard.models import User
from refunds import clock, reconciling, scanning, smartpay
from refunds.models import AuditEntry, Difference, Reconciliation, Refund, SmartpayRefund
from tests.conftest import Clock, make_order, sign_in
from tests.sandbox import Sandbox
from tests.test_services import mirrored, refund

Kind = Difference.Kind
TOKYO = ZoneInfo("Asia/Tokyo")


@pytest.fixture
def seeded(db: None, sandbox: Sandbox) -> set[str]:
    """The ids of the refunds that Smartpay had before: made elsewhere, all of them."""
    return {each["id"] for each in sandbox.api("GET", "/refunds", params={"maxResults": 100}).json()["data"]}


def today() -> date:
    return timezone.localdate()


def compared() -> Reconciliation:
    """Today as reconcile finds it."""
    [day] = reconciling.reconcile(today(), today(), client=smartpay.client())
    return day


def found(seeded: set[str]) -> list[tuple[str, str, bool]]:
    """What differs beside what was there before: kind, Smartpay's id, whether it was repaired."""
    rows = Difference.objects.exclude(smartpay_id__in=seeded)
    return sorted(rows.values_list("kind", "smartpay_id", "repaired"))


def lose(sandbox: Sandbox, payment: Any, amount: int = 700) -> tuple[uuid.UUID, str]:
    """A refund of this tool that Smartpay has and the ledger, restored to an older state, has not."""
    key = uuid.uuid4()
    made = sandbox.refund(
        payment.pk,
        amount,
        idempotency_key=str(key),
        reference=str(key),
        metadata={"refund_dashboard_id": str(key)},
    )
    return key, made.json()["id"]


def test_refund_that_both_have_is_equal(seeded: set[str], sandbox: Sandbox, operator: User) -> None:
    refund(mirrored(sandbox, "refundable", min_amount=3000), operator)

    day = compared()

    assert found(seeded) == []
    assert (day.equal, day.ours_total) == (1, 1000)


def test_refund_made_elsewhere_is_only_theirs(seeded: set[str], sandbox: Sandbox) -> None:
    payment = mirrored(sandbox, "refundable", min_amount=3000)
    made = sandbox.refund_elsewhere(payment.pk, 500)

    compared()

    assert found(seeded) == [(Kind.ONLY_THEIRS, made["id"], False)]
    assert Difference.objects.get(smartpay_id=made["id"]).order_id == payment.order.order_id


def test_refund_that_the_ledger_lost_is_found_and_repaired_and_nothing_is_sent(
    seeded: set[str], sandbox: Sandbox
) -> None:
    payment = mirrored(sandbox, "refundable", min_amount=3000)
    key, smartpay_id = lose(sandbox, payment)
    sandbox.forget_requests()

    for _ in range(2):
        compared()

        assert found(seeded) == [(Kind.ONLY_THEIRS, smartpay_id, True)]
    row = Refund.objects.get(pk=key)
    assert (row.state, row.amount, row.recovered) == (Refund.State.SUCCEEDED, 700, True)
    assert sandbox.requests("POST") == []


def test_refund_that_smartpay_does_not_show_is_only_ours(
    seeded: set[str], sandbox: Sandbox, operator: User, caplog: Any
) -> None:
    made = refund(mirrored(sandbox, "refundable", min_amount=3000), operator)
    sandbox.reset()

    day = compared()

    assert found(seeded) == [(Kind.ONLY_OURS, made.smartpay_id, False)]
    assert day.ours_total == 1000
    assert [line.msg["event"] for line in caplog.records if line.levelname == "ERROR"] == [
        "reconciliation.differs"
    ]


@pytest.mark.parametrize("values", [{"amount": 999}, {"status": "failed"}, {"status": "reversed"}])
def test_refund_that_smartpay_shows_otherwise_differs(
    seeded: set[str], sandbox: Sandbox, operator: User, values: dict[str, Any]
) -> None:
    made = refund(mirrored(sandbox, "refundable", min_amount=3000), operator)
    sandbox.set(str(made.smartpay_id), **values)

    compared()

    assert found(seeded) == [(Kind.DIFFERING, made.smartpay_id, False)]


def test_refund_that_both_call_failed_is_equal(
    seeded: set[str], sandbox: Sandbox, operator: User, quick: None
) -> None:
    sandbox.go_silent()
    made = refund(mirrored(sandbox, "refundable", min_amount=3000), operator)
    [there] = [
        each
        for each in sandbox.api("GET", "/refunds", params={"maxResults": 100}).json()["data"]
        if each.get("metadata", {}).get("refund_dashboard_id") == str(made.pk)
    ]
    sandbox.set(there["id"], status="failed")

    day = compared()

    made.refresh_from_db()
    assert (made.state, found(seeded), day.equal) == (Refund.State.REJECTED, [], 1)


def test_day_is_japans(db: None) -> None:
    """23:59:59 and 0:00 of the next day, in Tokyo."""
    payment = make_order(5000).payments.get()
    read_at = clock.now()
    for number, at in enumerate(["2026-03-31T15:00:00", "2026-04-01T14:59:59", "2026-04-01T15:00:00"]):
        SmartpayRefund.objects.create(
            id=f"refund_test_{number}", payment=payment, amount=number + 1, currency="JPY", status="succeeded",
            created_at=datetime.fromisoformat(at).replace(tzinfo=UTC), read_at=read_at,
        )  # fmt: skip

    totals = [reconciling.compare(date(2026, 4, day), read_at=read_at).theirs_total for day in (1, 2)]

    assert totals == [1 + 2, 3]


def test_what_smartpay_no_longer_shows_is_not_theirs(db: None) -> None:
    payment = make_order(5000).payments.get()
    read_at = clock.now()
    SmartpayRefund.objects.create(
        id="refund_test_gone", payment=payment, amount=1, currency="JPY", status="succeeded",
        created_at=read_at, read_at=read_at - timedelta(days=1),
    )  # fmt: skip

    assert reconciling.compare(timezone.localdate(read_at), read_at=read_at).theirs_total == 0


# --- Once a day ---------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, settings: Any, sandbox: Sandbox) -> list[tuple[date, date]]:
    made: list[tuple[date, date]] = []

    def reconcile(first: date, last: date, **_options: Any) -> None:
        made.append((first, last))
        Reconciliation.objects.bulk_create(
            Reconciliation(
                day=first + timedelta(n), compared_at=clock.now(), read_at=clock.now(), equal=0, only_ours=0,
                only_theirs=0, differing=0, theirs_total=0, ours_total=0,
            )
            for n in range((last - first).days + 1)
            if not Reconciliation.objects.filter(day=first + timedelta(n)).exists()
        )  # fmt: skip
        Reconciliation.objects.filter(day__range=(first, last)).update(read_at=clock.now())

    monkeypatch.setattr(reconciling, "reconcile", reconcile)
    monkeypatch.setattr(scanning, "scanned_at", clock.now)
    return made


def test_payments_of_the_last_day_are_read_again_and_no_others(
    operator: User, sandbox: Sandbox, at: Clock
) -> None:
    old, lately = (mirrored(sandbox, "refundable", min_amount=2000, skip=skip) for skip in (0, 3))
    refund(old, operator, 100)
    at.advance(days=1, seconds=1)
    sandbox.advance(timedelta(days=1, seconds=1).total_seconds())
    refund(lately, operator, 100)
    made = sandbox.refund_elsewhere(lately.pk, 300)
    sandbox.forget_requests()

    reconciling.reread_lately()

    lately.refresh_from_db()
    assert (lately.refunded, lately.external) == (100, 300)
    assert {each["path"] for each in sandbox.requests("GET")} == {
        f"/v1/payments/{lately.pk}",
        f"/v1/refunds/{made['id']}",
    }


def test_it_is_due_once_a_day_after_four(db: None, at: Clock, calls: list[Any]) -> None:
    at.now = datetime(2026, 4, 10, 3, 0, tzinfo=TOKYO)
    for _ in range(4 * 6):  # until 7:00, as the job looks
        reconciling.reconcile_due()
        at.advance(minutes=10)

    assert calls == [(date(2026, 4, 1), date(2026, 4, 8)), (date(2026, 4, 2), date(2026, 4, 9))]


def test_days_that_were_missed_are_made_up_for(db: None, at: Clock, calls: list[Any]) -> None:
    at.now = datetime(2026, 4, 10, 5, 0, tzinfo=TOKYO)
    reconciling.reconcile_due()
    at.advance(days=20)

    reconciling.reconcile_due()

    assert calls[-1] == (date(2026, 4, 10), date(2026, 4, 29))


def test_one_day_that_somebody_compared_is_neither_the_week_nor_those_before_it(
    db: None, at: Clock, calls: list[Any]
) -> None:
    at.now = datetime(2026, 4, 10, 5, 0, tzinfo=TOKYO)
    reconciling.reconcile_due()
    at.advance(days=20)
    reconciling.reconcile(date(2026, 4, 29), date(2026, 4, 29), client=smartpay.client())

    for _turn in range(2):
        reconciling.reconcile_due()

    assert calls[2:] == [(date(2026, 4, 10), date(2026, 4, 29))]


def test_day_that_was_compared_before_its_end_is_compared_again(
    db: None, at: Clock, calls: list[Any]
) -> None:
    at.now = datetime(2026, 4, 10, 5, 0, tzinfo=TOKYO)
    reconciling.reconcile_due()
    at.now = datetime(2026, 4, 10, 12, 0, tzinfo=TOKYO)
    reconciling.reconcile(date(2026, 4, 10), date(2026, 4, 10), client=smartpay.client())
    at.advance(days=20)

    reconciling.reconcile_due()

    assert calls[-1] == (date(2026, 4, 10), date(2026, 4, 29))


def test_it_waits_until_something_was_read(
    db: None, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "scanned_at", lambda: None)

    reconciling.reconcile_due()

    assert calls == []


# --- The command --------------------------------------------------------------------------------------------


def command(*arguments: str) -> tuple[int, str]:
    told = StringIO()
    try:
        call_command("reconcile", *arguments, stdout=told)
    except CommandError as error:
        return error.returncode, f"{told.getvalue()}{error}"
    return 0, told.getvalue()


def test_command_ends_with_0_when_all_is_equal(db: None, sandbox: Sandbox, operator: User) -> None:
    refund(mirrored(sandbox, "refundable", min_amount=3000), operator)
    quiet = {
        each["createdAt"]
        for each in sandbox.api("GET", "/refunds", params={"maxResults": 100}).json()["data"]
    }
    day = today()
    while any(datetime.fromtimestamp(at / 1000, TOKYO).date() == day for at in quiet):
        day -= timedelta(days=1)

    code, told = command("--from", str(day), "--to", str(day))

    assert code == 0
    assert told.splitlines()[1].split() == [str(day), "0", "0", "0", "0", "0", "0"]


def test_command_ends_with_1_and_names_what_differs(
    seeded: set[str], sandbox: Sandbox, tmp_path: Path
) -> None:
    payment = mirrored(sandbox, "refundable", min_amount=3000)
    key, smartpay_id = lose(sandbox, payment)
    file = tmp_path / "differences.csv"

    code, told = command("--from", str(today()), "--csv", str(file))

    assert code == 1
    assert f"kind=only_theirs repaired=yes refund={key} smartpay_id={smartpay_id}" in told
    rows = list(csv.DictReader(file.read_text("utf-8-sig").splitlines()))
    [row] = [row for row in rows if row["smartpay_id"] not in seeded]
    assert (row["refund"], row["ours_amount"], row["theirs_amount"]) == (str(key), "700", "700")
    _code, printed = command("--from", str(today()), "--csv", "-")
    assert printed.startswith("\ufeffday,kind,repaired,")


@pytest.mark.parametrize(
    "arguments", [("--from", "4/1"), ("--to", "2999-01-01"), ("--from", "2026-04-02", "--to", "2026-04-01")]
)
def test_command_ends_with_2_for_no_span_of_days(
    db: None, sandbox: Sandbox, arguments: tuple[str, ...]
) -> None:
    assert command(*arguments)[0] == 2


def test_command_ends_with_2_when_smartpay_can_not_be_read(
    db: None, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "PAUSES", ())
    sandbox.fault("error", method="GET", path="/v1/refunds", times=None)

    code, told = command()

    assert (code, Reconciliation.objects.count()) == (2, 0)
    assert "nothing was compared" in told
    sandbox.clear_faults()


# --- The page -----------------------------------------------------------------------------------------------


def test_page_has_a_line_a_day_and_the_oldest_unsettled(
    seeded: set[str], sandbox: Sandbox, operator: User, approver: User, quick: None
) -> None:
    sandbox.go_silent(executed=False)
    unknown = refund(mirrored(sandbox, "refundable", min_amount=3000), operator)
    made = sandbox.refund_elsewhere(mirrored(sandbox, "refundable", min_amount=3000, skip=1).pk, 500)
    compared()
    browser = sign_in(approver)

    listed = browser.get("/reconciliation/").content.decode()
    shown = browser.get(f"/reconciliation/{today()}/").content.decode()

    assert unknown.state == Refund.State.UNKNOWN
    assert f"/refunds/{unknown.pk}/" in listed
    assert f"/reconciliation/{today()}/" in listed
    assert made["id"] in shown
    assert "このツール以外での返金" in shown
    assert list(
        AuditEntry.objects.filter(actor=approver, action="reconciliation.viewed")
        .order_by("pk")
        .values_list("object_id", flat=True)
    ) == ["", str(today())]


def test_page_asks_the_same_number_of_queries_for_one_day_and_for_many(db: None, auditor: User) -> None:
    browser = sign_in(auditor)
    asked = []
    for days in (1, 40):
        for n in range(days):
            Reconciliation.objects.get_or_create(
                day=date(2026, 1, 1) + timedelta(n),
                defaults=dict.fromkeys(
                    ["equal", "only_ours", "only_theirs", "differing", "theirs_total", "ours_total"], n
                ) | {"compared_at": clock.now(), "read_at": clock.now()},
            )  # fmt: skip
        with CaptureQueriesContext(connection) as queries:
            page = browser.get("/reconciliation/").content.decode()
        asked.append(len(queries))

    assert asked[0] == asked[1]
    assert page.count('<a href="/reconciliation/2026-') == 31
    older = browser.get("/reconciliation/?before=2026-01-10").content.decode()
    assert older.count('<a href="/reconciliation/2026-') == 9


@pytest.mark.parametrize("address", ["2026-01-01", "2026-13-01", "today"])
def test_day_that_was_not_compared_is_not_found(auditor: User, address: str) -> None:
    assert sign_in(auditor).get(f"/reconciliation/{address}/").status_code == 404

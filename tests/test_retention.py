"""Personal data whose time is over: it goes, it does not come back, and the money and the trail stay."""

from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.forms.models import model_to_dict

from dashboard.models import User
from refunds import audit, retention, scanning, search, services, smartpay
from refunds.models import AuditEntry, Fragment, Order, Refund, Search
from tests.conftest import make_order, sign_in
from tests.sandbox import Sandbox
from tests.test_services import mirrored, refund

YEAR = 365 * 86400  # seconds
PERSONAL = [
    "customer_source", "family_name", "given_name", "family_kana", "given_kana", "email", "family_folded",
    "given_folded", "name_folded", "name_turned_folded", "family_kana_folded", "given_kana_folded", "kana_folded",
    "kana_turned_folded", "email_folded",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _two_years(settings: Any) -> None:
    settings.RETENTION_DAYS = 730


def of(order: Order) -> dict[str, Any]:
    return model_to_dict(Order.objects.get(pk=order.pk))


def entries() -> list[dict[str, Any]]:
    return list(AuditEntry.objects.filter(action="personal_data.removed").values_list("data", flat=True))


def kept(order_age: int, settings: Any) -> Order:
    """An order that was read with its customer while that was still kept."""
    settings.RETENTION_DAYS = None
    order = make_order(5000, age=order_age)
    settings.RETENTION_DAYS = 730
    return order


def test_names_and_mails_of_old_orders_go_and_everything_else_stays(db: None, settings: Any) -> None:
    old, young = kept(3 * YEAR, settings), make_order(5000, age=YEAR)
    before, of_young = of(old), of(young)

    assert retention.prune() == retention.Removed(orders=1, searches=0)

    after = of(old)
    assert {name: after[name] for name in PERSONAL} == dict.fromkeys(PERSONAL, "")
    assert {name for name in before if before[name] != after[name]} <= set(PERSONAL)
    assert of(young) == of_young
    assert old.payments.get().captured == 5000
    [entry] = entries()
    assert entry["orders"] == 1
    assert "田中" not in str(entry)
    assert [found.key for found in search.find("田中").orders] == [young.key]
    assert set(Fragment.objects.values_list("key", flat=True)) == {young.key}
    [found] = search.find(old.order_id, filters=search.Filters(status="any")).orders
    assert found.key == old.key


def test_later_reading_does_not_bring_them_back(db: None, sandbox: Sandbox, settings: Any) -> None:
    client = smartpay.client()
    scanning.sync(client, observe=services.observe_refund)
    named = Order.objects.exclude(customer_source="")
    assert named.exists()
    settings.RETENTION_DAYS = 1
    retention.prune()
    yesterday = datetime.now(UTC) - timedelta(days=1)

    scanning.sync(client, full=True, observe=services.observe_refund)

    assert not named.filter(created_at__lt=yesterday).exists()


def test_order_that_is_first_read_when_its_time_is_over_has_no_customer(db: None) -> None:
    assert make_order(5000, age=3 * YEAR).customer_source == ""


def test_dry_run_tells_and_removes_nothing(db: None, operator: User, settings: Any) -> None:
    old = kept(3 * YEAR, settings)
    typed = Search.objects.create(
        person=operator, text="田中", created_at=datetime.now(UTC) - timedelta(days=31)
    )
    before, told = of(old), StringIO()

    call_command("prune_personal_data", "--dry-run", stdout=told)

    assert told.getvalue() == "RETENTION_DAYS=730 to be removed: customers of 1 orders, 1 searches\n"
    assert (of(old), entries()) == (before, [])
    assert Search.objects.filter(pk=typed.pk).exists()
    call_command("prune_personal_data", stdout=told)
    assert told.getvalue().endswith("removed: customers of 1 orders, 1 searches\n")


def test_searches_go_after_a_month(db: None, operator: User, settings: Any) -> None:
    settings.RETENTION_DAYS = None
    now = datetime.now(UTC)
    for days in (29, 31):
        Search.objects.create(person=operator, text=f"{days}", created_at=now - timedelta(days=days))

    retention.prune()

    assert list(Search.objects.values_list("text", flat=True)) == ["29"]
    assert entries() == [{"searches": 1}]


def test_nothing_goes_without_its_entry_on_the_trail(
    db: None, operator: User, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = kept(3 * YEAR, settings)
    before = of(old)
    Search.objects.create(person=operator, text="田中", created_at=datetime.now(UTC) - timedelta(days=31))

    def die(*_told: Any, **_more: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as dying:
        dying.setattr(audit, "record", die)
        for _time in range(2):
            with pytest.raises(SystemExit):
                retention.prune()
            assert of(old) == before
            settings.RETENTION_DAYS = None  # only searches are left to be removed
    assert Search.objects.count() == 1


def test_nothing_goes_without_a_number_of_days(db: None, settings: Any) -> None:
    old = kept(3 * YEAR, settings)
    settings.RETENTION_DAYS = None
    before = of(old)

    assert retention.prune() == retention.Removed(0, 0)
    assert of(old) == before


def test_order_without_its_customer_can_still_be_refunded(
    sandbox: Sandbox, operator: User, settings: Any
) -> None:
    payment = mirrored(sandbox, "refundable", min_amount=3000)
    settings.RETENTION_DAYS = 0
    retention.prune()

    made = refund(payment, operator)
    page = sign_in(operator).get(f"/orders/{payment.order.order_id}/").content.decode()

    assert made.state == Refund.State.SUCCEEDED
    assert "お名前の登録なし" in page

"""Who did what to what: the entry as it is kept, in the transaction of what it tells of, and nothing personal in it."""

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser
from django.contrib.auth.signals import user_login_failed
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory
from django.urls import reverse
from hypothesis import HealthCheck, given, settings, strategies

from dashboard.models import User
from refunds import audit, clock, services
from refunds.models import AuditEntry, Order, Payment, Refund
from tests.conftest import Clock, make_order, make_user, sign_in

NOW = datetime(2026, 3, 9, 3, 0, 0, 250_000, tzinfo=UTC)
EMPTY = {"ip": None, "session": "", "request_id": ""}


@pytest.fixture
def request_of(payment: Payment, settings: Any) -> services.RefundRequest:
    """A request for ¥1,000; it waits for approval, so that nothing is sent."""
    settings.REFUND_APPROVAL_ABOVE = 0
    return services.RefundRequest(
        request_id=uuid.uuid4(),
        payment_id=payment.pk,
        amount=1000,
        reason="requested_by_customer",
        description="金木犀の香り",
        memo="銀杏並木で",
    )


def kept() -> AuditEntry:
    return AuditEntry.objects.latest("id")


# --- What is kept -------------------------------------------------------------------------------------------


def test_entry_says_who_did_what_to_what_and_when(payment: Payment, approver: User, at: Clock) -> None:
    at.now = NOW

    audit.record(approver, "order.viewed", payment.order, amount=1000, payments=[payment.pk])

    entry = kept()
    assert entry.text == (
        f'{{"action":"order.viewed","actor":{approver.pk},"actor_name":"承認 一郎","at":"2026-03-09T03:00:00.250000+00:00",'
        f'"data":{{"amount":1000,"payments":["{payment.pk}"]}},"ip":null,'
        f'"object_id":"{payment.order.order_id}","object_type":"order","order_id":"{payment.order.order_id}",'
        f'"outcome":"done","request_id":"","roles":"approver","session":""}}'
    )
    assert (entry.actor, entry.roles, entry.at, entry.outcome) == (approver, "approver", NOW, "done")
    assert (entry.seal, entry.previous_seal) == (None, None)


def test_order_is_found_from_whatever_belongs_to_it(
    payment: Payment, operator: User, request_of: services.RefundRequest
) -> None:
    refund = services.request_refund(request_of, refundable=payment.refundable(), by=operator)
    order = payment.order
    objects = {
        order: ("order", order.order_id, order.order_id),
        payment: ("payment", payment.pk, order.order_id),
        refund: ("refund", str(refund.pk), order.order_id),
        operator: ("user", str(operator.pk), ""),
        None: ("", "", ""),
    }

    for obj, expected in objects.items():
        audit.record(operator, "refund.viewed", obj)
        assert (kept().object_type, kept().object_id, kept().order_id) == expected
    audit.record(operator, "order.viewed", None, refused=True, order_id="order_test_unknown")
    assert (kept().order_id, kept().outcome, json.loads(kept().text)["outcome"]) == (
        "order_test_unknown", "refused", "refused",
    )  # fmt: skip


@pytest.mark.parametrize("nobody", [None, AnonymousUser()])
def test_machine_and_strangers_are_nobody(db: None, nobody: Any) -> None:
    audit.record(nobody, "sends.stopped", None)

    assert (kept().actor, kept().roles, json.loads(kept().text)["actor"]) == (None, "", None)


def test_roles_are_those_at_that_time(db: None) -> None:
    person = make_user("operator")
    audit.record(person, "refunds.listed", None)
    person.groups.clear()

    audit.record(User.objects.get(pk=person.pk), "refunds.listed", None)

    assert list(AuditEntry.objects.order_by("id").values_list("roles", flat=True)) == ["operator", ""]


def test_person_with_every_role_fits(db: None) -> None:
    person = make_user("operator")
    for role in ("viewer", "approver", "auditor"):
        person.groups.add(*make_user(role).groups.all())

    audit.record(person, "refunds.listed", None)

    assert kept().roles == "approver,auditor,operator,viewer"


def test_what_is_done_has_a_name_that_is_known(db: None) -> None:
    with pytest.raises(ValueError, match=r"refund\.paid"):
        audit.record(None, "refund.paid", None)

    assert not AuditEntry.objects.exists()


JSON = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers(-(2**63), 2**63)
    | strategies.text(strategies.characters(), max_size=20),
    lambda inner: (
        strategies.lists(inner, max_size=3)
        | strategies.dictionaries(strategies.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    data=strategies.dictionaries(strategies.text(min_size=1, max_size=8).map(lambda name: f"_{name}"), JSON)
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_text_that_is_sealed_says_what_the_columns_say(db: None, data: dict[str, Any]) -> None:
    """Read back from the database, an entry makes the same text again: a change of any column would show."""
    with transaction.atomic():
        made = audit.record(None, "refunds.listed", None, order_id="あ\0い\ud800" * 40, **data)

        entry = AuditEntry.objects.get(pk=made.pk)
        assert entry.text == made.text == audit.canonical(entry)
        assert json.loads(entry.text)["data"] == entry.data


def test_changed_column_shows(payment: Payment, operator: User) -> None:
    made = audit.record(operator, "order.viewed", payment.order, amount=1)
    others: dict[str, Any] = {
        "at": NOW,
        "actor": None,
        "actor_name": "x",
        "roles": "x",
        "action": "order.listed",
        "outcome": "refused",
        "object_type": "x",
        "object_id": "x",
        "order_id": "x",
        "data": {"amount": 2},
        "ip": "192.0.2.1",
        "session": "x",
        "request_id": "x",
    }
    assert others.keys() | {"id", "text", "seal", "previous_seal"} == {
        field.name for field in AuditEntry._meta.concrete_fields
    }

    for name, other in others.items():
        entry = AuditEntry.objects.get(pk=made.pk)
        setattr(entry, name, other)
        assert audit.canonical(entry) != entry.text, name


def test_hash_tells_texts_apart_and_gives_none_away(settings: Any) -> None:
    first = audit.keyed_hash("session")
    settings.SECRET_KEY = "another-secret-of-the-tests"

    assert first != audit.keyed_hash("session") != audit.keyed_hash("Session")
    assert len(first) == 64


# --- Together with what it tells of -------------------------------------------------------------------------


def test_entry_goes_where_its_change_goes(payment: Payment, operator: User) -> None:
    with transaction.atomic():
        audit.record(operator, "order.viewed", payment.order)
        transaction.set_rollback(True)

    assert not AuditEntry.objects.exists()


def test_no_change_without_its_entry(
    payment: Payment, operator: User, request_of: services.RefundRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(audit, "_append", full)
    with pytest.raises(OSError, match="no space left"):
        services.request_refund(request_of, refundable=payment.refundable(), by=operator)

    payment.refresh_from_db()
    assert (Refund.objects.count(), payment.reserved) == (0, 0)


def test_refused_request_leaves_no_trace_of_a_request(
    payment: Payment, operator: User, request_of: services.RefundRequest
) -> None:
    with pytest.raises(services.BalanceMoved):
        services.request_refund(request_of, refundable=payment.refundable() + 1, by=operator)

    assert not AuditEntry.objects.filter(action="refund.requested").exists()


# --- Signing in and out -------------------------------------------------------------------------------------


def test_signing_in_and_out_are_entries_of_the_person(operator: User) -> None:
    browser = sign_in(operator)
    browser.logout()

    assert list(AuditEntry.objects.order_by("id").values_list("action", "actor", "object_id", "outcome")) == [
        ("person.signed_in", operator.pk, str(operator.pk), "done"),
        ("person.signed_out", operator.pk, str(operator.pk), "done"),
    ]


def test_leaving_without_having_come_is_no_entry(db: None) -> None:
    Client().logout()

    assert not AuditEntry.objects.exists()


def test_refused_sign_in_is_an_entry_of_nobody_with_its_reason_alone(db: None) -> None:
    credentials = {"reason": "no_role" * 40, "nonce": "canary", "username": "canary"}

    user_login_failed.send(sender=None, credentials=credentials, request=None)

    entry = kept()
    assert (entry.action, entry.actor, entry.outcome) == ("person.signed_in", None, "refused")
    assert entry.data == {"reason": ("no_role" * 40)[:80]}
    assert "canary" not in entry.text


# --- Where a request came from ------------------------------------------------------------------------------


def test_entries_of_a_request_tell_where_it_came_from(operator: User, approver: User) -> None:
    seen = []
    for person, address in ((operator, "192.0.2.7"), (approver, "2001:db8::7")):
        browser = sign_in(person)
        for _time in range(2):
            page = browser.get(reverse("refunds:refund_list"), REMOTE_ADDR=address)
            entry = AuditEntry.objects.filter(action="refunds.listed").latest("id")
            assert (entry.actor, entry.ip, entry.request_id) == (person, address, page["X-Request-Id"])
            assert entry.session == audit.keyed_hash(browser.session.session_key or "")[:16]
            assert str(browser.session.session_key) not in entry.text
            assert audit.canonical(entry) == entry.text
            seen.append((entry.request_id, entry.session))

    assert len({request_id for request_id, _session in seen}) == 4
    assert len({session for _request_id, session in seen}) == 2


def test_what_no_request_did_comes_from_nowhere(operator: User) -> None:
    sign_in(operator).get(reverse("refunds:refund_list"), REMOTE_ADDR="192.0.2.7")

    audit.record(None, "sends.stopped", None)

    assert {name: getattr(kept(), name) for name in EMPTY} == EMPTY


@pytest.mark.parametrize(
    ("address", "ip"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:0DB8:0::7", "2001:db8::7"),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.7"),
        ("fe80::1%eth0", "fe80::1"),
        ("", None),
        ("unix:", None),
        ("192.0.2.7, 192.0.2.8", None),
    ],
)
def test_address_is_kept_in_the_one_form_of_both_databases(db: None, address: str, ip: str | None) -> None:
    through(lambda: audit.record(None, "refunds.listed", None), REMOTE_ADDR=address)

    assert kept().ip == ip
    assert audit.canonical(kept()) == kept().text


def test_request_that_fails_is_over_as_well(db: None) -> None:
    def fail() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        through(fail, REMOTE_ADDR="192.0.2.7")

    audit.record(None, "sends.stopped", None)
    assert {name: getattr(kept(), name) for name in EMPTY} == EMPTY


def test_page_that_was_refused_is_an_entry_of_who_tried(viewer: User, order: Order) -> None:
    address = reverse("refunds:refund_form", args=[order.order_id])

    assert sign_in(viewer).get(f"{address}?q=canary").status_code == 403

    entry = kept()
    assert (entry.actor, entry.action, entry.outcome) == (viewer, "page.refused", "refused")
    assert entry.data == {"method": "GET", "path": address}


def test_other_faults_and_strangers_are_no_entry(viewer: User) -> None:
    site = audit.RequestContext(lambda request: HttpResponse())
    for person, fault in ((viewer, ValueError()), (AnonymousUser(), PermissionDenied())):
        request = RequestFactory().get("/")
        request.user = person
        site.process_exception(request, fault)

    assert not AuditEntry.objects.exists()


def through(act: Any, **environ: str) -> None:
    """Do something inside a request of nobody."""

    def respond(request: HttpRequest) -> HttpResponse:
        act()
        return HttpResponse()

    request = RequestFactory().get("/", **environ)  # type: ignore[arg-type]
    request.user = AnonymousUser()
    request.session = Client().session
    audit.RequestContext(respond)(request)


# --- Nothing personal ---------------------------------------------------------------------------------------

CANARIES = ("木犀", "金木犀", "kinmokusei", "銀杏", "合歓")


@pytest.fixture
def personal(db: None, settings: Any) -> Order:
    """An order of a customer, and texts, whose words can be told from all others."""
    settings.REFUND_APPROVAL_ABOVE = 0
    return make_order(5000, name="金木犀 合歓", email="kinmokusei@example.jp")


def test_neither_names_nor_mails_nor_what_was_typed_reach_the_trail_or_the_log(
    personal: Order, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """But the name of who did it, which is theirs on the trail alone."""
    person = make_user("operator", name="楓 並木")
    payment = personal.payments.get()
    browser = sign_in(person)
    browser.post(reverse("refunds:order_search"), {"q": "金木犀"}, follow=True)
    browser.post(reverse("refunds:order_search"), {"q": "kinmokusei@example.jp"}, follow=True)
    page = browser.get(reverse("refunds:order", args=[personal.order_id]))
    assert "金木犀" in page.content.decode()
    request = services.RefundRequest(uuid.uuid4(), payment.pk, 1000, "fraudulent", "金木犀", "銀杏に合歓")
    refund = services.request_refund(request, refundable=5000, by=person, similar_reason="金木犀だから")
    browser.get(reverse("refunds:refund", args=[refund.pk]))
    services.withdraw(refund.pk, by=person)
    browser.logout()

    texts = list(AuditEntry.objects.values_list("text", flat=True))
    assert len(texts) >= 7
    logged = "\n".join([caplog.text, *capfd.readouterr()])
    everything = "\n".join([*texts, logged])
    assert [word for word in CANARIES if word in everything] == []
    assert "楓" not in logged + "".join(each.replace('"actor_name":"楓 並木"', "") for each in texts)
    assert clock.now() - kept().at < timedelta(minutes=1)

"""Break-glass access while the identity provider is down: one code, one person, some minutes, on the trail."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.utils import timezone

from dashboard.models import BreakGlass, SessionIndex, User
from dashboard.sso import sessions
from refunds import services, smartpay
from refunds.models import AuditEntry, Payment, Refund
from tests.conftest import Clock
from tests.sandbox import Sandbox
from tests.test_services import ask, mirrored
from tests.test_sso_forms import confirm

pytestmark = pytest.mark.django_db

PAGE = "/break-glass/"


def issue(role: str = "operator", **options: Any) -> str:
    """Run `manage.py break_glass` and return the code that it prints."""
    printed = StringIO()
    told = {"name": "返金 花子", "role": role, "reason": "認証サービスの障害 INC-12"}
    call_command("break_glass", **(told | options), stdout=printed)
    return printed.getvalue().split()[-1]


def enter(client: Client, code: str) -> Any:
    return client.post(PAGE, {"code": code})


def test_code_lets_one_person_in_once(client: Client) -> None:
    code = issue()

    shown = client.get(PAGE)
    entered = enter(client, f" {code}\n")
    again = enter(Client(), code)

    assert 'name="code"' in shown.content.decode()
    assert (entered["Location"], again.status_code) == ("/", 404)
    assert "返金 花子(緊急用)" in client.get("/").content.decode()
    person = User.objects.get()
    assert (person.issuer, person.role_names, person.has_usable_password()) == (
        "break-glass",
        ["operator"],
        False,
    )
    assert code not in str(BreakGlass.objects.values())


@pytest.mark.parametrize("code", ["", "wrong", "\0", "返金"])
def test_wrong_code_lets_nobody_in_and_uses_nothing_up(client: Client, code: str) -> None:
    right = issue()

    told = enter(client, code)

    assert told.status_code == 403
    assert "コードが正しくないか、使用済みか、期限が切れています" in told.content.decode()
    assert "_auth_user_id" not in client.session
    assert enter(client, right).status_code == 302


def test_code_is_not_taken_from_an_address(client: Client) -> None:
    code = issue()

    client.get(PAGE, {"code": code})

    assert "_auth_user_id" not in client.session


def test_there_is_no_such_page_while_no_code_waits(client: Client, db: None) -> None:
    assert (client.get(PAGE).status_code, enter(client, "").status_code) == (404, 404)

    code = issue()
    BreakGlass.objects.update(expires_at=timezone.now())

    assert (client.get(PAGE).status_code, enter(client, code).status_code) == (404, 404)


def test_session_ends_with_its_minutes_and_asks_no_provider_before(client: Client) -> None:
    enter(client, issue(minutes=60))
    session = client.session
    session["seen_at"] -= 800  # within the idle limit
    session["signed_in_at"] -= 3000  # others were checked at the provider three times by now
    session.save()
    at_work = client.get("/orders/").status_code
    BreakGlass.objects.update(expires_at=timezone.now())

    over = client.get("/orders/")

    assert (at_work, over.status_code, over["Location"]) == (200, 302, "/sign-in/?next=/orders/")
    assert "緊急用サインインの期限が切れた" in client.get("/sign-in/").content.decode()
    assert "_auth_user_id" not in client.session


def test_session_that_rests_ends_as_any_other(client: Client, settings: Any) -> None:
    enter(client, issue(minutes=60))
    session = client.session
    session["seen_at"] -= settings.SSO_IDLE_SECONDS + 1
    session.save()

    assert client.get("/orders/")["Location"] == "/sign-in/?next=/orders/"


def test_shell_ends_them_all_at_once(client: Client) -> None:
    enter(client, issue())
    unused = issue("auditor")

    call_command("break_glass", end=True, reason="復旧したため", stdout=StringIO())

    assert client.get("/orders/")["Location"] == "/sign-in/?next=/orders/"
    assert enter(Client(), unused).status_code == 404
    assert not SessionIndex.objects.exists()
    ended = AuditEntry.objects.get(action="break_glass.ended")
    assert (ended.data["ended"], ended.data["reason"]) == (2, "復旧したため")


def test_what_they_asked_for_is_not_sent_after_the_end(client: Client, sandbox: Sandbox, at: Clock) -> None:
    payment: Payment = mirrored(sandbox, "refundable", min_amount=2000)
    enter(client, issue())
    person = User.objects.get()
    made = services.request_refund(ask(payment), refundable=payment.refundable(), by=person)

    call_command("break_glass", end=True, reason="復旧したため", stdout=StringIO())
    at.advance(seconds=6)
    services.settle_due(client=smartpay.client())

    made.refresh_from_db()
    assert (made.state, made.cancelled_because) == (Refund.State.CANCELLED, Refund.Cancelled.ENTITLEMENT)
    assert not sandbox.requests("POST", "/v1/refunds")


def test_roles_end_with_the_minutes(client: Client) -> None:
    issue()
    over = BreakGlass.objects.get()
    BreakGlass.objects.update(expires_at=timezone.now())
    issue("auditor")

    sessions.prune()

    assert over.user.role_names == []
    assert [person.role_names for person in User.objects.filter(is_staff=True)] == [["auditor"]]


def test_it_is_on_the_trail_and_raises_an_alarm(client: Client, capsys: Any, caplog: Any) -> None:
    enter(client, issue(minutes=20))
    enter(client, "wrong")

    person = User.objects.get()
    issued, entered = AuditEntry.objects.order_by("id")
    assert (issued.action, issued.object_id, issued.actor) == ("break_glass.issued", str(person.pk), None)
    assert {name: issued.data[name] for name in ("role", "minutes", "reason")} == {
        "role": "operator",
        "minutes": 20,
        "reason": "認証サービスの障害 INC-12",
    }
    assert (entered.action, entered.actor, entered.roles) == ("person.signed_in", person, "operator")
    assert "花子" not in issued.text
    told = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    alarms = {each["event"] for each in told if each.get("alarm")}
    assert {"break_glass.issued", "break_glass.used"} <= alarms
    assert "花子" not in json.dumps(told, ensure_ascii=False, default=str)


@pytest.mark.parametrize(
    "wrong",
    [{"role": "approver"}, {"role": "admin"}, {"minutes": 61}, {"minutes": 0}, {"minutes": -5}, {"name": ""}],
    ids=str,
)
def test_nobody_is_let_in_for_longer_or_as_more(db: None, wrong: dict[str, Any]) -> None:
    with pytest.raises(CommandError):
        issue(**wrong)

    assert not User.objects.exists()


def test_small_refund_can_be_made_but_none_that_wants_a_second_person(
    client: Client, sandbox: Sandbox, settings: Any
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 500
    payment: Payment = mirrored(sandbox, "refundable", min_amount=2000)
    enter(client, issue())

    told = client.get(confirm(client, payment, amount="501")["Location"])
    asked = Refund.objects.exists()
    confirm(client, payment, amount="500")

    assert (told.status_code, asked) == (403, False)
    assert "<h1>緊急用サインインではこの操作はできません</h1>" in told.content.decode()
    assert Refund.objects.get().state == Refund.State.SUCCEEDED
    assert client.get("/approvals/").status_code == 403


def test_signing_out_asks_no_provider(client: Client) -> None:
    enter(client, issue())

    assert client.post("/oidc/logout/")["Location"] == "/signed-out/"
    assert client.get("/orders/")["Location"] == "/sign-in/?next=/orders/"


def test_auditor_reads_the_trail(client: Client) -> None:
    enter(client, issue("auditor"))

    assert client.get("/admin/refunds/auditentry/").status_code == 200


@pytest.mark.postgresql  # SQLite in memory has one connection, so there is no race
@pytest.mark.django_db(transaction=True)
def test_of_two_at_once_one_is_let_in() -> None:
    code, together = issue(), threading.Barrier(4)

    def arrive(_number: int) -> int:
        try:
            together.wait(5)
            return int(enter(Client(), code).status_code)
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        answers = sorted(pool.map(arrive, range(4)))

    assert answers.count(302) == 1
    assert BreakGlass.objects.get().expires_at < timezone.now() + timedelta(minutes=31)

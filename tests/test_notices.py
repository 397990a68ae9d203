"""An outcome found out is mailed once, to whoever asked, with nothing of the customer; and shown on their start page."""

from datetime import UTC, datetime
from typing import Any

import pytest
from django.core import mail

from dashboard.models import User
from refunds import notices, services
from refunds.models import Attempt, Notice, Payment, Refund
from refunds.services import sending
from refunds.services.states import NO_LEASE
from scripts.postgres import free_port
from tests.conftest import Clock, sign_in
from tests.sandbox import Sandbox
from tests.test_services import ask, mirrored, refund, work

NOT_CLEAR: dict[str, dict[str, Any]] = {
    "html": {},
    "reset": {"executed": False},
    "rate_limited": {},
    "conflict": {},
    "forbidden": {},
}


@pytest.fixture
def mails(settings: Any) -> Any:
    settings.MAILS, settings.EMAIL_FROM, settings.SITE_URL = True, "refunds@shop.example", "https://r.example"
    return mail


@pytest.fixture
def found_out(operator: User, sandbox: Sandbox) -> Refund:
    """A refund that was 結果不明 and is known now."""
    operator.email = "hanako@shop.example"
    operator.save()
    payment: Payment = mirrored(sandbox, "refundable", min_amount=2000)
    sandbox.fault("html", executed=True)
    made = refund(payment, operator, 100)
    assert made.state == Refund.State.UNKNOWN
    assert made.attempts.get().outcome == Attempt.Outcome.AMBIGUOUS
    # As the machine leaves it; how it finds out is tested in test_services.py.
    Refund.objects.filter(pk=made.pk).update(
        state=Refund.State.SUCCEEDED, smartpay_id="refund_test_1", settled_at=datetime.now(tz=UTC)
    )
    return made


def test_outcome_is_mailed_once_with_a_link_and_nothing_else(mails: Any, found_out: Refund) -> None:
    assert (notices.send_due(), notices.send_due()) == (1, 0)

    [sent] = mails.outbox
    assert sent.to == ["hanako@shop.example"]
    assert sent.body.endswith(f"\n\nhttps://r.example/refunds/{found_out.pk}/\n")
    order = found_out.payment.order
    said = sent.subject + sent.body
    assert not any(
        each in said for each in filter(None, (order.order_id, order.customer_name, order.email, "¥"))
    )


def test_nothing_is_mailed_while_unknown_or_where_no_mail_is_set_up(
    found_out: Refund, mails: Any, settings: Any
) -> None:
    settings.MAILS = False
    assert notices.send_due() == 0
    assert not Notice.objects.exists()


def test_mail_that_fails_is_not_sent_again(mails: Any, found_out: Refund, settings: Any) -> None:
    smtp = "django.core.mail.backends.smtp.EmailBackend"
    settings.MAILERS = {"default": {"BACKEND": smtp, "OPTIONS": {"host": "127.0.0.1", "port": free_port()}}}
    assert notices.send_due() == 1
    assert (Notice.objects.count(), notices.send_due()) == (1, 0)


@pytest.mark.parametrize("fault", ["the sender died", *NOT_CLEAR])
def test_every_refund_that_was_unknown_is_told(
    db: None, operator: User, sandbox: Sandbox, at: Clock, fault: str
) -> None:
    payment: Payment = mirrored(sandbox, "refundable", min_amount=2000)
    if fault == "the sender died":
        made = services.request_refund(ask(payment, 100), refundable=payment.refundable(), by=operator)
        sending.begin_attempt(made.pk, owner=NO_LEASE)
    else:
        sandbox.fault(fault, **NOT_CLEAR[fault])
        made = refund(payment, operator, 100)
        assert made.state == Refund.State.UNKNOWN
    sandbox.clear_faults()
    assert made not in notices.found_out(notices.SHOWN)

    for _turn in range(3):
        at.advance(hours=1)
        work()

    made.refresh_from_db()
    assert made.state == Refund.State.SUCCEEDED
    assert made in notices.found_out(notices.SHOWN)


def test_refund_that_was_clear_at_once_is_no_news(db: None, operator: User, sandbox: Sandbox) -> None:
    payment: Payment = mirrored(sandbox, "refundable", min_amount=2000)
    made = [refund(payment, operator, 100)]
    sandbox.fault("status_failed")
    made.append(refund(payment, operator, 100, similar_reason="x"))
    sandbox.refund_elsewhere(payment.pk, payment.captured - 100)
    made.append(refund(payment, operator, 100, similar_reason="x"))
    outcomes = [each.attempts.get().outcome for each in made]
    assert outcomes == [Attempt.Outcome.EXECUTED, Attempt.Outcome.FAILED, Attempt.Outcome.REFUSED]

    assert list(notices.found_out(notices.SHOWN)) == []


def test_start_page_tells_what_was_found_out(found_out: Refund, operator: User, approver: User) -> None:
    assert str(found_out.pk) in sign_in(operator).get("/").content.decode()
    assert str(found_out.pk) not in sign_in(approver).get("/").content.decode()

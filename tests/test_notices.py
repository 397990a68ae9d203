"""An outcome found out is mailed once, to whoever asked, with nothing of the customer; and shown on their start page."""

from datetime import UTC, datetime
from typing import Any

import pytest
from django.core import mail

from dashboard.models import User
from refunds import notices
from refunds.models import Attempt, Notice, Payment, Refund
from scripts.postgres import free_port
from tests.conftest import sign_in
from tests.sandbox import Sandbox
from tests.test_services import mirrored, refund


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
    # As the machine leaves it; how it finds out is test_settling's.
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


def test_start_page_tells_what_was_found_out(found_out: Refund, operator: User, approver: User) -> None:
    assert str(found_out.pk) in sign_in(operator).get("/").content.decode()
    assert str(found_out.pk) not in sign_in(approver).get("/").content.decode()

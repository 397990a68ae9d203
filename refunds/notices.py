"""Tell the requester of a refund that was 結果不明 that its outcome is known: on their start page, and by mail."""

from datetime import timedelta

import structlog
from django.conf import settings
from django.core.mail import EmailMessage
from django.db.models import Exists, OuterRef, QuerySet
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import override

from refunds import clock
from refunds.models import Attempt, Notice, Refund

SHOWN = timedelta(hours=24)
MAILED = timedelta(hours=1)  # older outcomes are not mailed, for instance when mail is set up later
BATCH = 20
# Answers that settle a refund or send it to review. After any other answer, or if the sender died, it was 結果不明.
CLEAR = (
    Attempt.Outcome.EXECUTED,
    Attempt.Outcome.FAILED,
    Attempt.Outcome.REFUSED,
    Attempt.Outcome.CONTRADICTION,
)

log = structlog.get_logger(__name__)


def found_out(since: timedelta) -> QuerySet[Refund]:
    """Return the refunds settled within this time whose outcome was unknown at first, the latest first."""
    unclear = Attempt.objects.filter(refund=OuterRef("pk")).exclude(outcome__in=CLEAR)
    settled = Refund.objects.filter(settled_at__gte=clock.now() - since).exclude(state__in=Refund.RESERVING)
    return settled.filter(Exists(unclear)).order_by("-settled_at")


def send_due() -> int:
    """Mail the outcomes that were found out and not mailed yet; return how many mails were tried.

    The first worker commits the notice's row before the mail leaves. So a mail may be lost, but is never sent twice.
    """
    if not settings.MAILS:
        return 0
    sent = 0
    due = found_out(MAILED).filter(notice=None, recovered=False).exclude(requested_by__email="")
    for refund in due.select_related("requested_by")[:BATCH]:
        _notice, is_mine = Notice.objects.get_or_create(refund=refund, defaults={"at": clock.now()})
        if is_mine:
            _mail(refund)
            sent += 1
    return sent


def _mail(refund: Refund) -> None:
    """Send one mail that there is an outcome, with a link to it. It holds no amount, no customer and no outcome."""
    link = settings.SITE_URL + reverse("refunds:refund", args=[refund.pk])
    with override("ja"):
        words = _("結果不明だった返金の結果が確定しました。次の画面で確認してください。")
        subject = _("返金の結果が確定しました")
    try:
        EmailMessage(subject, f"{words}\n\n{link}\n", settings.EMAIL_FROM, [refund.requested_by.email]).send()
    except OSError as error:  # smtplib's errors are OSErrors; the start page still shows the outcome
        log.warning("notice.not_mailed", refund=str(refund.pk), error=type(error).__name__)

"""What was read at Smartpay: the refunds that it shows, its events, and how far its lists were read."""

from typing import Self

from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from refunds.models.ledger import Refund
from refunds.models.orders import BINARY, Payment


class SmartpayRefundQuerySet(models.QuerySet["SmartpayRefund"]):
    def counting(self) -> Self:
        """Return those whose amount is gone: every status but "failed", the unknown ones included."""
        return self.exclude(status=SmartpayRefund.Status.FAILED)

    def beside_the_ledger(self) -> Self:
        """Return those that no row of the ledger accounts for.

        They were made elsewhere, are a further refund of a row, or belong to a row that ended without a refund.
        count_external() in mirror.py counts the same ones.
        """
        further = Q(ours__smartpay_id__isnull=False) & ~Q(ours__smartpay_id=F("id"))
        return self.filter(Q(ours=None) | Q(ours__state__in=Refund.ENDED_WITHOUT) | further)


class SmartpayRefund(models.Model):
    """A refund that Smartpay shows, whoever made it. Only mirror.py writes it, and decides whether it is ours."""

    class Status(models.TextChoices):
        SUCCEEDED = "succeeded", _("返金済み")
        FAILED = "failed", _("返金不可")

    id = models.CharField(_("Smartpay 返金ID"), max_length=80, primary_key=True, db_collation=BINARY)
    # No constraint: Smartpay lists refunds on their own, and one may be read before its payment.
    payment = models.ForeignKey(
        Payment,
        on_delete=models.DO_NOTHING,
        related_name="smartpay_refunds",
        db_constraint=False,
        verbose_name=_("支払い"),
    )
    amount = models.PositiveBigIntegerField(_("金額"))
    currency = models.CharField(_("通貨"), max_length=3)
    # Absent in some answers.
    status = models.CharField(_("状態"), max_length=32, blank=True, default="")
    reason = models.CharField(_("理由"), max_length=64, blank=True, default="")
    description = models.TextField(_("説明"), blank=True, default="")
    reference = models.CharField(_("参照番号"), max_length=255, blank=True, default="")
    metadata = models.JSONField(_("付随データ"), default=dict)
    created_at = models.DateTimeField(_("返金日時"))
    read_at = models.DateTimeField(_("最終確認"))
    # When Smartpay no longer showed it. Its money counts as gone all the same.
    vanished_at = models.DateTimeField(_("Smartpay から消えた日時"), null=True, blank=True, editable=False)
    # The ledger row that this is; empty: made outside this tool.
    ours = models.ForeignKey(
        Refund,
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="seen",
        verbose_name=_("返金"),
    )

    objects = SmartpayRefundQuerySet.as_manager()

    class Meta:
        verbose_name = _("Smartpay の返金")
        verbose_name_plural = _("Smartpay の返金")
        ordering = ("-created_at", "id")
        indexes = (models.Index(fields=["created_at", "id"], name="smartpayrefund_created"),)

    def __str__(self) -> str:
        return self.id

    @property
    def counts(self) -> bool:
        """Whether its amount is gone, as counting() has it."""
        return self.status != self.Status.FAILED

    def uncovered(self) -> int:
        """Return how much of its amount no row of the ledger covers.

        Payment.external is the sum of these: count_external() in mirror.py says the same in SQL.
        """
        ours = self.ours
        if not self.counts:
            return 0
        if ours is None or ours.state in Refund.ENDED_WITHOUT or ours.smartpay_id not in (None, self.pk):
            return self.amount
        return max(0, self.amount - ours.amount)


class SyncCursor(models.Model):
    """Where the scan of one of Smartpay's lists stands, so that a killed one goes on at its page."""

    SESSIONS, ORDERS, REFUNDS = COLLECTIONS = "checkout-sessions", "orders", "refunds"

    collection = models.CharField(_("一覧"), max_length=24, primary_key=True)  # one of these
    # The next page to read; empty: from the start.
    page_token = models.TextField(_("次のページ"), blank=True, default="")
    # Of the scan under way.
    scan_started_at = models.DateTimeField(_("読み取りの開始"), null=True, blank=True)
    # Objects read by the scan under way.
    seen = models.PositiveBigIntegerField(_("読み取った件数"), default=0)
    # Of the last scan that reached the end.
    last_started_at = models.DateTimeField(_("前回の読み取りの開始"), null=True, blank=True)
    last_finished_at = models.DateTimeField(_("前回の読み取りの終了"), null=True, blank=True)
    # Objects read by it: about as many as the next one will read.
    last_seen = models.PositiveBigIntegerField(_("前回読み取った件数"), null=True, blank=True)
    # Of the last page, or sweep, of any kind.
    last_read_at = models.DateTimeField(_("最後の読み取り"), null=True, blank=True)
    # When the object was created that the next sweep goes back behind. See Note [How far a sweep goes] in scanning.py.
    sweep_to = models.DateTimeField(_("次に読み直す範囲の始まり"), null=True, blank=True)
    # What Smartpay lists and nobody here can read, by id, with when it was last listed: each was said once.
    unreadable = models.JSONField(
        _("読み取れないもの"),
        blank=True,
        default=dict,
        db_default=models.Value({}, models.JSONField()),
    )

    class Meta:
        verbose_name = _("同期")
        verbose_name_plural = _("同期")

    def __str__(self) -> str:
        return self.collection


class WebhookEvent(models.Model):
    """An event that Smartpay delivered: a hint to read, kept until that was done and so that a repeat does nothing."""

    event_id = models.CharField(max_length=80, primary_key=True)
    subscription_id = models.CharField(max_length=80, blank=True, default="")
    kind = models.CharField(max_length=64)
    # What is to be read: a refund's id or an order's; "" for an event of no concern.
    names = models.CharField(max_length=80, blank=True, default="", db_default="")
    received_at = models.DateTimeField()
    caught_up_at = models.DateTimeField(null=True, blank=True)
    body_sha256 = models.CharField(max_length=64)

    class Meta:
        verbose_name = _("Webhook")
        verbose_name_plural = _("Webhook")
        indexes = (
            models.Index(
                fields=["received_at"], name="webhookevent_waiting", condition=Q(caught_up_at__isnull=True)
            ),
        )

    def __str__(self) -> str:
        return self.event_id

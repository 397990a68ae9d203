"""一括返金: an uploaded file and its lines."""

import uuid

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from refunds.models.ledger import Refund
from refunds.models.orders import Payment


class Bulk(models.Model):
    """一括返金: a file of refunds, read line by line. Each line becomes a row of the ledger of its own, or none.

    The same contents are one Bulk, unless it was cancelled or rejected; and each line's refund has an id made of the
    contents and the line's number, so that no line is ever refunded twice, whoever uploads the file how often.
    """

    class State(models.TextChoices):
        CHECKING = "checking", _("確認中")  # a worker looks up each line
        CHECKED = "checked", _("開始待ち")  # who uploaded it looks at it
        AWAITING_APPROVAL = "awaiting_approval", _("承認待ち")  # a second person has to decide
        RUNNING = "running", _("実行中")  # workers ask for one refund after the other
        PAUSED = "paused", _("一時停止中")
        DONE = "done", _("完了")  # every line's refund is settled, a case for people, or told why it is none
        REJECTED = "rejected", _("却下")
        CANCELLED = "cancelled", _("中止")

    GIVEN_UP = (State.REJECTED, State.CANCELLED)
    OPEN = (State.CHECKING, State.CHECKED, State.AWAITING_APPROVAL, State.RUNNING, State.PAUSED)

    id = models.UUIDField(_("受付番号"), primary_key=True, default=uuid.uuid4, editable=False)
    file_name = models.CharField(_("ファイル名"), max_length=120)
    # SHA-256 of the lines as read, in hex: the same for any encoding and for any spelling of the header.
    digest = models.CharField(max_length=64, editable=False)
    state = models.CharField(_("状態"), max_length=20, choices=State, default=State.CHECKING)
    lines_count = models.PositiveIntegerField(_("行数"))
    # Of the lines that are refunded, fixed when it is started; in yen.
    total = models.PositiveBigIntegerField(_("合計"), null=True, blank=True)
    similar_reason = models.TextField(_("それでも返金する理由"), blank=True, default="")
    uploaded_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="bulks", verbose_name=_("申請者")
    )
    uploaded_at = models.DateTimeField(_("取り込み日時"))
    started_at = models.DateTimeField(_("開始日時"), null=True, blank=True)
    decided_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="bulk_decisions",
        verbose_name=_("承認・却下した人"),
    )
    decided_at = models.DateTimeField(_("承認・却下の日時"), null=True, blank=True)
    decision_note = models.TextField(_("承認・却下のメモ"), blank=True, default="")
    paused_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="+",
        verbose_name=_("一時停止した人"),
    )
    ended_at = models.DateTimeField(_("終了日時"), null=True, blank=True)
    # Which worker is at it, and until when nobody else is.
    lease_until = models.DateTimeField(null=True, blank=True)
    lease_owner = models.CharField(max_length=36, blank=True, default="")

    class Meta:
        verbose_name = _("一括返金")
        verbose_name_plural = _("一括返金")
        ordering = ("-uploaded_at", "-id")
        constraints = (
            models.UniqueConstraint(
                fields=["digest"],
                condition=~Q(state__in=["rejected", "cancelled"]),
                name="bulk_one_per_contents",
            ),
            models.CheckConstraint(
                condition=Q(decided_by__isnull=True) | ~Q(decided_by=F("uploaded_by")), name="bulk_four_eyes"
            ),
        )
        indexes = (
            models.Index(fields=["uploaded_at", "id"], name="bulk_newest"),
            models.Index(
                fields=["uploaded_at"],
                name="bulk_open",
                condition=Q(state__in=["checking", "checked", "awaiting_approval", "running", "paused"]),
            ),
        )

    def __str__(self) -> str:
        return str(self.id)


class BulkLine(models.Model):
    """A line of a file: what it says, the refund that it means, and what speaks against it."""

    class State(models.TextChoices):
        UNCHECKED = "unchecked", _("未確認")
        READY = "ready", _("返金できます")
        SIMILAR = "similar", _("似た返金があります")  # refunded only with a reason
        PROBLEM = "problem", _("返金できません")
        ASKED = "asked", _("受け付け済み")  # a row of the ledger, which tells the rest
        REFUSED = "refused", _("受け付けませんでした")  # what was true when it was checked was not any more
        LEFT_OUT = "left_out", _("対象外")  # similar, and no reason was given; or stopped before its turn

    class Problem(models.TextChoices):
        NO_ORDER = "no_order", _("注文IDかショップ注文番号を入力してください。")
        ORDER = "order", _("注文が見つかりません。")
        ORDERS_DIFFER = "orders_differ", _("注文IDとショップ注文番号が別々の注文のものです。")
        ORDERS = "orders", _("このショップ注文番号の注文が複数あります。注文IDで指定してください。")
        AMOUNT = "amount", _("返金額は1円以上の整数か「残額」で入力してください。")
        DESCRIPTION = "description", _("説明は80文字以内で、改行や見えない文字を含めずに入力してください。")
        REASON = "reason", _("理由は「お客様からの依頼」か「不正利用」で入力してください。")
        NOT_PAID = "not_paid", _("支払いがないため返金できません。")
        PAYMENTS = "payments", _("支払いが複数ある注文です。注文の画面から返金してください。")
        NOTHING_LEFT = "nothing_left", _("返金できる残額がありません。")
        TOO_HIGH = "too_high", _("返金可能額を超えています。")
        MAXIMUM = "maximum", _("一回の返金の上限を超えています。")
        DAILY_LIMIT = "daily_limit", _("一日の返金の上限を超えます。")
        UNSETTLED = "unsettled", _("結果が確定していない返金があります。")
        USED = "used", _("この行の返金は、同じ内容のファイルですでに受け付けられています。")
        NOT_MADE = (
            "not_made",
            _("この行の返金は、前に取り込んだときに行われませんでした。注文の画面から返金してください。"),
        )
        CURRENCY = "currency", _("円以外の注文です。注文の画面から返金してください。")
        MOVED = "moved", _("確認したあとに返金可能額が変わりました。")
        SIMILAR = "similar", _("確認したあとに似た返金が行われました。")
        NO_REASON = "no_reason", _("似た返金があり、返金する理由が入力されませんでした。")
        NOT_ENTITLED = "not_entitled", _("申請した人または承認した人に返金の権限がなくなりました。")
        STOPPED = "stopped", _("中止したため、返金していません。")
        EXPIRED = "expired", _("開始または承認から日数がたちすぎたため、返金していません。")

    bulk = models.ForeignKey(
        Bulk, on_delete=models.PROTECT, related_name="lines", verbose_name=_("一括返金"), db_index=False
    )
    # Of the file, the header being 1.
    number = models.PositiveIntegerField(_("行"))
    # As written in the file.
    order_text = models.CharField(_("注文ID"), max_length=255, blank=True, default="")
    reference_text = models.CharField(_("ショップ注文番号"), max_length=255, blank=True, default="")
    amount_text = models.CharField(_("返金額"), max_length=40, blank=True, default="")
    description = models.TextField(_("説明"), blank=True, default="")
    reason_text = models.CharField(_("理由"), max_length=40, blank=True, default="")
    # As understood.
    request_id = models.UUIDField(_("受付番号"), editable=False)
    payment = models.ForeignKey(
        Payment, on_delete=models.PROTECT, null=True, blank=True, related_name="+", verbose_name=_("支払い")
    )
    amount = models.PositiveBigIntegerField(_("金額"), null=True, blank=True)
    reason = models.CharField(max_length=32, choices=Refund.Reason, blank=True, default="")
    # What was left when it was checked, the lines before it taken off.
    refundable = models.PositiveBigIntegerField(null=True, blank=True)
    state = models.CharField(_("状態"), max_length=12, choices=State, default=State.UNCHECKED)
    # Refunded only with the file's reason, which is about such lines alone.
    is_similar = models.BooleanField(_("似た返金"), default=False)
    problem = models.CharField(_("内容"), max_length=16, choices=Problem, blank=True, default="")

    class Meta:
        verbose_name = _("一括返金の行")
        verbose_name_plural = _("一括返金の行")
        ordering = ("bulk", "number")
        constraints = (
            models.UniqueConstraint(fields=["bulk", "number"], name="bulkline_one_per_number"),
            models.CheckConstraint(
                condition=Q(state__in=["unchecked", "problem", "left_out"])
                | Q(payment__isnull=False, amount__isnull=False, amount__gt=0, refundable__isnull=False),
                name="bulkline_knows_its_refund",
            ),
        )
        indexes = (
            models.Index(fields=["bulk", "state", "number"], name="bulkline_state"),
            models.Index(fields=["request_id"], name="bulkline_request"),
        )

    def __str__(self) -> str:
        return f"{self.bulk_id} {self.number}"

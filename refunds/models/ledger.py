"""The ledger: refunds, their attempts, the evidence and the decisions about them; the switch for sending."""

import uuid
from typing import Self

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from refunds.models.orders import BINARY, Payment

# Note [Lock order]
# Lock payments first (by id), then refunds, then the order. The triggers follow that order: they move a payment's
# counters after a refund changed, and an order's sums after a payment changed. A transaction that locks an order before
# its payments can deadlock with them.


class RefundQuerySet(models.QuerySet["Refund"]):
    """Refunds by their state; the groups of states, and what each means, are told at Refund."""

    def never_sent(self) -> Self:
        return self.filter(state__in=Refund.NEVER_SENT)

    def reserving(self) -> Self:
        return self.filter(state__in=Refund.RESERVING)

    def open(self) -> Self:
        return self.filter(state__in=Refund.OPEN)

    def blocking(self) -> Self:
        return self.filter(state__in=Refund.BLOCKING)


class Refund(models.Model):
    """One row of the ledger: one decision of a person, one idempotency key, one frozen request.

    The id is created with the form. It is the form's `request_id`, the idempotency key and the `reference` at once.
    """

    class State(models.TextChoices):
        AWAITING_APPROVAL = "awaiting_approval", _("承認待ち")  # a second person has to decide
        QUEUED = "queued", _("送信待ち")  # may be sent; was never sent yet
        SENDING = "sending", _("送信中")  # committed; the request may be on its way
        UNKNOWN = "unknown", _("結果不明")  # it may exist at Smartpay; workers find out
        REVIEW = "review", _("要調査")  # Smartpay contradicts the ledger; two people decide
        SUCCEEDED = "succeeded", _("返金済み")  # Smartpay showed it; smartpay_id is its id
        REJECTED = "rejected", _("返金不可")  # Smartpay refused the first attempt; nothing happened
        NOT_EXECUTED = "not_executed", _("返金不成立")  # proved absent after the send window
        CANCELLED = "cancelled", _("取り下げ・却下など")  # never sent

    NEVER_SENT = (State.AWAITING_APPROVAL, State.QUEUED)
    RESERVING = (*NEVER_SENT, State.SENDING, State.UNKNOWN, State.REVIEW)
    IN_FLIGHT = (State.SENDING, State.UNKNOWN)
    OPEN = (*IN_FLIGHT, State.REVIEW)  # meanwhile no other refund of the payment is sent
    # Meanwhile no other refund of the payment may be asked for. SENDING is not among them: it lasts seconds, and
    # another refund that fits may be queued behind it.
    BLOCKING = (State.UNKNOWN, State.REVIEW)
    ENDED_WITHOUT = (
        State.REJECTED,
        State.NOT_EXECUTED,
        State.CANCELLED,
    )  # no money left; its amount is free again

    class Reason(models.TextChoices):
        REQUESTED_BY_CUSTOMER = "requested_by_customer", _("お客様からの依頼")
        FRAUDULENT = "fraudulent", _("不正利用")

    class Cancelled(models.TextChoices):
        WITHDRAWN = "withdrawn", _("取り下げ")
        REFUSED = "refused", _("却下")
        EXPIRED = "expired", _("期限切れ")
        BALANCE = "balance", _("残額変更")
        ENTITLEMENT = "entitlement", _("権限失効")

    moved_from = ""  # its state before the change under way, for the audit trail

    id = models.UUIDField(_("受付番号"), primary_key=True, default=uuid.uuid4, editable=False)
    payment = models.ForeignKey(
        Payment, on_delete=models.PROTECT, related_name="refunds", verbose_name=_("支払い"), db_index=False
    )
    # In the currency's minor unit; yen has none.
    amount = models.PositiveBigIntegerField(_("返金額"))
    currency = models.CharField(_("通貨"), max_length=3)
    reason = models.CharField(_("理由"), max_length=32, choices=Reason)
    description = models.CharField(_("説明"), max_length=80, blank=True, default="")
    memo = models.TextField(_("社内メモ"), blank=True, default="")
    similar_reason = models.TextField(_("それでも返金する理由"), blank=True, default="")
    # What was approved is this amount of this remaining balance.
    refundable_before = models.PositiveBigIntegerField(_("申請時の返金可能額"))
    # If more than this was refunded elsewhere, the person did not see it, and nothing is sent for the first time.
    external_before = models.PositiveBigIntegerField(_("申請時のこのツール以外での返金"))
    # The request body. Every attempt sends it, byte for byte.
    body = models.TextField(editable=False)
    state = models.CharField(_("状態"), max_length=20, choices=State)

    requested_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="refunds", verbose_name=_("申請者")
    )
    requested_at = models.DateTimeField(_("申請日時"))
    decided_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="refund_decisions",
        verbose_name=_("承認・却下した人"),
    )
    decided_at = models.DateTimeField(_("承認・却下の日時"), null=True, blank=True)
    decision_note = models.TextField(_("承認・却下のメモ"), blank=True, default="")
    cancelled_because = models.CharField(
        _("取り下げ・却下などの理由"), max_length=12, choices=Cancelled, blank=True, default=""
    )

    attempt_no = models.PositiveIntegerField(_("送信回数"), default=0)
    first_sent_at = models.DateTimeField(_("最初の送信"), null=True, blank=True)
    last_sent_at = models.DateTimeField(_("最後の送信"), null=True, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)
    lease_owner = models.CharField(max_length=36, blank=True, default="")
    # Turns taken so far. The back-off grows with them.
    turns = models.PositiveIntegerField(default=0)
    next_check_at = models.DateTimeField(_("次の確認"), null=True, blank=True)
    # The first of the complete reads without it that count. See Note [Proof of absence] in services/states.py.
    absent_since = models.DateTimeField(_("返金がないと確認した日時"), null=True, blank=True)

    smartpay_id = models.CharField(
        _("Smartpay 返金ID"), max_length=80, null=True, blank=True, db_collation=BINARY
    )
    error_code = models.CharField(_("エラーコード"), max_length=64, blank=True, default="")
    error_message = models.TextField(_("エラー内容"), blank=True, default="")
    settled_at = models.DateTimeField(_("確定日時"), null=True, blank=True)
    # How often it went to review. Decisions count for the last of these rounds.
    reviews = models.PositiveIntegerField(_("要調査の回数"), default=0)
    # Written again from what Smartpay shows, after the database had lost it. Never sent from here.
    recovered = models.BooleanField(_("復元"), default=False)

    objects = RefundQuerySet.as_manager()

    class Meta:
        verbose_name = _("返金")
        verbose_name_plural = _("返金")
        ordering = ("-requested_at", "-id")
        permissions = (
            ("request_refund", "Can ask for a refund"),
            ("approve_refund", "Can approve or reject a refund"),
        )
        constraints = (
            models.CheckConstraint(condition=Q(amount__gt=0), name="refund_amount_positive"),
            models.CheckConstraint(
                condition=Q(
                    state__in=[
                        "awaiting_approval",
                        "queued",
                        "sending",
                        "unknown",
                        "review",
                        "succeeded",
                        "rejected",
                        "not_executed",
                        "cancelled",
                    ]
                ),
                name="refund_state_known",
            ),
            models.CheckConstraint(
                condition=Q(decided_by__isnull=True) | ~Q(decided_by=F("requested_by")),
                name="refund_four_eyes",
            ),
            models.CheckConstraint(
                condition=~Q(state="succeeded") | Q(smartpay_id__isnull=False), name="refund_succeeded_has_id"
            ),
            models.CheckConstraint(
                condition=~Q(state="cancelled") | Q(first_sent_at__isnull=True, cancelled_because__gt=""),
                name="refund_cancelled_never_sent",
            ),
            models.CheckConstraint(
                condition=~Q(state__in=["sending", "unknown"]) | Q(first_sent_at__isnull=False),
                name="refund_in_flight_was_sent",
            ),
            models.UniqueConstraint(fields=["smartpay_id"], name="refund_one_per_smartpay_id"),
            models.UniqueConstraint(
                fields=["payment"], condition=Q(state__in=["sending", "unknown"]), name="refund_one_in_flight"
            ),
        )
        indexes = (
            models.Index(fields=["payment", "requested_at"], name="refund_payment"),
            models.Index(fields=["requested_at", "id"], name="refund_ledger"),
            models.Index(fields=["state", "requested_at", "id"], name="refund_state"),
            models.Index(fields=["requested_by", "requested_at", "id"], name="refund_person"),
            models.Index(
                fields=["next_check_at"],
                name="refund_unsettled",
                condition=Q(state__in=["queued", "sending", "unknown"]),
            ),
            models.Index(fields=["settled_at", "id"], name="refund_settled"),
        )

    def __str__(self) -> str:
        return str(self.id)

    @property
    def label(self) -> str:
        """The state in words; a cancelled one is named by its cause."""
        if self.state == self.State.CANCELLED and self.cancelled_because:
            return str(self.get_cancelled_because_display())
        return str(self.get_state_display())

    @property
    def is_settled(self) -> bool:
        return self.state not in self.RESERVING

    def is_overtaken(self) -> bool:
        """Return whether the payment was refunded elsewhere after the person looked: that refund may be this one."""
        if self.payment.external > self.external_before:
            return True
        # The sum may hide it: an earlier refund that failed meanwhile takes its amount off.
        since = self.payment.smartpay_refunds.filter(ours=None, created_at__gt=self.requested_at)
        return since.counting().exists()


class Attempt(models.Model):
    """One attempt to send a refund: written before the request leaves, and changed only once, by its answer."""

    class Outcome(models.TextChoices):
        """What the answer meant. The errors and answers of smartpay.py carry these values."""

        NONE_YET = "", _("まだありません")
        EXECUTED = "EXECUTED", _("返金済み")
        FAILED = "FAILED", _("返金不可")
        REFUSED = "REFUSED", _("拒否")
        NOT_SENT = "NOT_SENT", _("接続できず未送信")
        NOT_ACCEPTED = "NOT_ACCEPTED", _("受付不可")
        IN_PROGRESS = "IN_PROGRESS", _("処理中との応答")
        LIMITED = "LIMITED", _("混雑中との応答")
        CONTRADICTION = "CONTRADICTION", _("申請との食い違い")
        AMBIGUOUS = "AMBIGUOUS", _("結果の分からない応答")

    refund = models.ForeignKey(
        Refund, on_delete=models.PROTECT, related_name="attempts", verbose_name=_("返金")
    )
    number = models.PositiveIntegerField(_("回"))
    started_at = models.DateTimeField(_("送信"))
    finished_at = models.DateTimeField(_("応答"), null=True, blank=True)
    outcome = models.CharField(_("結果"), max_length=16, choices=Outcome, blank=True, default="")
    http_status = models.PositiveSmallIntegerField(_("HTTP"), null=True, blank=True)
    error_code = models.CharField(_("エラーコード"), max_length=64, blank=True, default="")
    error_message = models.TextField(_("エラー内容"), blank=True, default="")
    replayed = models.BooleanField(_("保存済みの応答"), default=False)
    response_sha256 = models.CharField(_("応答の SHA-256"), max_length=64, blank=True, default="")

    class Meta:
        verbose_name = _("Smartpay への送信")
        verbose_name_plural = _("Smartpay への送信")
        ordering = ("refund", "number")
        constraints = (models.UniqueConstraint(fields=["refund", "number"], name="attempt_one_per_number"),)

    def __str__(self) -> str:
        return f"{self.refund_id}#{self.number}"


class Evidence(models.Model):
    """What a read showed of a refund whose outcome was open: it was found, or a complete read did not contain it."""

    class Detail(models.TextChoices):
        NO_LIST = "no_list", _("この支払いは返金の一覧を示さないため、返金一覧での確認を待っています")
        FAILED = "failed", _("Smartpay は返金不可と示しています")
        DIFFERS = "differs", _("支払い・金額・通貨のいずれかが異なります")

    class Kind(models.TextChoices):
        ANSWER = "answer", _("送信への応答")
        READ = "read", _("支払いの確認")
        LIST = "list", _("返金一覧の確認")

    refund = models.ForeignKey(
        Refund, on_delete=models.PROTECT, related_name="evidence", verbose_name=_("返金")
    )
    kind = models.CharField(_("種類"), max_length=8, choices=Kind)
    at = models.DateTimeField(_("日時"))
    found = models.BooleanField(_("あり"))
    smartpay_id = models.CharField(_("Smartpay 返金ID"), max_length=80, blank=True, default="")
    detail = models.CharField(_("内容"), max_length=8, choices=Detail, blank=True, default="")

    class Meta:
        verbose_name = _("確認の記録")
        verbose_name_plural = _("確認の記録")
        ordering = ("refund", "at")

    def __str__(self) -> str:
        return f"{self.refund_id} {self.kind}"


class ReviewDecision(models.Model):
    """What one person says of a refund that is 要調査. Two people who say the same, neither the requester, settle it.

    Kept for ever; a person's last word of a round is the one that counts.
    """

    class Verdict(models.TextChoices):
        SUCCEEDED = "succeeded", _("返金済み")  # it is the refund `smartpay_id`
        NOT_EXECUTED = "not_executed", _("返金不成立")  # Smartpay has none, as two complete reads proved

    refund = models.ForeignKey(
        Refund, on_delete=models.PROTECT, related_name="review_decisions", verbose_name=_("返金")
    )
    # Refund.reviews at that time.
    round = models.PositiveIntegerField(_("回"))
    person = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+", verbose_name=_("判定者")
    )
    verdict = models.CharField(_("判定"), max_length=12, choices=Verdict)
    smartpay_id = models.CharField(_("Smartpay 返金ID"), max_length=80, blank=True, default="")
    note = models.TextField(_("理由"))
    at = models.DateTimeField(_("日時"))

    class Meta:
        verbose_name = _("要調査の判定")
        verbose_name_plural = _("要調査の判定")
        ordering = ("refund", "at", "id")
        constraints = (
            models.CheckConstraint(
                condition=Q(verdict="succeeded", smartpay_id__gt="")
                | Q(verdict="not_executed", smartpay_id=""),
                name="review_names_its_refund",
            ),
        )

    def __str__(self) -> str:
        return f"{self.refund_id} {self.verdict}"


class Notice(models.Model):
    """A mail to whoever asked for a refund, that it is no longer 結果不明. Written before it leaves: one at most."""

    refund = models.OneToOneField(
        Refund, on_delete=models.PROTECT, primary_key=True, related_name="notice", verbose_name=_("返金")
    )
    at = models.DateTimeField(_("日時"))

    class Meta:
        verbose_name = _("確定の知らせ")
        verbose_name_plural = _("確定の知らせ")

    def __str__(self) -> str:
        return str(self.pk)


class Control(models.Model):
    """The switch for sending, as one row. While it is off, nothing is sent; reading and settling go on."""

    class Cause(models.TextChoices):
        PERSON = "", _("担当者の操作")  # `reason` holds their own words
        KEY_REFUSED = "key_refused", _("Smartpay が API キーを受け付けませんでした。")
        RESTORED = "restored", _("データベースが古い状態に戻された可能性があります。")

    one = models.BooleanField(primary_key=True, default=True, editable=False)
    sends_enabled = models.BooleanField(_("送信"), default=True)
    reason = models.CharField(_("理由"), max_length=200, blank=True, default="")
    # What changed it last. The database has the default too, for the version before this column.
    cause = models.CharField(
        _("きっかけ"), max_length=16, choices=Cause, blank=True, default="", db_default=""
    )
    changed_at = models.DateTimeField(_("変更日時"), null=True, blank=True)
    changed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="+",
        verbose_name=_("変更者"),
    )

    # When it was noticed that the database was restored; nothing is sent until people resume it.
    restored_at = models.DateTimeField(_("復元の検知"), null=True, blank=True)
    # When people last resumed sending after that.
    restore_accepted_at = models.DateTimeField(_("復元後の再開"), null=True, blank=True)
    # Which PostgreSQL this is, and which of its timelines.
    cluster = models.CharField(max_length=40, blank=True, default="", editable=False)

    class Meta:
        verbose_name = _("送信の停止と再開")
        verbose_name_plural = _("送信の停止と再開")
        constraints = (models.CheckConstraint(condition=Q(one=True), name="control_one_row"),)

    def __str__(self) -> str:
        return "on" if self.sends_enabled else f"off: {self.cause or self.reason}"

    @property
    def why(self) -> str:
        """The reason of the last change, in words: a person's own words, or what the machine noticed."""
        return self.get_cause_display() if self.cause else self.reason

    @classmethod
    def current(cls) -> "Control":
        """Return the row, or an unsaved one with the defaults where nobody has touched the switch yet."""
        return cls.objects.filter(one=True).first() or cls()

    @classmethod
    def sends_are_on(cls) -> bool:
        """Return whether refunds may be sent. They may where nobody has touched the switch yet."""
        return not cls.objects.filter(sends_enabled=False).exists()

"""The mirror (Order, Payment, SmartpayRefund), the ledger (Refund, Attempt, Evidence), the trail (AuditEntry, Search).

What this file promises, the database enforces: constraints here, triggers in migrations/0002_guards.py and 0006.
"""

import secrets
import uuid
from typing import Self

from django.conf import settings
from django.db import models
from django.db.models import Case, F, Q, Value, When
from django.db.models.functions import Substr
from django.utils.translation import gettext_lazy as _

# Note [Binary collation]
# Searched text is compared by code point, because only then can a B-tree answer "begins with". The collation is "C" on
# PostgreSQL; the first migration gives it SQLite's name there, "BINARY".
BINARY = "BINARY"

# Note [Fragments of names]
# To find a name by its middle, there is a row for each place in it, with the text from there on: `中太郎` for 田中太郎.
# A rare text is a short range of the index (text, key). A frequent one is met soon on a bounded walk along the
# index (start, key, text), from the newest order on. Both indexes hold all columns that a search needs, and both return
# rows in the order that it needs. The matches of a full-text index would have to be gathered and sorted first.

# Note [Lock order]
# Lock payments first (by id), then refunds, then the order. The triggers follow that order: they move a payment's
# counters after a refund changed, and an order's sums after a payment changed. A transaction that locks an order before
# its payments can deadlock with them.


def _text(length: int, **kwargs: object) -> "models.CharField[str, str]":
    """Return a column that is searched: compared by code point, and empty where nothing is known."""
    return models.CharField(max_length=length, blank=True, default="", db_collation=BINARY, **kwargs)  # type: ignore[arg-type]


class Order(models.Model):
    """An order as last read at Smartpay, with the customer from its checkout session or from an import."""

    class Status(models.TextChoices):
        REQUIRES_AUTHORIZATION = "requires_authorization", _("手続き中")
        PENDING = "pending", _("手続き中")
        REJECTED = "rejected", _("審査否決")
        REQUIRES_CAPTURE = "requires_capture", _("売上確定待ち")
        SUCCEEDED = "succeeded", _("支払い済み")
        CANCELED = "canceled", _("キャンセル")
        FAILED = "failed", _("支払い失敗")

    # Smartpay makes an order for every checkout that is started. These were never paid; lists hide them by default.
    UNPAID = (Status.REQUIRES_AUTHORIZATION, Status.PENDING, Status.REJECTED, Status.FAILED)

    class RefundStatus(models.TextChoices):
        NONE = "none", _("なし")
        PARTIAL = "partial", _("一部返金")
        FULL = "full", _("全額返金")
        PROCESSING = "processing", _("返金処理中")

    class CustomerSource(models.TextChoices):
        NONE = "", _("登録なし")
        SESSION = "session", _("決済時の入力")
        IMPORT = "import", _("店舗データの取り込み")

    # See Note [Keys in time order] in order_keys.py.
    key = models.BigIntegerField(primary_key=True, editable=False)
    order_id = models.CharField(_("注文ID"), max_length=80, db_collation=BINARY)
    reference = _text(255, verbose_name=_("ショップ注文番号"), help_text=_("Smartpay の reference(参照番号)"))
    # In the currency's minor unit; yen has none.
    amount = models.PositiveBigIntegerField(_("金額"))
    currency = models.CharField(_("通貨"), max_length=3)
    status = models.CharField(_("状態"), max_length=32, choices=Status)
    description = models.TextField(_("説明"), blank=True, default="")
    token_id = models.CharField(max_length=80, blank=True, default="")
    test = models.BooleanField(_("テスト"))
    # [{name, quantity, amount, currency, kind}], as shown; amounts per line.
    line_items = models.JSONField(
        _("明細"),
        default=list,
    )
    created_at = models.DateTimeField(_("注文日時"))
    expires_at = models.DateTimeField(null=True, blank=True)
    # When the read began that returned these values.
    read_at = models.DateTimeField(_("最終確認"))
    # When Smartpay, no longer listing the order, said that it does not exist.
    vanished_at = models.DateTimeField(_("Smartpay から消えた日時"), null=True, blank=True, editable=False)

    # The customer, from the checkout session or from an import. An order made with a token has no session.
    customer_source = models.CharField(
        _("お客様情報の出所"), max_length=8, choices=CustomerSource, blank=True, default=""
    )
    family_name = models.CharField(_("姓"), max_length=120, blank=True, default="")
    given_name = models.CharField(_("名"), max_length=120, blank=True, default="")
    family_kana = models.CharField(_("姓(カナ)"), max_length=120, blank=True, default="")
    given_kana = models.CharField(_("名(カナ)"), max_length=120, blank=True, default="")
    email = models.CharField(_("メールアドレス"), max_length=254, blank=True, default="")

    # These are searched: the customer and the reference, folded by folding.fold().
    family_folded = _text(120)
    given_folded = _text(120)
    name_folded = _text(240)
    # Given name first.
    name_turned_folded = _text(240)
    family_kana_folded = _text(120)
    given_kana_folded = _text(120)
    kana_folded = _text(240)
    kana_turned_folded = _text(240)
    email_folded = _text(254)
    reference_folded = _text(255)
    # To find an order by the last characters of its id, as they are read out on the telephone.
    order_id_reversed = _text(80)

    # Sums over the payments, kept by triggers. `refunded` has our refunds and those made elsewhere; `reserved` is for
    # our unsettled refunds.
    captured = models.PositiveBigIntegerField(_("支払い額"), default=0, editable=False)
    refunded = models.PositiveBigIntegerField(_("返金済み額"), default=0, editable=False)
    reserved = models.PositiveBigIntegerField(_("処理中の返金"), default=0, editable=False)
    refund_status = models.GeneratedField(
        verbose_name=_("返金状況"),
        expression=Case(
            When(reserved__gt=0, then=Value("processing")),
            When(refunded__gt=0, refunded__gte=F("captured"), then=Value("full")),
            When(refunded__gt=0, then=Value("partial")),
            default=Value("none"),
        ),
        output_field=models.CharField(max_length=10, choices=RefundStatus),
        db_persist=True,
    )

    class Meta:
        verbose_name = _("注文")
        verbose_name_plural = _("注文")
        ordering = ("-key",)
        constraints = (models.UniqueConstraint(fields=["order_id"], name="order_one_per_order_id"),)
        indexes = (
            models.Index(fields=["key"], name="order_personal", condition=Q(customer_source__gt="")),
            *(
                models.Index(fields=[column, "key"], name=f"order_{short}")
                for column, short in {
                    "status": "status",
                    "refund_status": "refund_status",
                    "family_folded": "family",
                    "given_folded": "given",
                    "name_folded": "name",
                    "name_turned_folded": "name_turned",
                    "family_kana_folded": "family_kana",
                    "given_kana_folded": "given_kana",
                    "kana_folded": "kana",
                    "kana_turned_folded": "kana_turned",
                    "email_folded": "email",
                    "reference_folded": "reference",
                    "order_id_reversed": "id_reversed",
                }.items()
            ),
        )

    def __str__(self) -> str:
        return self.order_id

    @property
    def customer_name(self) -> str:
        """Return `田中 太郎`, family name first; "" if no name is known."""
        return f"{self.family_name} {self.given_name}".strip()

    @property
    def customer_kana(self) -> str:
        return f"{self.family_kana} {self.given_kana}".strip()

    def get_status_display(self) -> str:  # type: ignore[no-redef]
        """Return the label, or Smartpay's own word for a status that is not known here.

        Django's own method would build a table of all labels for every row.
        """
        return str(self.Status(self.status).label) if self.status in self.Status else self.status

    def get_refund_status_display(self) -> str:
        """Return the label. Django adds this method for ordinary columns, but not for generated ones."""
        return str(self.RefundStatus(self.refund_status).label)


class Fragment(models.Model):
    """A text by which a name, its kana or a mail is found by its middle. See Note [Fragments of names].

    Written by fragments.py.
    """

    pk = models.CompositePrimaryKey("text", "key")
    text = models.CharField(max_length=256, db_collation=BINARY)
    # Order.key. No foreign key: checking it for every fragment would cost too much.
    key = models.BigIntegerField()
    start = models.GeneratedField(
        expression=Substr("text", 1, 2),
        output_field=models.CharField(max_length=2, db_collation=BINARY),
        db_persist=True,
    )

    class Meta:
        indexes = (models.Index(fields=["start", "key", "text"], name="fragment_start"),)

    def __str__(self) -> str:
        return f"{self.key}"


class Payment(models.Model):
    """A capture of an order, and the account that refunds are booked against.

    Only the trigger on Refund moves `reserved` and `refunded`; the trigger on this table refuses values that are not
    the sums of the ledger's rows. `captured` and `external` are facts read from Smartpay. They are always recorded,
    even where more is refunded than was captured.
    """

    id = models.CharField(_("支払いID"), max_length=80, primary_key=True, db_collation=BINARY)
    order = models.ForeignKey(
        Order, on_delete=models.PROTECT, related_name="payments", verbose_name=_("注文")
    )
    currency = models.CharField(_("通貨"), max_length=3)
    captured = models.PositiveBigIntegerField(_("支払い額"))
    reserved = models.PositiveBigIntegerField(_("処理中の返金"), default=0, editable=False)
    refunded = models.PositiveBigIntegerField(_("このツールの返金"), default=0, editable=False)
    external = models.PositiveBigIntegerField(_("このツール以外での返金"), default=0)
    # Whether Smartpay's last answer listed its refunds. If it did not, `external` is as old as the last list of all
    # refunds. That Smartpay always lists them is UNKNOWN. None: not read since this column exists.
    lists_refunds = models.BooleanField(_("返金の一覧つき"), null=True)
    status = models.CharField(_("Smartpay の状態"), max_length=32, blank=True, default="")
    description = models.TextField(_("説明"), blank=True, default="")
    reference = models.CharField(_("参照番号"), max_length=255, blank=True, default="")
    created_at = models.DateTimeField(_("支払い日時"))
    read_at = models.DateTimeField(_("最終確認"))

    class Meta:
        verbose_name = _("支払い")
        verbose_name_plural = _("支払い")
        ordering = ("created_at", "id")

    def __str__(self) -> str:
        return self.id

    def refundable(self) -> int:
        """Return what is left to refund, in the minor unit. No other code computes this sum.

        It is what was captured, less refunds that have not failed (ours or made elsewhere), less our unsettled ones; 0
        where Smartpay's facts would make it negative.
        """
        return max(0, self.captured - self.refunded - self.external - self.reserved)

    def already_refunded(self) -> int:
        return self.refunded + self.external

    def is_overdrawn(self) -> bool:
        """Return whether more is refunded or reserved than was captured. A refund made elsewhere can cause that."""
        return self.already_refunded() + self.reserved > self.captured


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
        "Refund",
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


class JobRun(models.Model):
    """A run of one of the jobs in jobs.py: when, and how it ended. Ids of nothing, names of nobody."""

    class Outcome(models.TextChoices):
        RUNNING = "running", _("実行中")
        DONE = "done", _("完了")
        FAILED = "failed", _("失敗")
        DIED = "died", _("中断")  # its process was killed; the next run went on

    job = models.CharField(_("処理"), max_length=32)
    started_at = models.DateTimeField(_("開始"))
    ended_at = models.DateTimeField(_("終了"), null=True, blank=True)
    outcome = models.CharField(_("結果"), max_length=8, choices=Outcome, default=Outcome.RUNNING)
    # The class of what was raised.
    error = models.CharField(_("エラー"), max_length=80, blank=True, default="")

    class Meta:
        verbose_name = _("定期処理の実行")
        verbose_name_plural = _("定期処理の実行")
        ordering = ("-id",)
        indexes = (
            models.Index(fields=["job", "started_at"], name="jobrun_job"),
            models.Index(fields=["started_at"], name="jobrun_started"),
        )

    def __str__(self) -> str:
        return f"{self.job} {self.started_at:%F %T}"


class Reconciliation(models.Model):
    """A Japanese day of refunds, ours held against Smartpay's, as last compared: see reconciling.py."""

    day = models.DateField(_("日付"), primary_key=True)
    compared_at = models.DateTimeField(_("照合日時"))
    # When the complete reading of Smartpay's refunds began that it was compared with.
    read_at = models.DateTimeField(_("読み取りの開始"))
    equal = models.PositiveIntegerField(_("一致"))
    only_ours = models.PositiveIntegerField(_("このツールのみ"))
    only_theirs = models.PositiveIntegerField(_("Smartpay のみ"))
    differing = models.PositiveIntegerField(_("相違"))
    # Of Smartpay's refunds that have not failed, and of ours that are 返金済み; in yen.
    theirs_total = models.PositiveBigIntegerField(_("Smartpay の返金額"))
    ours_total = models.PositiveBigIntegerField(_("このツールの返金額"))

    class Meta:
        verbose_name = _("照合")
        verbose_name_plural = _("照合")
        ordering = ("-day",)

    def __str__(self) -> str:
        return self.day.isoformat()

    @property
    def differences(self) -> int:
        return self.only_ours + self.only_theirs + self.differing


class Difference(models.Model):
    """A refund that the ledger and Smartpay do not both have alike. Written by reconciling.py only, a day at a time."""

    class Kind(models.TextChoices):
        ONLY_OURS = "only_ours", _("このツールのみ")
        ONLY_THEIRS = "only_theirs", _("Smartpay のみ")
        DIFFERING = "differing", _("相違")

    reconciliation = models.ForeignKey(
        Reconciliation, on_delete=models.CASCADE, related_name="found", db_index=False
    )
    kind = models.CharField(_("種類"), max_length=12, choices=Kind)
    # The ledger had lost it, and has it again from what Smartpay shows.
    repaired = models.BooleanField(_("復元済み"), default=False)
    refund = models.ForeignKey(
        Refund, on_delete=models.PROTECT, null=True, blank=True, related_name="+", verbose_name=_("返金")
    )
    smartpay_id = models.CharField(_("Smartpay 返金ID"), max_length=80, blank=True, default="")
    payment_id = models.CharField(_("支払いID"), max_length=80)
    order_id = models.CharField(_("注文ID"), max_length=80, blank=True, default="")
    currency = models.CharField(_("通貨"), max_length=3)
    ours_amount = models.PositiveBigIntegerField(_("このツールの金額"), null=True, blank=True)
    theirs_amount = models.PositiveBigIntegerField(_("Smartpay の金額"), null=True, blank=True)
    ours_state = models.CharField(
        _("このツールの状態"), max_length=20, choices=Refund.State, blank=True, default=""
    )
    theirs_status = models.CharField(_("Smartpay の状態"), max_length=32, blank=True, default="")
    # At Smartpay; of a refund that only we have, when it was settled here.
    at = models.DateTimeField(_("返金日時"))

    class Meta:
        verbose_name = _("照合の相違")
        verbose_name_plural = _("照合の相違")
        ordering = ("at", "id")
        indexes = (models.Index(fields=["reconciliation", "at", "id"], name="difference_day"),)

    def __str__(self) -> str:
        return f"{self.reconciliation_id} {self.kind} {self.smartpay_id}"


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


def opaque_id() -> str:
    """22 characters that nobody can guess: 128 bits."""
    return secrets.token_urlsafe(16)


class Search(models.Model):
    """What a person typed into the search box. It opens only for them and for auditors, and is pruned."""

    id = models.CharField(max_length=22, primary_key=True, default=opaque_id, editable=False)
    person = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="searches", verbose_name=_("利用者")
    )
    text = models.CharField(_("検索語"), max_length=200)
    created_at = models.DateTimeField(_("日時"))

    class Meta:
        verbose_name = _("検索")
        verbose_name_plural = _("検索")
        ordering = ("-created_at",)
        indexes = (
            models.Index(fields=["person", "created_at"], name="search_person"),
            models.Index(fields=["created_at"], name="search_created"),
        )

    def __str__(self) -> str:
        return self.id  # never the text: this ends up in logs and titles


class SavedSearch(models.Model):
    """保存した検索: filters of 注文一覧, and the search they narrow, under a name of the person's own."""

    MOST = 20  # of a person

    person = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.CASCADE,
        related_name="saved_searches",
        verbose_name=_("利用者"),
        db_index=False,
    )
    name = models.CharField(_("名前"), max_length=40)
    # PROTECT: what was typed lives as long as it is saved.
    search = models.ForeignKey(
        Search, on_delete=models.PROTECT, null=True, blank=True, related_name="saved", verbose_name=_("検索")
    )
    # As they stand in the address: choices and nothing that was typed.
    filters = models.CharField(_("条件"), max_length=200, blank=True, default="")

    class Meta:
        verbose_name = _("保存した検索")
        verbose_name_plural = _("保存した検索")
        ordering = ("name",)
        constraints = (models.UniqueConstraint(fields=["person", "name"], name="savedsearch_one_of_a_name"),)

    def __str__(self) -> str:
        return str(self.pk)  # never the name: it may be a customer's


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


class AuditEntry(models.Model):
    """Who did what to what. Inserted, sealed once by the worker, never changed: triggers refuse everything else.

    `text` is the canonical JSON that the seal is computed over; the other columns repeat it for searching.
    """

    class Action(models.TextChoices):
        SIGNED_IN = "person.signed_in", _("サインイン")
        SIGNED_OUT = "person.signed_out", _("サインアウト")
        BREAK_GLASS_ISSUED = "break_glass.issued", _("緊急用サインインの発行")
        BREAK_GLASS_ENDED = "break_glass.ended", _("緊急用サインインの終了")
        ORDERS_LISTED = "orders.listed", _("注文一覧の閲覧")
        ORDERS_SEARCHED = "orders.searched", _("注文の検索")
        ORDER_VIEWED = "order.viewed", _("注文の閲覧")
        REFUNDS_LISTED = "refunds.listed", _("返金一覧の閲覧")
        REFUND_VIEWED = "refund.viewed", _("返金の閲覧")
        REFUND_REQUESTED = "refund.requested", _("返金の申請")
        REFUND_APPROVED = "refund.approved", _("返金の承認")
        REFUND_SENDING = "refund.sending", _("返金の送信")
        REFUND_UNKNOWN = "refund.unknown", _("返金: 結果不明")
        REFUND_REVIEW = "refund.review", _("返金: 要調査")
        REFUND_SUCCEEDED = "refund.succeeded", _("返金: 返金済み")
        REFUND_REJECTED = "refund.rejected", _("返金: 返金不可")
        REFUND_NOT_EXECUTED = "refund.not_executed", _("返金: 返金不成立")
        REFUND_CANCELLED = "refund.cancelled", _("返金: 取り下げ・却下など")
        REFUND_OBSERVED = "refund.observed", _("返金: Smartpay での確認")
        REFUND_JUDGED = "refund.judged", _("要調査の判定")
        REFUND_RECOVERED = "refund.recovered", _("返金: 復元")
        SENDS_STOPPED = "sends.stopped", _("送信の停止")
        SENDS_RESUMED = "sends.resumed", _("送信の再開")
        PAGE_REFUSED = "page.refused", _("権限のない操作")
        ADMIN_LISTED = "admin.listed", _("管理画面の一覧の閲覧")
        ADMIN_VIEWED = "admin.viewed", _("管理画面の記録の閲覧")
        ORDERS_EXPORTED = "orders.exported", _("注文の書き出し")
        REFUNDS_EXPORTED = "refunds.exported", _("返金の書き出し")
        BULK_UPLOADED = "bulk.uploaded", _("一括返金の取り込み")
        BULK_VIEWED = "bulk.viewed", _("一括返金の閲覧")
        BULK_STARTED = "bulk.started", _("一括返金の開始")
        BULK_APPROVED = "bulk.approved", _("一括返金の承認")
        BULK_REJECTED = "bulk.rejected", _("一括返金の却下")
        BULK_PAUSED = "bulk.paused", _("一括返金の一時停止")
        BULK_RESUMED = "bulk.resumed", _("一括返金の再開")
        BULK_CANCELLED = "bulk.cancelled", _("一括返金の中止")
        BULK_DONE = "bulk.done", _("一括返金の完了")
        BULK_EXPORTED = "bulk.exported", _("一括返金の結果の書き出し")
        CUSTOMERS_IMPORTED = "customers.imported", _("お客様情報の取り込み")
        RECONCILED = "reconciliation.done", _("照合")
        RECONCILIATION_VIEWED = "reconciliation.viewed", _("照合の閲覧")
        PERSONAL_DATA_REMOVED = "personal_data.removed", _("個人情報の削除")
        AUDIT_VERIFIED = "audit.verified", _("監査記録の検証")
        AUDIT_EXPORTED = "audit.exported", _("監査記録の書き出し")

    class Outcome(models.TextChoices):
        DONE = "done", _("実行")
        REFUSED = "refused", _("拒否")

    at = models.DateTimeField(_("日時"))
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="audit_entries",
        verbose_name=_("利用者"),
        db_index=False,
    )
    # What they were called then, whatever they are called later. None: nobody, or from before it was kept.
    actor_name = models.CharField(_("当時の氏名"), max_length=150, null=True, blank=True, editable=False)
    roles = models.CharField(_("役割"), max_length=64, blank=True, default="")
    action = models.CharField(_("操作"), max_length=48, choices=Action)
    outcome = models.CharField(_("結果"), max_length=8, choices=Outcome, default=Outcome.DONE)
    object_type = models.CharField(_("対象の種類"), max_length=24, blank=True, default="")
    object_id = models.CharField(_("対象"), max_length=80, blank=True, default="")
    order_id = models.CharField(_("注文ID"), max_length=80, blank=True, default="")
    # Ids, amounts, states; never a customer's name or mail.
    data = models.JSONField(_("内容"), default=dict)
    ip = models.GenericIPAddressField(_("接続元"), null=True, blank=True)
    # A hash of it.
    session = models.CharField(_("セッション"), max_length=16, blank=True, default="")
    request_id = models.CharField(_("リクエスト番号"), max_length=36, blank=True, default="")
    text = models.TextField(editable=False)
    previous_seal = models.CharField(_("前の封印"), max_length=64, null=True, blank=True, editable=False)
    seal = models.CharField(_("封印"), max_length=64, null=True, blank=True, editable=False)

    class Meta:
        verbose_name = _("監査記録")
        verbose_name_plural = _("監査記録")
        ordering = ("-id",)
        indexes = (
            models.Index(fields=["actor", "id"], name="audit_actor"),
            models.Index(fields=["action", "id"], name="audit_action"),
            models.Index(fields=["object_id", "id"], name="audit_object"),
            models.Index(fields=["order_id", "id"], name="audit_order"),
            models.Index(fields=["at"], name="audit_at"),
            models.Index(fields=["id"], name="audit_unsealed", condition=Q(seal__isnull=True)),
        )

    def __str__(self) -> str:
        return f"{self.get_action_display()} ({self.pk})"

    @property
    def person(self) -> str:
        """Who did it, by the name of that time; by that of now where it is older than such names. Empty for nobody."""
        return self.actor_name or str(self.actor or "")

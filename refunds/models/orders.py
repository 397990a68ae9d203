"""The mirror: orders with their customers and payments. What Smartpay shows of refunds is in reading.py."""

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

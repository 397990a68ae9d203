"""The audit trail, and what was typed into searches."""

import secrets

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _


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

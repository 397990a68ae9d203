"""What the jobs of the worker did: their runs, and what 照合 found."""

from django.db import models
from django.utils.translation import gettext_lazy as _

from refunds.models.ledger import Refund


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

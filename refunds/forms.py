"""The shape of the input: what people type, normalised. No rule of money is here."""

import re
import unicodedata
from datetime import date, datetime, time, timedelta
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib.auth.models import Group
from django.db.models import Exists, OuterRef, QuerySet
from django.http import QueryDict
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from dashboard.models import User
from refunds import roles, services
from refunds.models import Order, Payment, Refund, ReviewDecision
from refunds.search import ANY_STATUS, IN_PROGRESS, Filters

# In code points. Smartpay's own limit is unknown; this is that of a checkout's description.
DESCRIPTION_LENGTH = 80
MEMO_LENGTH = 1000
AMOUNT_DIGITS = 12
NFC_SHRINKS = 4  # to a quarter at most: ᾂ may be typed as four code points
INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # Unicode's categories; the last two break lines

GROUPED = re.compile(r"[1-9]\d{0,2}(,\d{3})+", re.ASCII)
MINUS = "-−△▲"
# The full-width forms of ASCII that a Japanese keyboard types, and no more: NFKC would read 1² as 12, and ① as 1.
FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {ord("\u3000"): " ", ord("￥"): "¥"}


class YenField(forms.CharField):
    """Whole yen as people type them: `1000`, `1,000`, `¥1,000`, `１０００円`. Cleans to an int of 1 or more.

    An optional field that is left empty cleans to None. Blanks around the number are ignored; blanks inside it are an
    error, since they may separate two numbers.
    """

    default_error_messages = {
        "required": _("返金額を入力してください。"),
        "number": _("返金額は数字で入力してください(例: 1000)。"),
        "whole": _("1円未満は返金できません。整数で入力してください。"),
        "positive": _("返金額は1円以上で入力してください。"),
        "huge": _("返金額が大きすぎます。"),
    }

    def clean(self, value: Any) -> int | None:
        text = super().clean(value)
        if not text:
            return None
        text = text.translate(FULL_WIDTH).removeprefix("¥").removesuffix("円").strip()
        negative = text.startswith(tuple(MINUS))
        text = text.lstrip(MINUS).strip().removeprefix("¥").strip()
        if GROUPED.fullmatch(text):
            text = text.replace(",", "")
        if re.fullmatch(r"\d+\.\d+", text, re.ASCII):
            raise forms.ValidationError(self.error_messages["whole"], "whole")
        if not re.fullmatch(r"\d+", text, re.ASCII):
            raise forms.ValidationError(self.error_messages["number"], "number")
        if negative or not text.strip("0"):
            raise forms.ValidationError(self.error_messages["positive"], "positive")
        if len(text.lstrip("0")) > AMOUNT_DIGITS:
            raise forms.ValidationError(self.error_messages["huge"], "huge")
        return int(text)


class PlainText(forms.CharField):
    """Text, trimmed and in NFC; blank counts as absent. Control, bidi and other invisible characters are errors.

    `limit`: the longest text, in code points. `lines`: whether line breaks are allowed.
    """

    default_error_messages = {
        "control": _("使えない文字(改行・制御文字・見えない文字など)が含まれています。"),
        "long": _("%(limit)s文字以内で入力してください(現在 %(length)s文字)。"),
    }

    def __init__(self, *, limit: int, lines: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.limit = limit
        self.lines = lines
        self.validators = []  # Django's check for NUL is part of clean()

    def clean(self, value: Any) -> str:
        typed = super().clean(value)
        if (
            len(typed) > NFC_SHRINKS * self.limit
        ):  # first: the time NFC takes grows with the square of the length
            raise self._too_long(typed)
        text = unicodedata.normalize("NFC", typed).replace("\r\n", "\n")
        seen = text.replace("\n", "") if self.lines else text
        if any(unicodedata.category(character) in INVISIBLE for character in seen):
            raise forms.ValidationError(self.error_messages["control"], "control")
        if len(text) > self.limit:
            raise self._too_long(text)
        return text

    def _too_long(self, text: str) -> forms.ValidationError:
        numbers = {"limit": self.limit, "length": len(text)}
        return forms.ValidationError(self.error_messages["long"], "long", numbers)


class RefundForm(forms.Form):
    """返金フォーム. `request_id` is minted when an empty form is rendered, and stays the refund's id for ever."""

    request_id = forms.UUIDField(widget=forms.HiddenInput)
    payment = forms.ChoiceField(
        label=_("支払い"),
        widget=forms.RadioSelect,
        error_messages={
            "required": _("返金する支払いを選んでください。"),
            "invalid_choice": _("この注文の支払いを選んでください。"),
        },
    )
    amount = YenField(label=_("返金額"))
    reason = forms.ChoiceField(
        label=_("理由"),
        choices=Refund.Reason,
        initial=Refund.Reason.REQUESTED_BY_CUSTOMER,
        widget=forms.RadioSelect,
        error_messages={
            "required": _("理由を選んでください。"),
            "invalid_choice": _("理由は「お客様からの依頼」か「不正利用」から選んでください。"),
        },
    )
    description = PlainText(label=_("説明"), required=False, limit=DESCRIPTION_LENGTH)
    memo = PlainText(
        label=_("社内メモ"), required=False, limit=MEMO_LENGTH, lines=True, widget=forms.Textarea
    )

    def __init__(self, *args: Any, payments: list[Payment], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.payments = payments
        choice = self.fields["payment"]
        assert isinstance(choice, forms.ChoiceField)  # noqa: S101  (declared above)
        choice.choices = [(payment.pk, payment.pk) for payment in payments]

    def clean(self) -> dict[str, Any]:
        """Add to other errors that the amount is too high, as far as is known, so that all are told at once.

        Without other errors it is none here: services/ judges the amount, after the payment is read afresh. A field
        that was sent twice is an error: which of the two was meant, nobody can tell.
        """
        data: dict[str, Any] = self.cleaned_data
        for name in self.fields:
            if isinstance(self.data, QueryDict) and len(self.data.getlist(name)) > 1:
                self.add_error(name, forms.ValidationError(_("この項目が二度送信されました。"), "repeated"))
        if self.errors and "amount" in data and self.chosen and data["amount"] > self.chosen.refundable():
            self.add_error("amount", forms.ValidationError(services.too_high(self.chosen), "too_high"))
        return data

    @property
    def chosen(self) -> Payment | None:
        """The chosen payment, also in a form that is not valid or not bound; None if there is none."""
        pk = self["payment"].value()
        return next((payment for payment in self.payments if payment.pk == pk), None)

    def request(self) -> services.RefundRequest:
        """Return the request. The form has to be valid."""
        data = self.cleaned_data
        return services.RefundRequest(
            request_id=data["request_id"],
            payment_id=data["payment"],
            amount=data["amount"],
            reason=data["reason"],
            description=data["description"],
            memo=data["memo"],
        )


class SimilarForm(forms.Form):
    """Why a refund is made although there is a similar one."""

    similar_reason = PlainText(
        label=_("それでも返金する理由"),
        limit=MEMO_LENGTH,
        error_messages={"required": _("似た返金があります。それでも返金する理由を入力してください。")},
    )


class DecisionForm(forms.Form):
    """承認・却下. services/ asks for the reason of a rejection; that of an approval is optional."""

    note = PlainText(
        label=_("却下の理由・コメント"), required=False, limit=MEMO_LENGTH, lines=True, widget=forms.Textarea
    )


class ReviewForm(forms.Form):
    """要調査の判定: which of the refunds at Smartpay this is, or that there is none; and why."""

    choice = forms.CharField(
        label=_("判定"), max_length=80, error_messages={"required": _("判定を選んでください。")}
    )
    note = PlainText(
        label=_("理由"),
        limit=MEMO_LENGTH,
        lines=True,
        widget=forms.Textarea,
        error_messages={"required": _("判定の理由を入力してください。")},
    )
    # The round of review whose evidence the page showed.
    round = forms.IntegerField(required=False, widget=forms.HiddenInput)

    def clean(self) -> dict[str, Any]:
        """Return the arguments of services.decide_case(): `verdict`, `smartpay_id`, `note` and `at_round`."""
        choice = self.cleaned_data.get("choice", "")
        if choice == ReviewDecision.Verdict.NOT_EXECUTED:
            chosen = {"verdict": ReviewDecision.Verdict.NOT_EXECUTED, "smartpay_id": ""}
        else:
            chosen = {"verdict": ReviewDecision.Verdict.SUCCEEDED, "smartpay_id": choice}
        return chosen | {
            "note": self.cleaned_data.get("note", ""),
            "at_round": self.cleaned_data.get("round"),
        }


class BulkUploadForm(forms.Form):
    """一括返金: the upload of a file."""

    file = forms.FileField(
        label=_("CSV ファイル"),
        max_length=120,
        error_messages={
            "required": _("ファイルを選んでください。"),
            "missing": _("ファイルを選んでください。"),
            "invalid": _("ファイルを選んでください。"),
            "empty": _("ファイルが空です。"),
            "max_length": _("ファイル名が長すぎます(120文字まで)。"),
        },
    )


class SendsForm(forms.Form):
    """送信の停止と再開: why."""

    reason = PlainText(label=_("理由"), limit=200, error_messages={"required": _("理由を入力してください。")})


class FilterSelect(forms.Select):
    """A select without option groups, rendered by one template: Django's renders one for each option."""

    template_name = "refunds/select.html"


class FilterField(forms.ChoiceField):
    """A choice that filters a list."""

    widget = FilterSelect

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(required=False, **kwargs)


class PeriodForm(forms.Form):
    """期間: days in Japan's time, counted back from today."""

    PERIODS = {"today": 1, "week": 7, "month": 30, "quarter": 90, "year": 365}

    period = FilterField(
        label=_("期間"),
        choices=[
            ("", _("すべて")),
            ("today", _("今日")),
            ("week", _("過去7日間")),
            ("month", _("過去30日間")),
            ("quarter", _("過去90日間")),
            ("year", _("過去1年間")),
        ],
    )

    def since(self) -> datetime | None:
        """Return when the period began, at midnight in Japan; None for all time."""
        days = self.PERIODS.get(self.cleaned_data.get("period", ""))
        if days is None:
            return None
        first: date = timezone.localdate() - timedelta(days=days - 1)
        return timezone.make_aware(datetime.combine(first, time.min))

    def narrowing(self) -> int:
        """Return how many visible filters are set."""
        return sum(bool(self.cleaned_data.get(field.name)) for field in self.visible_fields())


class OrderFilterForm(PeriodForm):
    """The filters of 注文一覧, as they stand in its URL."""

    FILTERS = ("status", "refund_status", "period")
    field_order = ("search", *FILTERS)

    search = forms.CharField(required=False, widget=forms.HiddenInput, max_length=22)
    status = FilterField(
        label=_("状態"),
        choices=[
            ("", _("すべて(未払いを除く)")),
            (ANY_STATUS, _("すべて(未払いを含む)")),
            *[(status.value, status.label) for status in Order.Status if status != Order.Status.PENDING],
        ],
    )
    refund_status = FilterField(label=_("返金状況"), choices=[("", _("すべて")), *Order.RefundStatus.choices])

    def filters(self) -> Filters:
        """Return the filters. One that is not valid counts as not set."""
        self.is_valid()
        status = self.cleaned_data.get("status", "")
        return Filters(
            status=IN_PROGRESS if status == Order.Status.REQUIRES_AUTHORIZATION else status,
            refund_status=self.cleaned_data.get("refund_status", ""),
            period_from=self.since(),
        )


class SavedSearchForm(OrderFilterForm):
    """保存した検索: the filters and the search, with a name for them."""

    name = PlainText(label=_("名前"), limit=40, error_messages={"required": _("名前を入力してください。")})

    def clean(self) -> dict[str, Any]:
        data: dict[str, Any] = self.cleaned_data
        if not self.errors and not any(data[name] for name in ("search", *self.FILTERS)):
            raise forms.ValidationError(_("保存する条件がありません。"))
        return data

    def as_address(self) -> str:
        """Return the filters as a query string of 注文一覧, without the search. The form has to be valid."""
        return urlencode({name: self.cleaned_data[name] for name in self.FILTERS if self.cleaned_data[name]})


FILTERED_AMOUNT = {
    "number": _("金額は数字で入力してください(例: 1000)。"),
    "whole": _("金額は整数で入力してください。"),
    "positive": _("金額は1円以上で入力してください。"),
    "huge": _("金額が大きすぎます。"),
}
REQUESTERS = [role for role, permissions in roles.ROLES.items() if roles.REQUEST_REFUND in permissions]


class RefundFilterForm(PeriodForm):
    """The filters of 返金一覧, as they stand in its URL."""

    field_order = ("state", "person", "period", "min_amount", "max_amount")

    state = FilterField(label=_("状態"), choices=[("", _("すべて")), *Refund.State.choices])
    person = forms.ModelChoiceField(
        label=_("申請者"),
        required=False,
        widget=FilterSelect,
        queryset=User.objects.none(),
        empty_label=_("すべて"),
    )
    min_amount = YenField(label=_("金額(下限)"), required=False, error_messages=FILTERED_AMOUNT)
    max_amount = YenField(label=_("金額(上限)"), required=False, error_messages=FILTERED_AMOUNT)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        may_request = Exists(Group.objects.filter(user=OuterRef("pk"), name__in=REQUESTERS))
        has_requested = Exists(
            Refund.objects.filter(requested_by=OuterRef("pk"))
        )  # also people who have left
        people = User.objects.filter(may_request | has_requested).order_by("name")
        self.fields["person"].queryset = people  # type: ignore[attr-defined]

    def refunds(self) -> QuerySet[Refund]:
        """Return the refunds that match. A filter that is not valid counts as not set."""
        self.is_valid()
        data = self.cleaned_data
        wanted = {
            "state": data.get("state"),
            "requested_by": data.get("person"),
            "requested_at__gte": self.since(),
            "amount__gte": data.get("min_amount"),
            "amount__lte": data.get("max_amount"),
        }
        return Refund.objects.filter(**{name: value for name, value in wanted.items() if value})

"""Amounts, ids, times and errors, formatted as people read them."""

import re
from datetime import datetime
from typing import Any, Literal

from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

SIGNS = {"JPY": "¥"}
DECIMALS = {"JPY": 0, "KRW": 0, "VND": 0}  # of the minor unit; every other currency has two
SHORT_ID = 4  # characters of the random part kept on either side of the dots


def money(amount: int | Literal[""] | None, currency: str = "JPY") -> str:
    """Format an amount in the currency's minor unit: `¥1,000`, `USD 12.50`; `–` if there is none."""
    if amount is None or amount == "":  # templates pass "" for a missing value
        return "–"
    sign = ("−" if amount < 0 else "") + (SIGNS.get(currency) or f"{currency} ")
    decimals = DECIMALS.get(currency, 2)
    if not decimals:
        return f"{sign}{abs(amount):,}"
    whole, rest = divmod(abs(amount), 10**decimals)
    return f"{sign}{whole:,}.{rest:0{decimals}}"


def grouped(number: int) -> str:
    """Format a number: `10,000` in both languages."""
    return f"{number:,}"


def short_id(value: object) -> str:
    """Shorten an id: `order_test_bA1znhGULw5lROfDTpHChv` to `order_test_bA1z…HChv`. Short ids stay whole."""
    text = str(value)
    start = text.rfind("_", 0, 16) + 1  # a random part may hold an underscore too
    if len(text) - start <= 2 * SHORT_ID + 1:
        return text
    return f"{text[: start + SHORT_ID]}…{text[-SHORT_ID:]}"


def minute(moment: datetime) -> str:
    """Format a moment in local time: `2026/11/22 18:20` in both languages. Takes a tenth of the time of `date`."""
    return f"{timezone.localtime(moment):%Y/%m/%d %H:%M}"


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    """Say how long ago, without line breaks: `12 秒前`, `3 分前`, `5 時間前`; after a day the minute; "" for None."""
    if moment is None:
        return ""
    seconds = max(1, int(((now or timezone.now()) - moment).total_seconds()))
    if seconds < 60:
        said = ngettext("%(count)d 秒前", "%(count)d 秒前", seconds) % {"count": seconds}
    elif seconds < 3600:
        said = ngettext("%(count)d 分前", "%(count)d 分前", seconds // 60) % {"count": seconds // 60}
    elif seconds < 86400:
        said = ngettext("%(count)d 時間前", "%(count)d 時間前", seconds // 3600) % {"count": seconds // 3600}
    else:
        said = minute(moment)
    return said.replace(" ", "\N{NO-BREAK SPACE}")


# Our own notes for engineers about answers of Smartpay, as patterns: see Refund.error_message.
ERRORS: dict[str, Any] = {
    r"No answer within the deadline\.": gettext_lazy("時間内に応答がありませんでした。"),
    r"No answer: (?P<what>\w+)\.": gettext_lazy("応答がありませんでした(%(what)s)。"),
    r"The answer is not JSON\.": gettext_lazy("応答が JSON ではありませんでした。"),
    r"The answer lacks a field\.": gettext_lazy("応答に足りない項目がありました。"),
    r"The answer has a field of another type\.": gettext_lazy("応答に種類の違う項目がありました。"),
    r"The answer differs in: (?P<what>[a-z, ]+)\.": gettext_lazy("応答が申請と異なっていました: %(what)s"),
    r"The refund's status is one that we do not know\.": gettext_lazy("応答の状態が未知のものでした。"),
    r"The answer is too large\.": gettext_lazy("応答が大きすぎました。"),
    r"The answer was cut off\.": gettext_lazy("応答が途中で切れていました。"),
    r"(?P<what>refund_\w+) was sent and forgotten": gettext_lazy(
        "送信した記録がないのに、Smartpay に返金 %(what)s があります。"
    ),
    r"(?P<what>refund_\w+) exists, with a status of its own": gettext_lazy(
        "Smartpay に、未知の状態の返金 %(what)s があります。"
    ),
    r"(?P<what>refund_\w+) exists": gettext_lazy("Smartpay に返金 %(what)s があります。"),
    r"(?P<what>refund_\w+) differs": gettext_lazy("Smartpay の返金 %(what)s は申請と異なります。"),
    r"second refund (?P<what>refund_\w+)": gettext_lazy("Smartpay に二つ目の返金 %(what)s があります。"),
    r"a refund made elsewhere could be it, sent and forgotten": gettext_lazy(
        "このツール以外での返金が、送信した記録のないこの返金かもしれません。"
    ),
    r"a refund without our reference could be it": gettext_lazy(
        "受付番号のない返金が、この返金かもしれません。"
    ),
    r"unreadable for twelve hours": gettext_lazy("Smartpay を12時間読み取れませんでした。"),
}
FIELDS: dict[str, Any] = {
    "amount": gettext_lazy("金額"),
    "currency": gettext_lazy("通貨"),
    "id": gettext_lazy("Smartpay 返金ID"),
    "metadata": gettext_lazy("付随データ"),
    "object": gettext_lazy("種類"),
    "payment": gettext_lazy("支払い"),
    "reference": gettext_lazy("参照番号"),
    "test": gettext_lazy("テスト・本番の別"),
}


def error_text(message: str) -> str:
    """Translate a note of our own about an error; Smartpay's own message is returned as it is."""
    for pattern, words in ERRORS.items():
        if found := re.fullmatch(pattern, message):
            what = found.groupdict().get("what", "")
            named = _("、").join(str(FIELDS.get(each, each)) for each in what.split(", "))
            return str(words) % {"what": named}
    return message

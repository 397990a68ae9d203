"""What people read often: an amount, a shortened id, a minute, how long ago."""

from datetime import datetime
from typing import Literal

from django.utils import timezone
from django.utils.translation import ngettext

SIGNS = {"JPY": "¥"}
DECIMALS = {"JPY": 0, "KRW": 0, "VND": 0}  # of the minor unit; every other currency has two
SHORT_ID = 4  # characters kept on either side of the dots


def money(amount: int | Literal[""] | None, currency: str = "JPY") -> str:
    """`¥1,000`; `USD 12.50`; `–` where there is no amount. Amounts are in the currency's minor unit."""
    if amount is None or amount == "":  # a template has "" for what is not there
        return "–"
    sign = ("−" if amount < 0 else "") + (SIGNS.get(currency) or f"{currency} ")
    decimals = DECIMALS.get(currency, 2)
    if not decimals:
        return f"{sign}{abs(amount):,}"
    whole, rest = divmod(abs(amount), 10**decimals)
    return f"{sign}{whole:,}.{rest:0{decimals}}"


def grouped(number: int) -> str:
    """`10,000`, in both languages."""
    return f"{number:,}"


def short_id(value: object) -> str:
    """`order_test_bA1znhGULw5lROfDTpHChv` as `order_test_bA1z…HChv`; the prefix is kept, short ids stay whole."""
    text = str(value)
    start = text.rfind("_", 0, 16) + 1  # a random part may hold an underscore too
    if len(text) - start <= 2 * SHORT_ID + 1:
        return text
    return f"{text[: start + SHORT_ID]}…{text[-SHORT_ID:]}"


def minute(moment: datetime) -> str:
    """`2026/11/22 18:20`, the same in both languages. A tenth of the price of `date`, which a long list pays."""
    return f"{timezone.localtime(moment):%Y/%m/%d %H:%M}"


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    """`12 秒前`, `3 分前`, `5 時間前` in one piece; after a day the date and time; empty when never."""
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
        said = timezone.localtime(moment).strftime("%Y/%m/%d %H:%M")
    return said.replace(" ", "\N{NO-BREAK SPACE}")

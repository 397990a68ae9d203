"""Orders and refunds as CSV files for Excel: all pages of a list, with its filters."""

from collections.abc import Iterator
from typing import Any

from django.db.models import QuerySet
from django.forms import Form
from django.http import HttpRequest, StreamingHttpResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from dashboard import limits
from refunds import audit, paging, search, spreadsheet
from refunds.forms import OrderFilterForm, RefundFilterForm
from refunds.models import Refund, Search
from refunds.search import Filters, Found
from refunds.views.common import may_see
from refunds.views.orders import own_search
from refunds.wording import error_text

CHUNK = 500  # rows read at a time: neither memory nor a transaction grows with the file

# Note [Exported rows]
# A request for a file is recorded at once, with its filters. The number of its rows is known only when the last one is
# sent, and a download may break off before. So each chunk is recorded, with its rows, before it is sent: all rows that
# left are in the audit trail, and rows that can't be recorded do not leave.


@limits.limited(limits.LISTS)
@require_safe
@may_see
def order_export(request: HttpRequest) -> StreamingHttpResponse:
    typed = own_search(request, request.GET.get("search", "")).asked
    form = OrderFilterForm(request.GET)
    filters = form.filters()
    words: dict[str, Any] = {"words": search.words(typed)} if typed else {}
    audit.record(request.user, "orders.exported", typed, filters=_recorded(form), **words)
    heading = [
        _("注文日時"), _("注文ID"), _("ショップ注文番号"), _("お客様名"), _("メールアドレス"), _("通貨"), _("金額"),
        _("返金済み額"), _("状態"), _("返金状況"),
    ]  # fmt: skip
    return spreadsheet.download(_name("orders"), heading, _orders(request, typed, filters))


def _orders(request: HttpRequest, typed: Search | None, filters: Filters) -> Iterator[list[Any]]:
    """Yield the rows. If not all matches were looked at, a last row says so."""
    cursor, partial = "", False
    while True:
        if typed:
            page = search.find(typed.text, filters=filters, cursor=cursor, limit=CHUNK)
        else:
            page = search.list_orders(filters, cursor, limit=CHUNK)
        if cursor and not page.newer:
            break  # the orders that were left no longer match, so this is the first page again
        if shown := [order.order_id for order in page.orders]:
            # See Note [Exported rows].
            audit.record(request.user, "orders.exported", typed, entries=len(shown), shown=shown)
        yield from map(_order, page.orders)
        partial = partial or page.partial
        if not (cursor := page.older):
            break
    if partial:
        yield [_("一部のみ"), _("一致が多いため、すべては探していません。言葉を足して検索してください。")]


def _order(order: Found) -> list[Any]:
    return [
        spreadsheet.moment(order.created_at),
        order.order_id,
        order.reference,
        order.customer_name,
        order.email,
        order.currency,
        order.amount,
        order.refunded,
        order.get_status_display(),
        order.get_refund_status_display(),
    ]


@limits.limited(limits.LISTS)
@require_safe
@may_see
def refund_export(request: HttpRequest) -> StreamingHttpResponse:
    form = RefundFilterForm(request.GET)
    refunds = form.refunds()
    audit.record(request.user, "refunds.exported", None, filters=_recorded(form))
    heading = [
        _("申請日時"), _("受付番号"), _("注文ID"), _("ショップ注文番号"), _("お客様名"), _("支払いID"), _("通貨"),
        _("返金額"), _("状態"), _("理由"), _("説明"), _("申請者"), _("承認・却下した人"), _("承認・却下の日時"),
        _("確定日時"), _("Smartpay 返金ID"), _("エラーコード"), _("エラー内容"),
    ]  # fmt: skip
    return spreadsheet.download(_name("refunds"), heading, _refunds(request, refunds))


def _refunds(request: HttpRequest, refunds: QuerySet[Refund]) -> Iterator[list[Any]]:
    refunds = refunds.select_related("payment__order", "requested_by", "decided_by")
    cursor = ""
    while True:
        page, _newer, cursor = paging.newest_first(refunds, "requested_at", cursor, size=CHUNK)
        if shown := [str(refund.pk) for refund in page]:
            # See Note [Exported rows].
            audit.record(request.user, "refunds.exported", None, entries=len(shown), shown=shown)
        yield from map(_refund, page)
        if not cursor:
            return


def _refund(refund: Refund) -> list[Any]:
    order = refund.payment.order
    return [
        spreadsheet.moment(refund.requested_at),
        refund.pk,
        order.order_id,
        order.reference,
        order.customer_name,
        refund.payment_id,
        refund.currency,
        refund.amount,
        refund.label,
        refund.get_reason_display(),
        refund.description,
        refund.requested_by,
        refund.decided_by,
        spreadsheet.moment(refund.decided_at),
        spreadsheet.moment(refund.settled_at),
        refund.smartpay_id,
        refund.error_code,
        error_text(refund.error_message),
    ]


def _recorded(form: Form) -> dict[str, str]:
    """Return the filters for the audit trail: fields of the form alone, nothing else that stood in the address."""
    return {name: str(getattr(value, "pk", value)) for name, value in form.cleaned_data.items() if value}


def _name(what: str) -> str:
    return f"{what}-{timezone.localtime():%Y%m%d-%H%M%S}.csv"

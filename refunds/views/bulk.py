"""一括返金: the list of files, and the page of a file, where it is checked, started, decided and followed."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import permission_required
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_safe

from dashboard import limits, opened
from dashboard.sso.decorators import fresh_sign_in_required
from refunds import audit, bulk_file, csv_file, paging, roles, services, spreadsheet
from refunds import bulk as bulk_refunds
from refunds.bulk import Share
from refunds.forms import BulkUploadForm, DecisionForm, SimilarForm
from refunds.models import Bulk, BulkLine, Refund
from refunds.views.common import may_see, parked_fields, person, remember_way_back, see_other, viewed
from refunds.wording import error_text

RENEW_SECONDS = {Bulk.State.CHECKING: 2, Bulk.State.RUNNING: 3, Bulk.State.PAUSED: 15}
PAUSABLE = (Bulk.State.RUNNING, Bulk.State.PAUSED)
SETTLED = (*(state for state in Refund.State if state not in Refund.RESERVING), BulkLine.State.REFUSED)


@require_http_methods(["GET", "HEAD", "POST"])
@may_see
def bulk_list(request: HttpRequest) -> HttpResponseBase:
    """List the files, newest first, with the form for the next one; a post uploads it."""
    if request.method == "POST":
        return _upload(request)
    return _render_list(request, BulkUploadForm())


@permission_required(roles.REQUEST_REFUND, raise_exception=True)
def _upload(request: HttpRequest) -> HttpResponse:
    if wait := limits.hit(request, limits.REFUND_FORMS):
        return limits.too_many(request, wait)
    form = BulkUploadForm(request.POST, request.FILES)
    if not form.is_valid():
        return _render_list(request, form, status=422)
    file = form.cleaned_data["file"]
    try:
        bulk, is_new = bulk_refunds.upload(file.name, file.read(), by=person(request))
    except csv_file.BadFile as error:
        audit.record(request.user, "bulk.uploaded", None, refused=True, why="unreadable")
        form.add_error("file", str(error))
        return _render_list(request, form, status=422)
    if not is_new:
        messages.warning(
            request,
            _(
                "同じ内容のファイルがすでに取り込まれています。二重に返金しないように、その一括返金を開きました。"
            ),
        )
    return see_other("refunds:bulk", bulk.pk)


def _render_list(request: HttpRequest, form: BulkUploadForm, status: int = 200) -> HttpResponse:
    rows, newer, older = paging.newest_first(
        Bulk.objects.select_related("uploaded_by"), "uploaded_at", request.GET.get("page", "")
    )
    audit.record(request.user, "bulk.viewed", None, shown=[str(each.pk) for each in rows])
    remember_way_back(request)
    context = {
        "bulks": rows,
        "form": form,
        "most_lines": bulk_file.MOST_LINES,
        "newer_url": paging.url(request.GET, newer),
        "older_url": paging.url(request.GET, older),
    }
    return render(request, "refunds/bulk_list.html", context, status=status)


@require_safe
@may_see
def bulk_template(request: HttpRequest) -> HttpResponseBase:
    """A file to fill in: the heading and two examples."""
    examples = [
        ["order_…", "", "1000", _("欠品のため"), str(Refund.Reason.REQUESTED_BY_CUSTOMER.label)],
        ["", "EC-1001", _("残額"), "", ""],
    ]
    heading = [_("注文ID"), _("ショップ注文番号"), _("返金額"), _("説明"), _("理由")]
    return spreadsheet.download("bulk-refund-template.csv", heading, examples)


@limits.limited(limits.ORDERS)
@opened.renews_itself
@require_http_methods(["GET", "HEAD", "POST"])
@may_see
def bulk_detail(request: HttpRequest, bulk_id: uuid.UUID) -> HttpResponseBase:
    """The page of a file, line by line; a post acts on the file: see ACTS."""
    bulk = get_object_or_404(Bulk.objects.select_related("uploaded_by", "decided_by"), pk=bulk_id)
    if request.method != "POST":
        return _render(request, bulk)
    act = ACTS.get(request.POST.get("do", ""))
    if act is None:
        return _render(request, bulk, status=400)
    try:
        return act(request, bulk)
    except bulk_refunds.BulkError as error:
        audit.record(request.user, "bulk.viewed", bulk, refused=True, tried=request.POST["do"])
        messages.warning(request, str(error))
        return see_other("refunds:bulk", bulk.pk)


def _start(request: HttpRequest, bulk: Bulk) -> HttpResponseBase:
    tally, wanted, similar_reason = bulk_refunds.tally(bulk), [BulkLine.State.READY], ""
    if request.POST["do"] == "start_with_similar":
        form = SimilarForm(request.POST)
        if not form.is_valid():
            return _render(request, bulk, similar_form=form, status=422)
        wanted, similar_reason = [*wanted, BulkLine.State.SIMILAR], form.cleaned_data["similar_reason"]
    total = _sum([tally.get(name, Share()) for name in wanted]).total
    started = fresh_sign_in_required(_start_now) if services.needs_approval(total) else _start_now
    return started(request, bulk, similar_reason)


def _start_now(request: HttpRequest, bulk: Bulk, similar_reason: str) -> HttpResponseBase:
    bulk_refunds.start(bulk.pk, by=person(request), similar_reason=similar_reason)
    return see_other("refunds:bulk", bulk.pk)


@fresh_sign_in_required
def _decide(request: HttpRequest, bulk: Bulk) -> HttpResponseBase:
    form = DecisionForm(request.POST)
    if not form.is_valid():
        return _render(request, bulk, decision_form=form, status=422)
    try:
        bulk_refunds.decide(
            bulk.pk,
            by=person(request),
            approved=request.POST["do"] == "approve",
            note=form.cleaned_data["note"],
        )
    except bulk_refunds.BulkError as error:
        if not error.field:
            raise
        form.add_error(error.field, str(error))
        return _render(request, bulk, decision_form=form, status=422)
    return see_other("refunds:bulk", bulk.pk)


def _pause(request: HttpRequest, bulk: Bulk) -> HttpResponseBase:
    bulk_refunds.pause(bulk.pk, by=person(request), paused=request.POST["do"] == "pause")
    return see_other("refunds:bulk", bulk.pk)


def _cancel(request: HttpRequest, bulk: Bulk) -> HttpResponseBase:
    cancelled = bulk_refunds.cancel(bulk.pk, by=person(request))
    # Nothing but a decision leads from 承認待ち to a file that runs, and it leaves the name of who decided.
    if bulk.state == Bulk.State.AWAITING_APPROVAL and cancelled.decided_by_id is None:
        messages.success(request, _("申請を取り下げました。何も返金していません。"))
    else:
        messages.success(request, _("中止しました。まだ送信していなかった返金は行われません。"))
    return see_other("refunds:bulk", bulk.pk)


ACTS = {
    "start": _start,
    "start_with_similar": _start,
    "approve": _decide,
    "reject": _decide,
    "pause": _pause,
    "resume": _pause,
    "cancel": _cancel,
}


def _render(
    request: HttpRequest,
    bulk: Bulk,
    *,
    similar_form: SimilarForm | None = None,
    decision_form: DecisionForm | None = None,
    status: int = 200,
) -> HttpResponse:
    tally = bulk_refunds.tally(bulk)
    wanted = request.GET.get("state", "")
    lines = _narrowed(bulk.lines.select_related("payment__order").order_by("number"), wanted)
    after = request.GET.get("after", "")
    if after.isdecimal() and len(after) < 10:
        lines = lines.filter(number__gt=int(after))
    shown = list(lines[: paging.PAGE + 1])
    more, shown = len(shown) > paging.PAGE, shown[: paging.PAGE]
    orders = dict.fromkeys(line.payment.order.order_id for line in shown if line.payment)
    viewed(request, "bulk.viewed", bulk, shown=list(orders))
    ready, similar = (tally.get(name, Share()) for name in (BulkLine.State.READY, BulkLine.State.SIMILAR))
    with_similar = _sum([ready, similar])
    mine = bulk.uploaded_by_id == request.user.pk
    can_start = bulk.state == Bulk.State.CHECKED and mine and request.user.has_perm(roles.REQUEST_REFUND)
    can_decide = (
        bulk.state == Bulk.State.AWAITING_APPROVAL
        and not mine
        and request.user.has_perm(roles.APPROVE_REFUND)
    )
    back = request.session.get("way_back", "")
    to_approvals = back.partition("?")[0] == reverse("refunds:approvals")
    context = {
        "bulk": bulk,
        "back_url": back if to_approvals else reverse("refunds:bulk_list"),
        "back_label": _("承認に戻る") if to_approvals else _("一括返金"),
        "lines": [_line_row(bulk, line, refund) for line, refund in bulk_refunds.with_rows(shown)],
        "shares": _share_rows(bulk, tally),
        "wanted": wanted,
        "next_url": f"?state={wanted}&after={shown[-1].number}" if more else "",
        "is_first": not after,
        "ready": ready,
        "with_similar": with_similar,
        "similar": similar,
        "problems": tally.get(BulkLine.State.PROBLEM, Share()),
        "checked": bulk.lines_count - tally.get(BulkLine.State.UNCHECKED, Share()).lines,
        "settled": _sum([share for name, share in tally.items() if name in SETTLED]),
        "refunded": tally.get(Refund.State.SUCCEEDED, Share()),
        "not_refunded": _sum([share for name, share in tally.items() if name in NOTHING_PAID]),
        "unsettled": _sum([share for name, share in tally.items() if name in Refund.RESERVING]),
        "has_ended": bulk.state not in Bulk.OPEN,
        "to_refund": _sum([share for name, share in tally.items() if name not in NOT_REFUNDED]),
        "needs_approval": services.needs_approval(ready.total),
        "asks_only": services.needs_approval((ready if ready.lines else with_similar).total),
        "similar_needs_approval": services.needs_approval(with_similar.total),
        "similar_form": similar_form or SimilarForm(initial=parked_fields(request)),
        "decision_form": decision_form or DecisionForm(initial=parked_fields(request)),
        "renew_seconds": RENEW_SECONDS.get(Bulk.State(bulk.state), 0),
        "renewal_query": opened.renewal_query(request),
        "can_start": can_start,
        "can_decide": can_decide,
        "typing": can_decide
        or (can_start and similar.lines),  # links open in a tab of their own, or what is typed would be lost
        "can_pause": bulk.state in PAUSABLE
        and request.user.has_perm(roles.REQUEST_REFUND)
        and (mine or request.user.has_perm(roles.APPROVE_REFUND)),
        "can_resume": bulk_refunds.may_resume(bulk, person(request)),
        "can_cancel": (mine or request.user.has_perm(roles.APPROVE_REFUND)) and bulk.state in Bulk.OPEN,
    }
    return render(request, "refunds/bulk_detail.html", context, status=status)


NOT_REFUNDED = (
    BulkLine.State.PROBLEM,
    BulkLine.State.LEFT_OUT,
    BulkLine.State.SIMILAR,
    BulkLine.State.UNCHECKED,
)
# Lines, and refunds of lines, for which no money has left or will.
NOTHING_PAID = (
    BulkLine.State.PROBLEM,
    BulkLine.State.LEFT_OUT,
    *(state for state in SETTLED if state != Refund.State.SUCCEEDED),
)
NOTHING_PAID_NAME = "not_refunded"  # of all of them, in the address


def _narrowed(lines: QuerySet[BulkLine], wanted: str) -> QuerySet[BulkLine]:
    """Return the lines that bulk.tally() counts as `wanted`: a state of a line or of a refund, or NOTHING_PAID_NAME."""
    refunds = Refund.objects.filter(pk=OuterRef("request_id"))
    if wanted == NOTHING_PAID_NAME:
        own = Q(state__in=[state for state in NOTHING_PAID if state in BulkLine.State])
        return lines.filter(
            own | Q(Exists(refunds.filter(state__in=NOTHING_PAID)), state=BulkLine.State.ASKED)
        )
    if wanted in Refund.State:
        return lines.filter(Exists(refunds.filter(state=wanted)), state=BulkLine.State.ASKED)
    return lines.filter(state=wanted) if wanted in BulkLine.State else lines


@dataclass(frozen=True, slots=True)
class LineRow:
    """A line as the page shows it."""

    line: BulkLine
    refund: Refund | None
    label: str
    amount: int | None  # in yen; None if the file has no number there
    is_void: bool  # no money has left for it, or will


def _line_row(bulk: Bulk, line: BulkLine, refund: Refund | None) -> LineRow:
    amount = bulk_refunds.yen(line.amount_text) if line.amount is None else line.amount
    state = refund.state if refund else line.state
    return LineRow(line, refund, _label(bulk, line.state), amount, is_void=state in NOTHING_PAID)


def _sum(shares: list[Share]) -> Share:
    return Share(sum(each.lines for each in shares), sum(each.total for each in shares))


def _label(bulk: Bulk, state: str) -> str:
    """Return the state of a line or of its refund in words. A ready line waits as its file does."""
    if state == BulkLine.State.READY and bulk.state in PAUSABLE:
        return _("順番待ち")
    if state == BulkLine.State.READY and bulk.state == Bulk.State.AWAITING_APPROVAL:
        return str(Bulk.State.AWAITING_APPROVAL.label)
    return str({**dict(BulkLine.State.choices), **dict(Refund.State.choices)}[state])


@dataclass(frozen=True, slots=True)
class ShareRow:
    """How many lines of a file came to this, and what they refund."""

    name: str  # a BulkLine.State or a Refund.State
    label: str
    share: Share

    @property
    def has_sum(self) -> bool:
        """Whether its sum is money. What a line with a problem asks for is nobody's."""
        return self.name != BulkLine.State.PROBLEM


def _share_rows(bulk: Bulk, tally: dict[str, Share]) -> list[ShareRow]:
    """Return what became of the lines, what is not settled first."""
    order = [*Refund.OPEN, *Refund.State.values, *BulkLine.State.values]
    names = dict.fromkeys(str(name) for name in order if name in tally)
    return [ShareRow(name, _label(bulk, name), tally[name]) for name in names]


@require_safe
@may_see
def bulk_result(request: HttpRequest, bulk_id: uuid.UUID) -> HttpResponseBase:
    """What became of each line, as a CSV for Excel."""
    bulk = get_object_or_404(Bulk, pk=bulk_id)
    audit.record(request.user, "bulk.exported", bulk)
    heading = [
        _("行"), _("注文ID"), _("ショップ注文番号"), _("返金額"), _("説明"), _("状態"), _("金額"), _("内容"),
        _("受付番号"), _("Smartpay 返金ID"), _("申請日時"), _("確定日時"),
    ]  # fmt: skip
    return spreadsheet.download(f"bulk-{bulk.pk}.csv", heading, _result(bulk))


def _result(bulk: Bulk) -> Iterator[list[Any]]:
    last = 0
    while lines := list(
        bulk.lines.filter(number__gt=last).select_related("payment__order").order_by("number")[:500]
    ):
        for line, refund in bulk_refunds.with_rows(lines):
            order = line.payment.order if line.payment else None
            yield [
                line.number,
                order.order_id if order else line.order_text,
                order.reference if order else line.reference_text,
                line.amount_text,
                line.description,
                refund.label if refund else _label(bulk, line.state),
                refund.amount if refund else line.amount,
                (error_text(refund.error_message) if refund else "") or line.get_problem_display(),
                refund.pk if refund else "",
                refund.smartpay_id if refund else "",
                spreadsheet.moment(refund.requested_at) if refund else "",
                spreadsheet.moment(refund.settled_at) if refund else "",
            ]
        last = lines[-1].number

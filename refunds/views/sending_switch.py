"""The switch that stops and resumes all sending: on 承認, and on the page of a case under review."""

from django.contrib import messages
from django.contrib.auth.decorators import permission_required
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.translation import gettext as _

from dashboard.parked_forms import posted_from
from dashboard.sso.decorators import fresh_sign_in_required
from refunds import roles, services
from refunds.forms import SendsForm
from refunds.models import Refund
from refunds.views.approvals import render_approvals
from refunds.views.common import person, refused, see_other, uuid_of
from refunds.views.refunds import refund_of
from refunds.views.reviews import render_case


def _page_of_switch(request: HttpRequest) -> str:
    """Return the address of the page with the switch's form: that of a case, or 承認."""
    case = uuid_of(request.POST.get("case", ""))
    return reverse("refunds:refund_review", args=[case]) if case else reverse("refunds:approvals")


@posted_from(_page_of_switch)
@permission_required(roles.APPROVE_REFUND, raise_exception=True)
@fresh_sign_in_required
def set_sending(request: HttpRequest) -> HttpResponse:
    """Stop or resume all sending, for a reason, and return to the page with the form."""
    form = SendsForm(request.POST)
    case_id = uuid_of(request.POST.get("case", ""))
    case = Refund.objects.filter(pk=case_id).first() if case_id else None
    if form.is_valid() and _is_set(request, form):
        return see_other("refunds:refund_review", case.pk) if case else see_other("refunds:approvals")
    if case:
        return render_case(request, refund_of(case.pk), sends_form=form, status=422)
    return render_approvals(request, form, status=422)


def _is_set(request: HttpRequest, form: SendsForm) -> bool:
    """Set the switch and return True; add the error to the form and return False if sending may not resume yet."""
    resume = "resume" in request.POST
    try:
        services.set_sends(enabled=resume, reason=form.cleaned_data["reason"], by=person(request))
    except services.NotReconciled as error:
        refused(request, "sends.resumed", None, error)
        form.add_error(None, str(error))
        return False
    messages.success(
        request,
        _("返金の送信を再開しました。待っていた返金は自動で送信します。")
        if resume
        else _("返金の送信を止めました。"),
    )
    return True

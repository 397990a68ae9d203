"""A form that needs a fresher sign-in: nothing is carried out, and after the sign-in the form is there as typed."""

import time
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from dashboard.models import User
from refunds import services
from refunds.models import Control, Payment, Refund, ReviewDecision
from tests import test_sso
from tests.conftest import Clock, make_user
from tests.dishonest_provider import DishonestProvider
from tests.sandbox import Sandbox
from tests.test_review import case_without_reference
from tests.test_services import ask, mirrored
from tests.test_sso import back, set_clock, sign_in, to_provider
from tests.test_views import hidden, typed

pytestmark = pytest.mark.django_db
running, idp, _nobody_waits_long = test_sso.running, test_sso.idp, test_sso._nobody_waits_long

NOT_SENT = "操作はまだ実行していません"


@pytest.fixture
def payment(db: None, sandbox: Sandbox, settings: Any) -> Payment:
    settings.REFUND_APPROVAL_ABOVE = 500
    return mirrored(sandbox, "refundable", min_amount=2000)


def signed_in(idp: DishonestProvider, client: Client, role: str) -> User:
    """Sign in with this role, longer ago than a decision allows; return the person."""
    idp.groups = [role]
    sign_in(client)
    set_clock(client, "auth_time", 400)
    return User.objects.get(subject="u-1")


def confirm(client: Client, payment: Payment, **other: str) -> Any:
    """Press the last button of the confirmation."""
    page = client.post(form_of(payment), typed(payment.order, **other))
    assert page.status_code == 200, page.content.decode()
    return client.post(form_of(payment), hidden(page) | {"confirm": "1"} | other)


def form_of(payment: Payment) -> str:
    return f"/orders/{payment.order.order_id}/refund/"


def step_up(client: Client, response: Any) -> Any:
    """Sign in again at the provider, and open the page that it leads back to."""
    assert response["Location"].startswith("/oidc/step-up/"), response["Location"]
    return client.get(back(client, to_provider(client, response["Location"]))["Location"])


# --- Asking for a large refund ----------------------------------------------------------------------------------
def test_asking_above_the_limit_wants_a_fresh_sign_in_and_then_shows_the_confirmation_as_it_was(
    idp: DishonestProvider, client: Client, payment: Payment, sandbox: Sandbox
) -> None:
    other = services.request_refund(
        ask(payment, 100), refundable=payment.refundable(), by=make_user("operator")
    )
    signed_in(idp, client, "operator")

    met = confirm(client, payment, amount="501", similar_reason="二点目の返品")
    shown = step_up(client, met)
    assert list(Refund.objects.all()) == [other]
    done = client.post(form_of(payment), hidden(shown) | {"confirm": "1", "similar_reason": "二点目の返品"})

    text = shown.content.decode()
    assert (idp.asked[-1]["prompt"], idp.asked[-1]["max_age"]) == ("login", "0")
    assert (shown.status_code, NOT_SENT in text) == (200, True)
    assert "¥501 の返金を申請する" in text
    assert "サイズ交換のため" in text
    assert "電話で確認" in text
    assert "二点目の返品</textarea>" in text
    made = Refund.objects.exclude(pk=other.pk).get()
    assert (made.state, made.amount) == (Refund.State.AWAITING_APPROVAL, 501)
    assert done["Location"] == f"/refunds/{made.pk}/"
    assert sandbox.requests("POST", "/v1/refunds") == []


@pytest.mark.parametrize(("above", "amount"), [(500, "500"), (None, "2000")])
def test_asking_up_to_the_limit_wants_none(
    idp: DishonestProvider, client: Client, payment: Payment, settings: Any, above: int | None, amount: str
) -> None:
    settings.REFUND_APPROVAL_ABOVE = above
    signed_in(idp, client, "operator")

    confirm(client, payment, amount=amount)

    assert Refund.objects.get().state == Refund.State.SUCCEEDED


def test_provider_that_did_not_ask_again_moves_no_large_refund(
    idp: DishonestProvider, client: Client, payment: Payment
) -> None:
    idp.in_id_token = {"auth_time": int(time.time()) - 400}
    signed_in(idp, client, "operator")

    met = confirm(client, payment, amount="501")
    told = back(client, to_provider(client, met["Location"]))

    assert "<h1>ご本人の再確認ができませんでした</h1>" in told.content.decode()
    assert confirm(client, payment, amount="501")["Location"].startswith("/oidc/step-up/")
    assert not Refund.objects.exists()


def test_confirmation_that_meets_the_silent_check_is_shown_again_too(
    idp: DishonestProvider, client: Client, payment: Payment
) -> None:
    signed_in(idp, client, "operator")
    page = client.post(form_of(payment), typed(payment.order, amount="500"))
    test_sso.recheck_is_due(client)

    met = client.post(form_of(payment), hidden(page) | {"confirm": "1"})
    shown = client.get(back(client, to_provider(client, met["Location"]))["Location"]).content.decode()

    assert NOT_SENT in shown
    assert "¥500 を返金する" in shown
    assert not Refund.objects.exists()


@pytest.mark.parametrize("pressed", [False, True])
def test_form_that_meets_the_end_of_the_session_is_not_sent_and_that_is_said(
    idp: DishonestProvider, client: Client, payment: Payment, pressed: bool
) -> None:
    signed_in(idp, client, "operator")
    fields = typed(payment.order, amount="500")
    page = client.post(form_of(payment), fields)
    set_clock(client, "seen_at", 100_000)

    met = client.post(form_of(payment), hidden(page) | {"confirm": "1"} if pressed else fields)
    told = client.get(met["Location"]).content.decode()
    back(client, to_provider(client, f"/oidc/authenticate/?next={form_of(payment)}"))
    shown = client.get(form_of(payment)).content.decode()

    assert "しばらく操作がなかったため、サインアウトしました。" in told
    assert (
        "入力した内容はまだ送信されていません。10 分以内にサインインすると、続きから確かめられます。" in told
    )
    assert "¥500 を返金する" in shown if pressed else 'name="amount" value="500"' in shown
    assert not Refund.objects.exists()


def test_file_that_meets_the_end_of_the_session_is_not_called_kept(
    idp: DishonestProvider, client: Client
) -> None:
    signed_in(idp, client, "operator")
    set_clock(client, "seen_at", 100_000)

    met = client.post("/bulk/", {"file": SimpleUploadedFile("a.csv", b"x")})
    told = client.get(met["Location"]).content.decode()

    assert "ファイルは送信されていません。サインインしてから、もう一度選んでください。" in told
    assert "続きから" not in told


def test_form_that_was_given_up_is_dropped_though_the_sign_in_had_to_be_checked(
    idp: DishonestProvider, client: Client, payment: Payment
) -> None:
    signed_in(idp, client, "operator")
    client.post(form_of(payment), typed(payment.order, amount="500"))
    test_sso.recheck_is_due(client)

    met = client.post(form_of(payment), {"drop": "1"})
    led = client.get(back(client, to_provider(client, met["Location"]))["Location"])

    assert led["Location"] == f"/orders/{payment.order.order_id}/"
    assert 'name="amount" value=""' in client.get(form_of(payment)).content.decode()


# --- Forms that are posted elsewhere ----------------------------------------------------------------------------
@pytest.fixture
def waiting(payment: Payment) -> Refund:
    return services.request_refund(
        ask(payment, 600), refundable=payment.refundable(), by=make_user("operator")
    )


@pytest.mark.parametrize("referer", ["/refunds/{}/", "/refunds/{}/decide/", ""])
def test_decision_comes_back_to_the_refund_wherever_it_was_posted_from(
    idp: DishonestProvider, client: Client, waiting: Refund, referer: str
) -> None:
    """A refused decision is drawn at the address it was posted to, which accepts posts only."""
    signed_in(idp, client, "approver")
    headers = {"Referer": f"http://testserver{referer.format(waiting.pk)}"} if referer else {}

    met = client.post(
        f"/refunds/{waiting.pk}/decide/", {"reject": "1", "note": "金額が違います"}, headers=headers
    )
    shown = step_up(client, met)

    assert (shown.status_code, shown.wsgi_request.path) == (200, f"/refunds/{waiting.pk}/")
    assert NOT_SENT in shown.content.decode()
    assert "金額が違います</textarea>" in shown.content.decode()
    waiting.refresh_from_db()
    assert waiting.state == Refund.State.AWAITING_APPROVAL


@pytest.mark.parametrize("referer", ["/approvals/", "/refunds/sends/", ""])
def test_switch_comes_back_to_the_page_it_is_on(
    idp: DishonestProvider, client: Client, db: None, referer: str
) -> None:
    signed_in(idp, client, "approver")
    headers = {"Referer": f"http://testserver{referer}"} if referer else {}

    met = client.post("/refunds/sends/", {"stop": "1", "reason": "不審な返金"}, headers=headers)
    shown = step_up(client, met)

    assert (shown.status_code, shown.wsgi_request.path) == (200, "/approvals/")
    assert 'value="不審な返金"' in shown.content.decode()
    assert Control.sends_are_on()


@pytest.mark.parametrize("target", ["review/", "../sends/"])
def test_what_is_typed_on_the_page_of_a_case_comes_back_to_it(
    idp: DishonestProvider,
    client: Client,
    payment: Payment,
    sandbox: Sandbox,
    settings: Any,
    at: Clock,
    target: str,
) -> None:
    settings.REFUND_APPROVAL_ABOVE = None
    case, there = case_without_reference(payment, make_user("operator"), sandbox, at)
    signed_in(idp, client, "approver")
    url = {"review/": f"/refunds/{case.pk}/review/", "../sends/": "/refunds/sends/"}[target]
    fields = {
        "choice": there["id"],
        "note": "管理画面で確認済み",
        "stop": "1",
        "reason": "不審",
        "case": case.pk,
    }

    shown = step_up(client, client.post(url, fields, headers={"Referer": f"http://testserver{url}"}))

    assert (shown.status_code, shown.wsgi_request.path) == (200, f"/refunds/{case.pk}/review/")
    assert "管理画面で確認済み</textarea>" in shown.content.decode()
    assert not ReviewDecision.objects.exists()
    assert Control.sends_are_on()


def test_address_that_takes_posts_alone_leads_to_the_page_with_its_form(
    idp: DishonestProvider, client: Client, waiting: Refund
) -> None:
    signed_in(idp, client, "approver")

    led = {
        url: client.get(url)["Location"]
        for url in (f"/refunds/{waiting.pk}/decide/", "/refunds/sends/", "/orders/search/")
    }

    assert list(led.values()) == [f"/refunds/{waiting.pk}/", "/approvals/", "/orders/"]


def test_search_without_a_referer_that_meets_the_silent_check_is_kept(
    idp: DishonestProvider, client: Client, db: None
) -> None:
    signed_in(idp, client, "viewer")
    test_sso.recheck_is_due(client)

    met = client.post("/orders/search/", {"q": "田中"})
    shown = client.get(back(client, to_provider(client, met["Location"]))["Location"])

    assert shown.wsgi_request.path == "/orders/"
    assert 'value="田中"' in shown.content.decode()

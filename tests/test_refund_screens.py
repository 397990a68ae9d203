"""What the screens of a refund say of the money, from the order to its result: no figure may promise too much."""

import re
from html import unescape
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import User
from refunds import scanning, services, smartpay
from refunds.models import Order, Payment, Refund
from refunds.wording import money
from tests.conftest import sign_in
from tests.sandbox import Sandbox
from tests.test_approvals import fresh
from tests.test_services import mirrored, refund
from tests.test_views import form_url, hidden, typed

State = Refund.State


@pytest.fixture
def paid(db: None, sandbox: Sandbox) -> Order:
    """An order of ¥2,000 or more that the sandbox has, mirrored and never refunded."""
    return mirrored(sandbox, "refundable", min_amount=2000).order


@pytest.fixture
def several(db: None, sandbox: Sandbox) -> Order:
    """An order of two payments or more."""
    return mirrored(sandbox, "several_payments").order


@pytest.fixture
def browser(operator: User) -> Client:
    return sign_in(operator)


def said(page: Any) -> str:
    """What is read on a page: without its marks, each run of white space as one space."""
    words = re.sub(r"<[^>]+>", "", page.content.decode().partition("<main")[2])
    return re.sub(r"\s+", " ", unescape(words))


def order_page(browser: Client, order: Order) -> Any:
    return browser.get(reverse("refunds:order", args=[order.order_id]))


def refund_page(browser: Client, made: Refund) -> Any:
    return browser.get(reverse("refunds:refund", args=[made.pk]))


# --- An order of several payments ---------------------------------------------------------------------------


def test_what_is_left_of_a_payment_is_never_told_as_what_is_left_of_its_order(
    browser: Client, several: Order
) -> None:
    first, *others = several.payments.all()
    left = money(sum(payment.refundable() for payment in others), "JPY")
    whole = f"注文全体の残り {left} (ほかの支払い {len(others)} 件"

    form = said(browser.get(form_url(several)))
    page = browser.post(form_url(several), typed(several, payment=first.pk, amount=str(first.captured)))
    done = browser.post(form_url(several), hidden(page) | {"confirm": "1"})
    result = browser.get(done["Location"])

    assert "返金は支払いごとに行います" in form
    assert f"返金後の残り ¥0 (この支払い) {whole})" in said(page)
    assert Refund.objects.get().state == State.SUCCEEDED
    told = (
        said(result).replace("返金後の残り¥", "返金後の残り ¥").replace("注文全体の残り¥", "注文全体の残り ¥")
    )
    assert f"返金後の残り ¥0 (この支払い) {whole}、いまの額)" in told
    assert f'href="{form_url(several)}">残りの支払いを返金する</a>' in result.content.decode()


def test_order_of_one_payment_speaks_of_no_other(browser: Client, paid: Order) -> None:
    form = browser.get(form_url(paid))
    page = browser.post(form_url(paid), typed(paid))
    result = browser.get(browser.post(form_url(paid), hidden(page) | {"confirm": "1"})["Location"])

    for each in (form, page, result):
        assert not re.search("この支払い|注文全体|ほかの支払い|残りの支払い|支払いごとに", said(each))


def test_confirmation_says_the_sum_in_one_sentence_after_the_other(browser: Client, paid: Order) -> None:
    before = paid.payments.get().refundable()

    page = browser.post(form_url(paid), typed(paid))

    sums = f"返金可能額 {money(before)} のうち ¥1,000 を返金します。返金後の残り {money(before - 1000)}"
    assert sums in said(page)


# --- What waits, what failed, and what people have to judge ----------------------------------------------------


def test_order_tells_of_a_refund_that_waits_for_approval(
    browser: Client, paid: Order, operator: User, settings: Any
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 500
    waiting = refund(paid.payments.get(), operator)
    assert waiting.state == State.AWAITING_APPROVAL

    page = order_page(browser, paid)

    told = rf"¥1,000 の返金が承認待ちです\({operator.name}\sさん、[\d/]+ [\d:]+\)。まだ Smartpay に送られていません。"
    assert re.search(told, said(page))
    assert f'href="/refunds/{waiting.pk}/">その返金を見る</a>' in page.content.decode()
    assert "申請中・処理中の返金 ¥1,000" in re.sub("返金¥", "返金 ¥", said(page))


def test_order_tells_of_a_refund_that_waits_to_be_sent(
    browser: Client, paid: Order, operator: User, approver: User
) -> None:
    services.set_sends(enabled=False, reason="障害", by=approver)
    assert refund(paid.payments.get(), operator).state == State.QUEUED

    assert re.search(
        "¥1,000 の返金が送信待ちです.*まだ Smartpay に送られていません。", said(order_page(browser, paid))
    )


def test_refund_that_failed_stands_once_on_its_orders_timeline(
    browser: Client, paid: Order, operator: User, sandbox: Sandbox
) -> None:
    sandbox.fault("status_failed")
    assert refund(paid.payments.get(), operator).state == State.REJECTED

    page = order_page(browser, paid).content.decode()

    assert (page.count("at-refund"), page.count("at-external")) == (1, 0)
    assert re.search(r'entry-amount num void">¥1,000<', page)  # it did not move


def test_second_failed_refund_of_a_row_is_still_shown(
    browser: Client, paid: Order, operator: User, sandbox: Sandbox
) -> None:
    sandbox.fault("status_failed")
    made = refund(paid.payments.get(), operator)
    again = sandbox.refund_elsewhere(paid.payments.get().pk, 10, reference=str(made.pk))
    sandbox.set(again["id"], status="failed")

    page = order_page(browser, paid).content.decode()

    assert (page.count("at-refund"), page.count("at-external"), again["id"] in page) == (1, 1, True)


@pytest.fixture
def larger(paid: Order, operator: User, sandbox: Sandbox) -> Refund:
    """¥1,000 were asked for, and Smartpay shows ¥1,300."""
    sandbox.fault("reset", executed=True)
    sandbox.fault("html", method="GET", path="", times=None)
    made = refund(paid.payments.get(), operator)
    sandbox.clear_faults()
    [there] = [
        each
        for each in sandbox.api("GET", "/refunds").json()["data"]
        if each.get("reference") == str(made.pk)
    ]
    sandbox.set(there["id"], amount=1300)
    return made


def test_order_counts_as_refunded_nothing_that_people_have_yet_to_judge(
    browser: Client, larger: Refund, paid: Order
) -> None:
    page = order_page(browser, paid)
    larger.refresh_from_db()
    assert (larger.state, Payment.objects.get(order=paid).external) == (State.REVIEW, 300)

    told = said(page)
    assert re.search(r"返金済み額 ?¥0 ?申請 ¥1,000 / Smartpay の表示 ¥1,300\(判定待ち\)", told)
    assert "¥300" not in told
    assert "判定後に確定" in told
    assert 'class="figure-main unsure"' in page.content.decode()


def test_case_says_that_it_is_the_amount_and_what_to_tell_the_customer(
    browser: Client, larger: Refund, paid: Order, approver: User
) -> None:
    order_page(browser, paid)

    own, judge = (
        said(each.get(reverse("refunds:refund_review", args=[larger.pk])))
        for each in (browser, sign_in(approver))
    )

    assert "金額が申請と異なります(申請 ¥1,000、Smartpay ¥1,300)。" in own
    customers = (
        "お客様には「ただいま Smartpay に確認しています。結果が分かりしだいご連絡します」とお伝えください。"
    )
    assert customers in own
    assert customers in said(refund_page(browser, larger))
    assert ("返金不成立とは判定できません" in own, "返金不成立とは判定できません" in judge) == (False, True)


def test_only_what_was_captured_is_offered_of_an_order_captured_in_part(
    browser: Client, sandbox: Sandbox, db: None
) -> None:
    part = mirrored(sandbox, "partly_captured").order

    assert f"売上が確定した {money(part.payments.get().captured)} の分だけです。" in said(
        order_page(browser, part)
    )


def test_missing_name_is_called_normal(browser: Client, db: None, sandbox: Sandbox, paid: Order) -> None:
    normal = "決済時にお名前が登録されない注文です(異常ではありません)。"

    assert normal in said(order_page(browser, paid))  # of a token: no checkout session names anybody
    assert f'title="{normal}">お名前の登録なし' in browser.get(reverse("refunds:order_list")).content.decode()


# --- Before the last button, and after it --------------------------------------------------------------------


def test_confirmation_says_above_its_button_that_nothing_is_sent_now(
    browser: Client, paid: Order, approver: User
) -> None:
    stopped = "送信は停止中です。押すと受け付けだけ行い、再開後に自動で送信します。"
    assert stopped not in said(browser.post(form_url(paid), typed(paid)))
    services.set_sends(enabled=False, reason="障害", by=approver)

    page = browser.post(form_url(paid), typed(paid))

    assert stopped in said(page)
    assert "送信しています" not in page.content.decode()  # nor when it is pressed
    assert "¥1,000 を返金する" in said(page)


def test_refund_that_is_held_says_so_first_and_names_no_next_look(
    browser: Client, paid: Order, operator: User, approver: User
) -> None:
    services.set_sends(enabled=False, reason="障害", by=approver)
    made = refund(paid.payments.get(), operator)

    told = said(refund_page(browser, made))

    held, taken = told.index("再開されると自動で送信します"), told.index("受け付けました")
    assert held < taken
    assert not re.search("次の確認|順番が来ると", told)


def test_confirmation_of_a_request_promises_neither_mail_nor_money(
    browser: Client, paid: Order, settings: Any
) -> None:
    paid.email = "tanaka@example.jp"
    paid.save()
    settings.REFUND_APPROVAL_ABOVE = 500

    told = said(browser.post(form_url(paid), typed(paid)))

    assert "承認されるまでは、申請を取り下げることができます。 承認後の返金は取り消せません。" in told
    assert "承認されて返金されると、tanaka@example.jp に Smartpay からメールが届きます。" in told


def test_confirmation_whose_balance_is_gone_offers_no_other_refund(
    browser: Client, paid: Order, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = browser.post(form_url(paid), typed(paid))
    sandbox.refund_elsewhere(paid.payments.get().pk)
    services.read_order(paid.order_id, client=smartpay.client())

    late = browser.post(form_url(paid), hidden(page) | {"confirm": "1"})

    assert (late.status_code, Refund.objects.count()) == (422, 0)
    assert "いまの返金可能額は¥0です。何も送られていません。" in said(late)
    assert 'name="amount"' not in late.content.decode()
    assert f'href="/orders/{paid.order_id}/#timeline">注文の履歴を見る</a>' in late.content.decode()


def test_what_is_left_is_called_an_estimate_where_smartpay_lists_no_refunds(
    browser: Client, paid: Order, operator: User, approver: User, sandbox: Sandbox, settings: Any
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 500

    def pages() -> list[str]:
        """The order, the form, the confirmation, the decision."""
        on_the_way = (
            order_page(browser, paid),
            browser.get(form_url(paid)),
            browser.post(form_url(paid), typed(paid)),
        )
        waiting = refund(paid.payments.get(), operator, 600)
        decision = refund_page(sign_in(approver), waiting)
        services.withdraw(waiting.pk, by=operator)
        return [said(page) for page in (*on_the_way, decision)]

    assert not [told for told in pages() if "目安です" in told]
    sandbox.switch(payments_list_refunds=False)
    assert all("返金の一覧もまだ読み取っていません" in told for told in pages())
    scanning.scan_refunds(smartpay.client(), observe=services.observe_refund)
    assert all("秒前に読み取った返金の一覧から計算しています" in told for told in pages())


def test_unclear_answer_is_never_read_as_a_failure(
    browser: Client, paid: Order, operator: User, sandbox: Sandbox
) -> None:
    sandbox.fault("error", status=500, executed=False)
    made = refund(paid.payments.get(), operator)
    assert made.state == State.UNKNOWN

    assert not re.search("Something went wrong|HTTP", said(refund_page(browser, made)))


def test_answer_that_contradicted_says_so_until_smartpay_shows_the_refund_as_asked(
    browser: Client, paid: Order, operator: User, sandbox: Sandbox
) -> None:
    sandbox.fault("wrong_amount")
    made = refund(paid.payments.get(), operator)
    open_one = said(refund_page(browser, made))
    order_page(browser, paid)  # reads it
    made.refresh_from_db()
    assert made.state == State.SUCCEEDED

    settled = said(refund_page(browser, made))

    assert ["その後の確認で解消" in each for each in (open_one, settled)] == [False, True]
    assert "申請との食い違い" in settled


def test_refund_that_ended_without_money_leads_back_to_its_order(
    browser: Client, paid: Order, operator: User, sandbox: Sandbox
) -> None:
    sandbox.fault("status_failed")
    made = refund(paid.payments.get(), operator)

    page = refund_page(browser, made)

    assert "お金は動いていません。 今回の返金は成立しませんでした。" in said(page)
    assert f'href="/orders/{paid.order_id}/">注文を開く</a>' in page.content.decode()


def test_declined_request_leads_its_requester_back_to_the_form(
    browser: Client, paid: Order, operator: User, approver: User, settings: Any
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 500
    made = refund(paid.payments.get(), operator)
    services.reject(made.pk, by=approver, note="金額が違います")

    own, others = (refund_page(each, made).content.decode() for each in (browser, sign_in(approver)))

    again = f'href="{form_url(paid)}">内容を直して申請し直す</a>'
    assert (again in own, again in others) == (True, False)


# --- The decision --------------------------------------------------------------------------------------------


def test_page_of_a_waiting_refund_speaks_to_whom_it_waits_for(
    browser: Client, paid: Order, operator: User, approver: User, settings: Any
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 500
    made = refund(paid.payments.get(), operator)

    own, deciding = (refund_page(each, made) for each in (browser, fresh(approver)))

    assert "もう一人の承認を待っています。" in said(own)
    assert "あなたの承認を待っています。" in said(deciding)
    assert "却下の理由・コメント" in said(deciding)
    assert "注文の履歴" in said(deciding)
    # It renews itself, but not under the hands of who types.
    assert ('data-renew="15"' in own.content.decode(), "data-renew" in deciding.content.decode()) == (
        True,
        False,
    )
    assert "次の確認" not in said(own)


# --- Pages that know nobody ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "told"), [("sk_test_x", True), ("sk_live_x", False)])
def test_pages_drawn_without_their_reader_say_that_it_is_a_test(
    client: Client, settings: Any, key: str, told: bool
) -> None:
    settings.SMARTPAY_SECRET_KEY = key
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 10

    large = client.post("/orders/search/", {"q": "田中" * 20})
    odd = client.generic("POST", "/orders/search/", b"", headers={"Transfer-Encoding": "chunked"})

    assert [(each.status_code, "テスト環境" in each.content.decode()) for each in (large, odd)] == [
        (413, told),
        (411, told),
    ]

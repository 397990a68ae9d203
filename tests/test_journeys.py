"""The main job in a real browser: sign in, find, refund, be certain; and what an auditor then reads.

The screens are photographed on the way: into docs/screenshots by `make screenshots`, else into .state/screenshots.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from scripts import chromium
from tests.site import ROOT, Running, Site

pytestmark = pytest.mark.browser

SCREENSHOTS = Path(os.environ.get("SCREENSHOTS", ROOT / ".state" / "screenshots"))
PEOPLE = {"viewer": "閲覧 太郎", "operator": "返金 花子", "approver": "承認 一郎", "auditor": "監査 桜"}
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    quiet = [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium.find(), args=["--no-sandbox", "--disable-gpu", *quiet]
        )
        yield browser
        browser.close()


class Person:
    """Somebody at their own browser. `complaints`: what the browser held against our pages."""

    def __init__(self, chrome: Browser, site: Running, role: str, **options: Any) -> None:
        self.site = site
        options = {"locale": "ja-JP", "timezone_id": "Asia/Tokyo", "viewport": DESKTOP} | options
        options["ignore_https_errors"] = True  # the drill's certificate vouches for itself
        self.context: BrowserContext = chrome.new_context(base_url=site.url, **options)
        self.context.set_default_timeout(15_000)  # milliseconds
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self._hear(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto("/")
        self.page.get_by_role("link", name="会社のアカウントでサインイン").click()
        self.page.get_by_role("button", name=PEOPLE[role]).click()
        self.page.wait_for_url(f"{site.url}/")

    def _hear(self, kind: str, words: str) -> None:
        if (
            kind == "error"
            and "Failed to load resource: the server responded with a status of 4" not in words
        ):
            self.complaints.append(words)

    def search(self, words: str) -> None:
        self.page.goto("/orders/")
        box = self.page.get_by_role("searchbox", name="注文を検索")
        box.fill(words)
        box.press("Enter")
        self.page.wait_for_url(re.compile(r"\?search=|/orders/order_"))

    def open_refund_form(self, order_id: str) -> None:
        self.page.goto(f"/orders/{order_id}/")
        self.page.get_by_role("link", name="返金する", exact=True).click()

    def fill_in(self, amount: str, description: str = "") -> None:
        self.page.get_by_label("返金額").fill(amount)
        self.page.get_by_label("説明").fill(description)
        self.page.get_by_label("説明").press("Enter")

    def shoot(self, name: str) -> None:
        """Photograph the page as it is shown: desktop and phone; fonts loaded, nothing wider than the screen."""
        for suffix, size in (("", DESKTOP), ("-phone", PHONE)):
            self.page.set_viewport_size(size)  # type: ignore[arg-type]
            wide = self.page.evaluate("document.documentElement.scrollWidth")
            assert wide <= size["width"], f"{name}{suffix} is {wide} wide"
            SCREENSHOTS.mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=SCREENSHOTS / f"{name}{suffix}.png")
        self.page.set_viewport_size(DESKTOP)  # type: ignore[arg-type]

    def leave(self) -> None:
        assert self.complaints == []
        self.context.close()


def refunds_of(site: Running, payment: str) -> list[dict[str, object]]:
    refunds, token = [], ""
    while True:
        page = site.sandbox.api(
            "GET", "/refunds", params={"maxResults": 100, "pageToken": token or None}
        ).json()
        refunds += [refund for refund in page["data"] if refund["payment"] == payment]
        if not (token := page.get("nextPageToken") or ""):
            return refunds


@contextmanager
def contradicted_refund(site: Running, payment: str, *, shown: int) -> Iterator[None]:
    """The payment's refund of this time is answered with a wrong amount, and shown with another one from then on.

    Until then nothing can read it: an event or a sweep would show what was asked for, and settle the case.
    """
    site.sandbox.fault("wrong_amount", times=None)  # another refund may be sent anew meanwhile
    site.sandbox.fault("error", method="GET", path="/v1/refunds*", times=None)
    yield
    [refund] = site.sandbox.api("GET", f"/payments/{payment}").json()["refunds"]
    site.sandbox.set(refund, amount=shown)
    site.sandbox.clear_faults()


def test_operator_refunds_auditor_reads_viewer_can_not(site: Running, chrome: Browser) -> None:
    found = site.sandbox.find("refundable", name="田中", min_amount=2000)
    operator = Person(chrome, site, "operator")
    page = operator.page
    operator.shoot("start")

    operator.search("田中")
    assert "%E7%94%B0" not in page.url
    expect(page.get_by_role("cell", name="お客様名").first).to_be_visible()
    operator.shoot("search")
    page.locator(f'a[href="/orders/{found["order"]}/"]').click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("田中")
    operator.shoot("order-detail")
    page.get_by_role("link", name="返金する", exact=True).click()
    page.get_by_role("button", name="残額すべて").click()
    expect(page.get_by_label("返金額")).to_have_value(f"{found['amount']:,}")
    page.get_by_label("返金額").fill("1,000")
    page.get_by_label("説明").fill("サイズ交換のため")
    operator.shoot("refund-form")
    page.get_by_role("button", name="返金する", exact=True).last.click()
    expect(page.get_by_role("heading", name="返金内容の確認")).to_be_visible()
    assert refunds_of(site, found["payments"][0]["id"]) == []
    operator.shoot("refund-confirm")
    page.get_by_role("button", name="¥1,000 を返金する").click()

    page.wait_for_url(re.compile(r"/refunds/[0-9a-f-]{36}/$"))
    expect(page.get_by_role("heading", level=1)).to_contain_text("返金済み")
    operator.shoot("refund-succeeded")
    refund_id = page.url.rstrip("/").rpartition("/")[2]
    [there] = refunds_of(site, found["payments"][0]["id"])
    assert (there["amount"], there["reference"], there["description"]) == (
        1000,
        refund_id,
        "サイズ交換のため",
    )
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_contain_text("返金済み")
    page.goto("/refunds/")
    operator.shoot("refund-list")
    page.goto("/orders/")
    operator.shoot("order-list")
    page.goto(f"/orders/{found['order']}/")
    expect(page.get_by_text("一部返金").first).to_be_visible()
    operator.leave()

    viewer = Person(chrome, site, "viewer")
    viewer.page.goto(f"/orders/{found['order']}/")
    expect(viewer.page.get_by_text("返金の権限がありません")).to_be_visible()
    assert viewer.page.get_by_role("link", name="返金する", exact=True).count() == 0
    token = viewer.page.locator("input[name=csrfmiddlewaretoken]").first.input_value()
    by_hand = viewer.context.request.post(
        f"{site.url}/orders/{found['order']}/refund/",
        form={"csrfmiddlewaretoken": token, "amount": "1", "confirm": "1"},
        headers={"Referer": site.url, "Origin": site.url},
    )
    assert by_hand.status == 403
    viewer.leave()

    auditor = Person(chrome, site, "auditor")
    auditor.page.goto("/admin/refunds/auditentry/")
    auditor.page.get_by_role("searchbox").or_(auditor.page.locator("#searchbar")).first.fill(found["order"])
    auditor.page.keyboard.press("Enter")
    auditor.page.wait_for_url(re.compile(r"[?]q="))
    row = auditor.page.get_by_role("row").filter(has_text="返金の申請")
    expect(row).to_contain_text("返金 花子")
    expect(row).to_contain_text("¥1,000")
    auditor.page.screenshot(path=SCREENSHOTS / "admin-audit.png")
    auditor.leave()
    assert len(refunds_of(site, found["payments"][0]["id"])) == 1


def test_double_click_back_and_a_second_tab_are_one_refund(site: Site, chrome: Browser) -> None:
    found = site.sandbox.find("refundable", min_amount=2000, skip=5)
    payment = found["payments"][0]["id"]
    operator = Person(chrome, site, "operator")
    page = operator.page
    operator.open_refund_form(found["order"])
    operator.fill_in("700", "一度だけ")

    tab = operator.context.new_page()
    tab.goto(page.url)  # the same form, as typed so far
    assert (
        tab.locator("input[name=request_id]").input_value()
        == page.locator("input[name=request_id]").input_value()
    )
    page.get_by_role("button", name="¥700 を返金する").dblclick()
    page.wait_for_url(re.compile(r"/refunds/"))
    refund = page.url
    page.go_back()  # to a form that is another refund, not to one that asks to be sent again
    expect(page.get_by_role("heading", level=1)).to_have_text("返金する")
    assert page.locator("input[name=request_id]").input_value() not in refund
    tab.get_by_role("button", name="返金する", exact=True).last.click()
    tab.wait_for_url(refund)

    assert [each["amount"] for each in refunds_of(site, payment)] == [700]
    operator.leave()


def test_two_forms_of_equal_amounts_are_two_refunds(site: Site, chrome: Browser) -> None:
    found = site.sandbox.find("refundable", min_amount=2000, skip=6)
    operator = Person(chrome, site, "operator")
    for time in (1, 2):
        operator.open_refund_form(found["order"])
        operator.fill_in("300")
        if time == 2:
            expect(operator.page.get_by_text("返金 花子 さんが申請した同じ注文の")).to_be_visible()
            operator.shoot("refund-similar")
            operator.page.get_by_role("button", name="¥300 を返金する").click()  # without a reason
            expect(operator.page.get_by_role("alert")).to_be_visible()
            expect(operator.page.locator("#id_similar_reason_error")).to_be_visible()
            expect(operator.page.get_by_label("それでも返金する理由")).to_be_focused()
            operator.page.get_by_label("それでも返金する理由").fill("二点目の返品")
        operator.page.get_by_role("button", name="¥300 を返金する").click()
        operator.page.wait_for_url(re.compile(r"/refunds/"))

    assert [each["amount"] for each in refunds_of(site, found["payments"][0]["id"])] == [300, 300]
    operator.leave()


def test_unknown_outcome_is_told_and_settles_before_ones_eyes(site: Site, chrome: Browser) -> None:
    found = site.sandbox.find("refundable", min_amount=2000, skip=7)
    operator = Person(chrome, site, "operator")
    operator.open_refund_form(found["order"])
    operator.fill_in("400")
    site.sandbox.fault("html", executed=True)
    operator.page.get_by_role("button", name="¥400 を返金する").click()

    expect(operator.page.get_by_role("heading", level=1)).to_contain_text("結果不明")
    expect(operator.page.get_by_text("もう一度返金しないでください")).to_be_visible()
    operator.shoot("refund-unknown")
    expect(operator.page.get_by_role("heading", level=1)).to_contain_text("返金済み", timeout=60_000)
    assert len(refunds_of(site, found["payments"][0]["id"])) == 1
    operator.leave()


def test_bad_input_keeps_what_was_typed(site: Site, chrome: Browser) -> None:
    found = site.sandbox.find("refundable", min_amount=2000, skip=8)
    operator = Person(chrome, site, "operator")
    operator.open_refund_form(found["order"])
    operator.fill_in("9,999,999", "サイズ交換のため")

    amount = operator.page.get_by_label("返金額")
    expect(amount).to_have_value("9,999,999")
    expect(amount).to_have_attribute("aria-invalid", "true")
    expect(operator.page.get_by_text("これを超える返金はできません").first).to_be_visible()
    expect(operator.page.get_by_label("説明")).to_have_value("サイズ交換のため")
    operator.shoot("refund-form-error")
    operator.leave()


def test_main_job_works_without_javascript(site: Site, chrome: Browser) -> None:
    found = site.sandbox.find("refundable", name="田中", min_amount=2000, skip=1)
    operator = Person(chrome, site, "operator", java_script_enabled=False)
    page = operator.page
    page.goto("/orders/")
    page.get_by_role("searchbox").fill(found["order"])
    page.get_by_role("button", name="検索する").click()
    page.get_by_role("link", name="返金する", exact=True).click()
    page.get_by_role("button", name="残額すべて").click()
    expect(page.get_by_label("返金額")).to_have_value(str(found["amount"]))
    page.get_by_role("button", name="返金する", exact=True).last.click()
    page.get_by_role("button", name=f"¥{found['amount']:,} を返金する").click()

    expect(page.get_by_role("heading", level=1)).to_contain_text("返金済み")
    assert [each["amount"] for each in refunds_of(site, found["payments"][0]["id"])] == [found["amount"]]
    operator.context.close()


def test_signing_out_ends_it_here_and_at_the_provider(site: Site, chrome: Browser) -> None:
    operator = Person(chrome, site, "operator")
    operator.page.get_by_text("返金 花子").first.click()
    operator.page.get_by_role("button", name="サインアウト").click()
    operator.page.wait_for_url(re.compile(r"/sign(ed-out|-in)/"))
    operator.shoot("signed-out")

    operator.page.goto("/orders/")
    assert "/sign-in/" in operator.page.url
    operator.shoot("sign-in")
    operator.page.get_by_role("link", name="会社のアカウントでサインイン").click()
    expect(operator.page.get_by_role("button", name="返金 花子")).to_be_visible()  # asked anew
    operator.leave()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_screens_that_go_wrong_are_ours_too(site: Site, chrome: Browser, scheme: str) -> None:
    operator = Person(chrome, site, "operator", color_scheme=scheme)
    for name, path in {
        "not-found": "/nowhere/",
        "order-missing": "/orders/order_test_0000000000000000000000/",
        "forbidden": "/admin/",
    }.items():
        operator.page.goto(path)
        expect(operator.page.get_by_role("heading", level=1)).to_be_visible()
        operator.shoot(f"{name}-{scheme}" if scheme == "dark" else name)
    operator.search("だれもいない名前")
    expect(operator.page.get_by_text("一致する注文はありません")).to_be_visible()
    operator.shoot(f"search-empty-{scheme}" if scheme == "dark" else "search-empty")
    operator.leave()


def test_two_people_decide_what_contradicts(site: Site, chrome: Browser) -> None:
    found = site.sandbox.find("refundable", min_amount=4000, skip=9)
    payment = found["payments"][0]["id"]
    operator = Person(chrome, site, "operator")
    operator.open_refund_form(found["order"])
    operator.fill_in("1000", "サイズ交換のため")
    with contradicted_refund(site, payment, shown=1300):
        operator.page.get_by_role("button", name="¥1,000 を返金する").click()
        expect(operator.page.get_by_role("heading", level=1)).to_contain_text("要調査")
    refund = operator.page.url
    operator.page.goto(f"{refund}review/")
    expect(operator.page.get_by_text("判定できるのは承認者だけです")).to_be_visible()
    operator.leave()

    approver = Person(chrome, site, "approver")
    approver.page.goto("/approvals/")
    approver.page.get_by_role("row").filter(has_text="要調査").get_by_role("link").first.click()
    expect(approver.page.get_by_text("異なります").first).to_be_visible()
    approver.shoot("refund-review")
    approver.page.get_by_role("button", name="判定する", exact=True).click()
    expect(approver.page.get_by_role("alert")).to_be_focused()
    approver.page.get_by_role("radio", name="返金済み ¥1,300").check()
    approver.page.get_by_label("理由", exact=True).fill("返金の番号が同じ")
    approver.page.get_by_role("button", name="判定する", exact=True).click()
    expect(approver.page.get_by_text("判定を記録しました")).to_be_visible()
    expect(approver.page.get_by_role("heading", level=1)).to_contain_text("要調査")
    approver.leave()


def test_second_person_approves_what_is_large(chrome: Browser, tmp_path: Path) -> None:
    with Site(tmp_path, REFUND_APPROVAL_ABOVE="5000") as site:
        found = site.sandbox.find("refundable", min_amount=8000)
        operator = Person(chrome, site, "operator")
        operator.open_refund_form(found["order"])
        operator.fill_in("6000", "商品の返品のため")
        operator.page.get_by_role("button", name="¥6,000 の返金を申請する").click()
        expect(operator.page.get_by_role("heading", level=1)).to_contain_text("承認待ち")
        operator.shoot("refund-waiting")
        assert refunds_of(site, found["payments"][0]["id"]) == []

        approver = Person(chrome, site, "approver")
        expect(approver.page.get_by_text("あなたの承認を待っている返金が 1 件あります")).to_be_visible()
        approver.page.goto("/approvals/")
        approver.shoot("approvals")
        approver.page.get_by_role("row").nth(1).get_by_role("link").first.click()
        approver.shoot("refund-decide")
        approver.page.get_by_role("button", name="却下する").click()  # without a reason
        expect(approver.page.get_by_role("alert")).to_be_focused()
        expect(approver.page.get_by_role("alert")).to_contain_text("却下する理由を入力してください")
        approver.page.get_by_role("button", name="¥6,000 の返金を承認する").click()
        expect(approver.page.get_by_role("heading", level=1)).to_contain_text("返金済み")
        assert [each["amount"] for each in refunds_of(site, found["payments"][0]["id"])] == [6000]
        operator.leave()
        approver.leave()


def test_file_of_refunds_is_checked_started_and_followed(site: Site, chrome: Browser, tmp_path: Path) -> None:
    orders = site.sandbox.find_all("refundable", limit=30, min_amount=2000)[12:20]
    file = tmp_path / "返金_2026-11.csv"
    lines = [f"{order['order']},,{100 + number},欠品のお詫び," for number, order in enumerate(orders)]
    lines += [
        f"{orders[0]['order']},,50,二点目,",
        "order_test_0000000000000000000000,,300,,",
        f"{orders[1]['order']},,千円,,",
    ]
    file.write_text("\n".join(["注文ID,ショップ注文番号,返金額,説明,理由", *lines]), encoding="cp932")
    operator = Person(chrome, site, "operator")
    page = operator.page
    page.get_by_role("link", name="一括返金").click()
    operator.shoot("bulk-list")
    page.get_by_role("button", name="取り込んで確認する").click()
    expect(page.get_by_text("ファイルを選んでください。")).to_be_visible()
    page.get_by_label("CSV ファイル").set_input_files(file)
    page.get_by_role("button", name="取り込んで確認する").click()

    expect(page.get_by_role("button", name="似た返金も含めて 9 件 ¥878 を返金する")).to_be_visible()
    expect(page.get_by_text("8 件、合計 ¥828 を返金します。")).to_be_visible()
    expect(page.get_by_text("返金できない 2 行は返金しません。")).to_be_visible()
    operator.shoot("bulk-checked")
    page.get_by_label("それでも返金する理由").fill("二点目の欠品")  # by itself it sends nothing more
    site.sandbox.fault("slow", seconds=10, skip=3)  # of eight, so that it can be seen at work
    page.get_by_role("button", name="8 件 ¥828 を返金する", exact=True).click()

    expect(page.locator(".lines tbody tr").first).to_contain_text("返金済み", timeout=30_000)
    expect(page.locator(".tabs")).to_contain_text("返金済み")
    expect(page.locator(".order-state")).to_contain_text("実行中")
    expect(page.get_by_text("11 行のうち 8 件を返金しました。")).to_be_visible(timeout=60_000)
    expect(page.get_by_text("3 行は、このファイルからは返金していません。")).to_be_visible()
    expect(page.locator(".order-state")).to_contain_text("完了")
    operator.shoot("bulk-done")
    for number, order in enumerate(orders):
        [there] = refunds_of(site, order["payments"][0]["id"])
        assert there["amount"] == 100 + number
    with page.expect_download() as download:
        page.get_by_role("link", name="結果を CSV でダウンロード").click()
    told = Path(download.value.path()).read_text(encoding="utf-8-sig")
    assert told.count("返金済み") == 8
    operator.leave()

"""The main job by keyboard alone, by role and accessible name as a screen reader has them; and what a page weighs."""

import re
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.site import ROOT, Site
from tests.test_journeys import SCREENSHOTS, Person, chrome, refunds_of, site

__all__ = ["chrome", "site"]  # fixtures
pytestmark = pytest.mark.browser

WEIGHT, REQUESTS, SHIFT = 100_000, 8, 0.02  # bytes over the wire; of a first page; layout shift
SHIFTS = """() => { window.shifted = 0; new PerformanceObserver((list) => {
    for (const each of list.getEntries()) if (!each.hadRecentInput) window.shifted += each.value;
}).observe({type: "layout-shift", buffered: true}); }"""


class Hands:
    """Ten fingers and nothing else. `presses`: keys pressed beside what is typed into a field."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.presses = 0

    def press(self, key: str) -> None:
        self.presses += 1
        self.page.keyboard.press(key)

    def type(self, text: str) -> None:
        self.page.keyboard.type(text)


def asked(page: Page, act: Callable[[], object]) -> int:
    """How often the search was asked while this was done, and a second after it."""
    times = []
    page.on("request", lambda request: times.append(1) if request.url.endswith("/orders/search/") else None)
    act()
    page.wait_for_timeout(1_000)
    return len(times)


def test_refund_takes_four_keys_beside_what_is_typed(site: Site, chrome: Browser) -> None:
    orders = site.sandbox.find_all("refundable", min_amount=2000, limit=60)
    found = next(order for order in orders if (order["reference"] or "").startswith("EC-"))
    reference = found["reference"]
    operator = Person(chrome, site, "operator")
    page, hands = operator.page, Hands(operator.page)
    expect(page.get_by_role("searchbox", name="注文を検索")).to_be_focused()

    hands.type(reference)
    expect(page.get_by_role("row").nth(1)).to_contain_text(reference)  # by itself, after a moment of rest
    expect(page.get_by_role("searchbox", name="注文を検索")).to_be_focused()
    hands.press("Enter")  # there is one: it opens
    expect(page.get_by_role("region", name="金額")).to_contain_text("返金可能額")
    hands.press("r")
    expect(page.get_by_role("textbox", name="返金額")).to_be_focused()
    hands.type("1000")
    hands.press("Enter")
    expect(page.get_by_role("heading", name="返金内容の確認")).to_be_visible()
    hands.page.keyboard.press("Enter")  # once too often: nothing is sent by it
    expect(page.get_by_role("button", name="¥1,000 を返金する")).to_be_visible()
    assert refunds_of(site, found["payments"][0]["id"]) == []
    hands.press("Control+Enter")

    expect(page.get_by_role("heading", level=1)).to_contain_text("返金済み")
    assert [each["amount"] for each in refunds_of(site, found["payments"][0]["id"])] == [1000]
    told = re.search(r"押すキーは(\d+)回", (ROOT / "docs/manual.ja.md").read_text())
    assert told
    assert int(told[1]) == hands.presses <= 4
    operator.leave()


def test_enter_in_a_field_goes_on_and_gives_nothing_up(site: Site, chrome: Browser) -> None:
    found = site.sandbox.find("refundable", min_amount=2000, skip=19)
    operator = Person(chrome, site, "operator")
    page = operator.page
    for field in ("返金額", "説明"):
        operator.open_refund_form(found["order"])
        page.get_by_label("返金額").fill("700")
        page.get_by_label(field).press("Enter")
        expect(page.get_by_role("heading", name="返金内容の確認")).to_be_visible()
        page.get_by_role("button", name="戻る").click()
        expect(page.get_by_label("返金額")).to_have_value("700")
        page.get_by_role("button", name="やめる").click()
        page.wait_for_url(f"{site.url}/orders/{found['order']}/")
    operator.open_refund_form(found["order"])
    expect(page.get_by_label("返金額")).to_have_value("")
    operator.leave()


def test_amount_that_is_too_high_is_told_beside_it_as_it_is_typed(site: Site, chrome: Browser) -> None:
    found = site.sandbox.find("refundable", min_amount=2000, skip=19)
    operator = Person(chrome, site, "operator")
    page = operator.page
    operator.open_refund_form(found["order"])
    amount, left = page.get_by_label("返金額"), page.locator("[data-remaining]")
    amount.fill("9,999,999")
    expect(page.get_by_text("返金可能額を超えています。").first).to_be_visible()
    expect(left).to_have_text("–")
    expect(amount).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#announce")).to_have_text("返金可能額を超えています。")
    operator.shoot("refund-too-high")
    amount.fill(str(found["amount"] - 1))
    expect(page.locator("#id_amount_error")).to_be_hidden()
    expect(left).to_have_text("¥1")
    operator.leave()


def test_last_button_tells_what_is_being_sent_and_how_long_it_may_take(site: Site, chrome: Browser) -> None:
    order = site.sandbox.find("refundable", min_amount=3000, skip=6)
    operator = Person(chrome, site, "operator")
    page = operator.page
    operator.open_refund_form(order["order"])
    operator.fill_in("900")
    last, waits = page.locator(".confirm .big"), page.locator("[data-waiting]")
    expect(waits).to_be_hidden()
    width = last.evaluate("button => button.offsetWidth")
    # Not sent: while a page is being left, nothing can be asked of it.
    page.locator(".confirm").evaluate(
        "form => form.addEventListener('submit', (event) => event.preventDefault())"
    )

    last.click()

    expect(last).to_have_text("¥900 を送信しています…")
    expect(waits).to_contain_text("もう一度押しても二重にはなりません。")
    expect(page.get_by_role("button", name="戻る")).to_have_attribute("aria-disabled", "true")
    assert last.evaluate("button => button.offsetWidth") >= width
    operator.leave()


def test_outcome_is_announced_when_it_comes(site: Site, chrome: Browser) -> None:
    found = site.sandbox.find("refundable", min_amount=2000, skip=15)
    operator = Person(chrome, site, "operator")
    page = operator.page
    operator.open_refund_form(found["order"])
    operator.fill_in("600")
    expect(page.get_by_role("heading", name="返金内容の確認")).to_be_visible()
    site.sandbox.fault("html", executed=True)
    page.keyboard.press("Control+Enter")

    expect(page.get_by_role("heading", level=1)).to_contain_text("結果不明")
    expect(page.locator("#announce")).to_have_text("返金済み", timeout=60_000)
    page.goto("/")
    told = page.get_by_role("region", name="結果不明だったあなたの返金が確定しました")
    expect(told.get_by_role("row").filter(has_text="¥600")).to_contain_text("返金済み")
    operator.leave()


def test_arrows_go_through_the_results_and_letters_stay_letters_in_a_field(
    site: Site, chrome: Browser
) -> None:
    operator = Person(chrome, site, "operator")
    page = operator.page
    operator.search("田中")
    rows = page.get_by_role("row").get_by_role("link")
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox", name="注文を検索")).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(rows.nth(1)).to_be_focused()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    expect(page.get_by_role("searchbox", name="注文を検索")).to_be_focused()
    page.keyboard.type("?/r")
    expect(page.get_by_role("searchbox", name="注文を検索")).to_have_value("?/r")
    expect(page.get_by_role("dialog")).to_have_count(0)

    page.goto("/refunds/")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="キー操作")).to_be_visible()
    operator.shoot("keys")
    page.get_by_role("checkbox", name="1文字のキー操作").press("Space")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("?")  # who speaks to their computer has turned it off
    expect(page.get_by_role("dialog")).to_have_count(0)
    operator.leave()


def test_search_as_typed_waits_for_rest_and_for_the_input_method(site: Site, chrome: Browser) -> None:
    operator = Person(chrome, site, "operator")
    page = operator.page
    page.goto("/orders/")
    page.get_by_role("searchbox", name="注文を検索").focus()
    keyboard = operator.context.new_cdp_session(page)

    def compose() -> None:
        for text in ("t", "た", "たな", "たなか"):
            keyboard.send(
                "Input.imeSetComposition",
                {"text": text, "selectionStart": len(text), "selectionEnd": len(text)},
            )
        page.wait_for_timeout(1_200)  # far longer than the rest: it is still being composed

    assert asked(page, compose) == 0
    assert asked(page, lambda: keyboard.send("Input.insertText", {"text": "田中"})) == 1
    expect(page.get_by_text("「田中」の検索結果")).to_be_visible()
    assert page.evaluate("[q.value, q.selectionStart, document.activeElement.id]") == ["田中", 2, "q"]
    assert re.search(r"\?search=[\w-]+$", page.url)
    assert asked(page, lambda: page.keyboard.type(" 紗希太郎次郎", delay=40)) == 1
    expect(page.locator("#announce")).to_contain_text("一致する注文はありません")
    assert asked(page, lambda: page.keyboard.press("ArrowLeft")) == 0
    operator.leave()


def test_results_do_not_move_under_the_pointer(site: Site, chrome: Browser) -> None:
    operator = Person(chrome, site, "operator")
    page = operator.page
    operator.search("田中")
    first = page.get_by_role("row").nth(1)
    before = first.inner_text()
    page.get_by_role("searchbox", name="注文を検索").fill("佐藤")
    first.hover()
    page.wait_for_timeout(1_500)
    assert first.inner_text() == before
    page.mouse.move(5, 5)
    expect(page.get_by_text("「佐藤」の検索結果")).to_be_visible()
    operator.leave()


def test_searches_are_found_again(site: Site, chrome: Browser) -> None:
    operator = Person(chrome, site, "operator")
    page = operator.page
    operator.search("田中")
    page.get_by_text("この検索を保存").click()
    page.get_by_label("いまの検索と条件に名前をつける").fill("田中さん")
    page.get_by_role("button", name="保存する").click()
    expect(page.get_by_text("検索を保存しました。")).to_be_visible()
    operator.shoot("search-saved")
    page.goto("/orders/")
    page.get_by_role("group", name="最近の検索").get_by_role("link", name="田中", exact=True).click()
    expect(page.get_by_text("「田中」の検索結果")).to_be_visible()
    page.goto("/orders/")
    page.get_by_role("link", name="田中さん").click()
    expect(page.get_by_text("「田中」の検索結果")).to_be_visible()
    page.get_by_text("保存・整理").click()
    page.get_by_role("button", name="「田中さん」を削除").click()
    expect(page.get_by_role("link", name="田中さん")).to_have_count(0)
    operator.leave()


def test_lost_network_is_told(site: Site, chrome: Browser) -> None:
    operator = Person(chrome, site, "operator")
    operator.context.set_offline(True)
    expect(operator.page.get_by_text("ネットワークに接続していません")).to_be_visible()
    operator.context.set_offline(False)
    expect(operator.page.get_by_text("ネットワークに接続していません")).to_be_hidden()
    operator.leave()


@pytest.mark.parametrize("address", ["/", "/orders/"])
def test_first_page_is_light_and_from_here(site: Site, chrome: Browser, address: str) -> None:
    operator = Person(chrome, site, "operator")
    page = operator.context.new_page()  # of an empty cache
    wire = operator.context.new_cdp_session(page)
    wire.send("Network.enable")
    wire.send("Network.setCacheDisabled", {"cacheDisabled": True})
    bytes_, urls = [], []
    wire.on("Network.loadingFinished", lambda event: bytes_.append(event["encodedDataLength"]))
    page.on("request", lambda request: urls.append(request.url))
    page.goto(address)
    page.wait_for_load_state("networkidle")

    assert {urlsplit(url).netloc for url in urls} == {urlsplit(site.url).netloc}
    assert len(urls) <= REQUESTS, urls
    assert sum(bytes_) <= WEIGHT
    operator.leave()


def test_nothing_shifts_while_a_page_is_drawn(site: Site, chrome: Browser) -> None:
    order = site.sandbox.find("refundable", min_amount=2000, skip=16)["order"]
    operator = Person(chrome, site, "operator")
    operator.page.add_init_script(f"({SHIFTS})()")
    shifted = {}
    for address in ("/", "/orders/", f"/orders/{order}/", f"/orders/{order}/refund/", "/refunds/", "/bulk/"):
        operator.page.goto(address)
        operator.page.wait_for_load_state("networkidle")
        shifted[address] = operator.page.evaluate("window.shifted")

    assert {address: value for address, value in shifted.items() if value > SHIFT} == {}
    operator.leave()


def test_paper_has_the_whole_ids_and_nothing_to_press(site: Site, chrome: Browser) -> None:
    operator = Person(chrome, site, "operator")
    page = operator.page
    operator.open_refund_form(site.sandbox.find("refundable", min_amount=2000, skip=17)["order"])
    page.get_by_label("社内メモ").fill("電話で確認")
    operator.fill_in("100")
    expect(page.get_by_role("heading", name="返金内容の確認")).to_be_visible()
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("返金済み")
    expect(page.get_by_text("電話で確認")).to_be_visible()
    page.emulate_media(media="print")

    expect(page.get_by_text("返金控え テスト環境 お金は動きません")).to_be_visible()
    expect(page.get_by_text("電話で確認")).to_be_hidden()
    assert page.get_by_role("button").locator("visible=true").count() == 0
    page.screenshot(path=SCREENSHOTS / "refund-paper.png")
    operator.leave()

"""How soon the list and the refund form are there, and answer, in Chromium at a quarter of its speed.

    python -m scripts.vitals        medians of RUNS; last line `bars missed: N`

LCP and INP in milliseconds, CLS as a share of the screen. Beside them, in turns with them, a static page: the HTML
of the list itself, with its style and without its script, as a file of a plain file server.
"""

import re
import statistics
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import BrowserContext, sync_playwright

import tests.environment  # noqa: F401  (the settings of the site that is started)
from scripts import chromium
from tests.site import Site
from tests.test_journeys import Person

RUNS, SLOWER = 7, 4
SETTLED = 1_500  # milliseconds after which nothing large is drawn any more
LCP_MOST, CLS_MOST, INP_MOST = 2.0, 0.02, 200  # times the static page's; share; milliseconds
OBSERVE = """window.lcp = window.cls = window.inp = 0;
const see = (type, note, more) =>
    new PerformanceObserver((list) => list.getEntries().forEach(note)).observe({type, buffered: true, ...more});
see("largest-contentful-paint", (each) => { window.lcp = each.startTime; });
see("layout-shift", (each) => { if (!each.hadRecentInput) window.cls += each.value; });
see("event", (each) => { if (each.interactionId) window.inp = Math.max(window.inp, each.duration); },
    {durationThreshold: 16});
"""


class Files(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Vitals(NamedTuple):
    lcp: float
    cls: float
    inp: float


def measure(context: BrowserContext, address: str, field: str) -> Vitals:
    """Of one visit; `field` is typed into, if it is named, key by key."""
    page = context.new_page()
    page.add_init_script(OBSERVE)
    context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
    page.goto(address, wait_until="domcontentloaded")
    page.wait_for_timeout(SETTLED)
    lcp = page.evaluate("window.lcp")  # before anything is typed: then it is over
    if field:
        page.locator(field).press_sequentially("1000", delay=100)
        page.wait_for_timeout(SETTLED)
    cls, inp = page.evaluate("[window.cls, window.inp]")
    page.close()
    return Vitals(lcp, cls, inp)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        state = Path(directory)
        with Site(state, SEARCHES_PER_HOUR="", ORDERS_PER_HOUR="") as site:
            order = site.sandbox.find("refundable", min_amount=2000)["order"]
            browser = playwright.chromium.launch(executable_path=chromium.find(), args=["--no-sandbox"])
            person = Person(browser, site, "operator")
            drawn = person.context.request.get("/orders/").text()
            (state / "list.html").write_text(re.sub(r"<script.*?</script>", "", drawn, flags=re.DOTALL))
            files = ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=directory))
            threading.Thread(target=files.serve_forever, daemon=True).start()
            pages = {
                "static": (f"http://127.0.0.1:{files.server_port}/list.html", ""),
                "list": ("/orders/", "#q"),
                "form": (f"/orders/{order}/refund/", "#id_amount"),
            }
            seen: dict[str, list[Vitals]] = {name: [] for name in pages}
            for _run in range(RUNS + 1):
                for name, (address, field) in pages.items():
                    seen[name].append(measure(person.context, address, field))
            browser.close()
            files.shutdown()
    report(
        {name: Vitals(*map(statistics.median, zip(*runs[1:], strict=True))) for name, runs in seen.items()}
    )


def report(found: dict[str, Vitals]) -> None:
    floor, missed = found["static"].lcp, 0
    print(f"{'':8}{'LCP':>6}{'÷ static':>10}{'CLS':>8}{'INP':>6}")
    for name, each in found.items():
        print(f"{name:8}{each.lcp:6.0f}{each.lcp / floor:10.2f}{each.cls:8.3f}{each.inp:6.0f}")
        missed += (each.lcp > LCP_MOST * floor) + (each.cls > CLS_MOST) + (each.inp > INP_MOST)
    print(f"bars missed: {missed}")


if __name__ == "__main__":
    main()

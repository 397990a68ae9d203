"""Python's search for cycles of objects, for processes that make and drop objects by the million."""

import gc

OFTEN_ENOUGH = 50_000  # objects that are new, some megabytes of them; Python's own default is 2,000


def seek_rarely() -> None:
    """Look for cycles less often, and never again in what is loaded by now, which stays for good.

    A search, or a page of Smartpay's lists, set off a dozen looks that found next to nothing: a tenth of its time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(OFTEN_ENOUGH, 10, 10)

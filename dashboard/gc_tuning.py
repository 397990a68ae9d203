"""Python's search for cycles of objects."""

import gc


def raise_thresholds() -> None:
    """Begin a search when 50,000 objects are new, some megabytes of them, instead of some hundred or thousand.

    A search of ours, or a page of Smartpay's lists, set off a dozen that found next to nothing: a tenth of its time.
    """
    gc.set_threshold(50_000, 10, 10)

"""storable(): a value from outside, without what one of the databases refuses to store."""

import math
from datetime import datetime
from typing import Any

ALWAYS_STORABLE = {int, bool, type(None), datetime}


def storable(value: Any) -> Any:
    """Return the value without what PostgreSQL or SQLite cannot store; lists and dicts are cleaned item by item.

    NUL is removed, half of a surrogate pair becomes "?", and an infinite number or NaN becomes its text.
    """
    if type(value) in ALWAYS_STORABLE:  # the quick way: everything that the mirror writes comes through here
        return value
    if isinstance(value, str):
        if type(value) is str and value.isprintable():
            return value
        return value.replace("\x00", "").encode("utf-8", "replace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {storable(name): storable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [storable(item) for item in value]
    return value

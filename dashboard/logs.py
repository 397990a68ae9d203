"""What a fault may say in a log: where it happened and of what kind, never what it was about."""

import traceback

from structlog.typing import ExcInfo


def place_and_kind(exc_info: ExcInfo) -> str:
    """Render a traceback without the exceptions' own words: a line for each, then a line for each place, innermost
    first.

    A database's error repeats the row that it refused, with a customer's name in it; others repeat an address, or
    what was typed. The class and the lines passed through are enough to find the fault.
    """
    lines: list[str] = []
    error: BaseException | None = exc_info[1]
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        lines.append(f"{'caused by ' if lines else ''}{type(error).__module__}.{type(error).__qualname__}")
        frames = traceback.extract_tb(error.__traceback__)
        lines += [f"  {frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames)]
        error = error.__cause__ or error.__context__
    return "\n".join(lines)

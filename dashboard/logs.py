"""Logs: one JSON object a line, with ids, never with names, mails or keys."""

import re
import traceback
from collections.abc import Iterable
from typing import Any

import structlog
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
SHORTEST_SECRET = 6  # characters; a shorter one would black out half of every line
# What gives a person or a key away by its form. Our own words are ASCII: what is not was typed by somebody.
REVEALING = re.compile(
    r"""[^\s"'<>=?&/]+(?:@|%40)[^\s"'<>=?&/]+"""  # a mail
    r"|(?:%[89a-fA-F][0-9a-fA-F]){2,}"  # what is not ASCII, as an address carries it
    r"|sk_(?:test|live)_\w+"  # Smartpay's secret key
    r"|\beyJ[\w-]+\.[\w-]+\.[\w-]*"  # a signed token
    r"|(?<=://)[^\s/@]+(?=@)"  # a password in an address
    r"|(?i:(?<=bearer )|(?<=basic ))\S+"
    r"|[^\x00-\x7f]+"
)


def configuration(level: str, secrets: Iterable[str]) -> dict[str, Any]:
    """The LOGGING of the site and of its web server. `secrets` are blacked out wherever they stand."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "json": {
                "()": structlog.stdlib.ProcessorFormatter,
                "processors": [
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    structlog.processors.ExceptionRenderer(place_and_kind),
                    without_address,
                    Redaction(secrets),
                    structlog.processors.JSONRenderer(default=lambda value: type(value).__qualname__),
                ],
                "foreign_pre_chain": SHARED,
            },
        },
        "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "json"}},
        "root": {"handlers": ["console"], "level": level},
        "loggers": {
            "django": {"handlers": ["console"], "level": "INFO", "propagate": False},
            "django.request": {"level": "ERROR"},
            "urllib3": {"level": "ERROR"},
            "mozilla_django_oidc": {"level": "WARNING"},
            "procrastinate": {"level": "WARNING"},  # a line for each job and each look into the queue
            "werkzeug": {"level": "WARNING"},  # the pretended provider: addresses, tokens and all
        },
    }


def counted(logger: WrappedLogger, name: str, line: EventDict) -> EventDict:
    """An alarm is in the metrics too, by its event: whoever reads no logs is told by Prometheus."""
    if line.get("alarm"):
        from dashboard.metrics import ALARMS  # reads the settings, which this module is a part of

        ALARMS.labels(line["event"]).inc()
    return line


def without_address(logger: WrappedLogger, name: str, line: EventDict) -> EventDict:
    """Django ends its lines with the address asked for, in which people type names. The view is in our own line."""
    if str(line.get("logger", "")).startswith("django."):
        line["event"] = re.sub(r": /.*", "", str(line["event"]), flags=re.DOTALL)
    return line


class Redaction:
    """The last look at a line before it is written, also at those of libraries. What we log ourselves needs none."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # The longest first: one may be a part of another.
        known = sorted({each for each in secrets if len(each) >= SHORTEST_SECRET}, key=len, reverse=True)
        self._pattern = re.compile("|".join([*map(re.escape, known), REVEALING.pattern]))

    def __call__(self, logger: WrappedLogger, name: str, line: EventDict) -> EventDict:
        return {self.text(key): self.value(value) for key, value in line.items()}

    def value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(str(key)): self.value(each) for key, each in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value(each) for each in value]
        return value

    def text(self, text: str) -> str:
        return self._pattern.sub("[redacted]", text)


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

"""Logging: one JSON object a line, with ids but never names, mail addresses or keys."""

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
SHORTEST_SECRET = 6  # characters; redacting a shorter one would remove half of every line
# Text that looks like personal data or a key. Our own log messages are ASCII, so anything else was typed by somebody.
REVEALING = re.compile(
    r"""[^\s"'<>=?&/]+(?:@|%40)[^\s"'<>=?&/]+"""  # a mail address
    r"|(?:%[89a-fA-F][0-9a-fA-F]){2,}"  # non-ASCII text, percent-encoded in a URL
    r"|sk_(?:test|live)_\w+"  # Smartpay's secret key
    r"|\beyJ[\w-]+\.[\w-]+\.[\w-]*"  # a signed token
    r"|(?<=://)[^\s/@]+(?=@)"  # a password in a URL
    r"|(?i:(?<=bearer )|(?<=basic ))\S+"
    r"|[^\x00-\x7f]+"
)


def configuration(level: str, secrets: Iterable[str]) -> dict[str, Any]:
    """Return LOGGING for the site and its web server. `secrets` are redacted wherever they appear in a line."""
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
            "procrastinate": {"level": "WARNING"},  # otherwise a line for each job and each poll of the queue
            "werkzeug": {
                "level": "WARNING"
            },  # the development identity provider logs URLs with tokens in them
        },
    }


def counted(logger: WrappedLogger, name: str, line: EventDict) -> EventDict:
    """Count a line with `alarm` in the metrics, by its event, so that Prometheus can alert without the logs."""
    if line.get("alarm"):
        from dashboard.metrics import ALARMS  # it reads the settings, which import this module

        ALARMS.labels(line["event"]).inc()
    return line


def without_address(logger: WrappedLogger, name: str, line: EventDict) -> EventDict:
    """Cut the requested path off Django's own lines: people type names into it. Our own line names the view."""
    if str(line.get("logger", "")).startswith("django."):
        line["event"] = re.sub(r": /.*", "", str(line["event"]), flags=re.DOTALL)
    return line


class Redaction:
    """Processor: redacts every line before it is written. Our own lines need none of it; those of libraries may."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # The longest first, since one secret may be part of another.
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
    """Render a traceback without exception messages: for each exception its class, then its frames, innermost first.

    A database error repeats the row that was refused, with a customer's name in it. Other messages repeat a URL, or
    what somebody typed. The classes and frames are enough to find the fault.
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

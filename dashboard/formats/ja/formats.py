"""The same in Japanese."""

from dashboard.formats.en.formats import *  # noqa: F403

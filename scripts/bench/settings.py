"""The product's settings, with the bench's addresses before its own."""

from dashboard.settings import *  # noqa: F403

ROOT_URLCONF = "scripts.bench.urls"

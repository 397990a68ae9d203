"""The web server's entry point: `gunicorn dashboard.wsgi`."""

import gc
import os

from django.conf import settings
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.wsgi import get_wsgi_application
from django.db import connection

from dashboard import gc_tuning

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dashboard.settings")

application = get_wsgi_application()

# A web server runs the same statements all day, each for few rows, and PostgreSQL takes longer to plan them than to run
# them. Commands that fill tables do not prepare theirs: a plan made while a table is empty stays until it is analysed.
if connection.vendor == "postgresql" and not settings.DATABASE_POOLED:
    settings.DATABASES["default"]["OPTIONS"]["prepare_threshold"] = 5  # times; psycopg's own default

# manage.py runs the system checks, but a web server does not; it must not serve under settings that they refuse.
if faults := [str(message) for message in run_checks() if message.is_serious()]:
    raise ImproperlyConfigured("; ".join(faults))

gc_tuning.raise_thresholds()
gc.collect()
gc.freeze()  # all that is loaded by now stays for the life of the process

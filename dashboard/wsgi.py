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

# The same statements all day, each for few rows: PostgreSQL plans them longer than it carries them out. Not so in a
# command that fills tables: a plan that was made while they were empty stays until they are analysed.
if connection.vendor == "postgresql" and not settings.DATABASE_POOLED:
    settings.DATABASES["default"]["OPTIONS"]["prepare_threshold"] = 5  # times; psycopg's own default

# manage.py runs the system checks, a web server does not: under settings that they refuse, it must not serve.
if faults := [str(message) for message in run_checks() if message.is_serious()]:
    raise ImproperlyConfigured("; ".join(faults))

gc_tuning.raise_thresholds()
gc.collect()
gc.freeze()  # what is loaded by now stays for good

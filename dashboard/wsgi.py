"""The web server's entry point: `gunicorn dashboard.wsgi`."""

import os

from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dashboard.settings")

application = get_wsgi_application()

# manage.py runs the system checks, a web server does not: under settings that they refuse, it must not serve.
if faults := [str(message) for message in run_checks() if message.is_serious()]:
    raise ImproperlyConfigured("; ".join(faults))

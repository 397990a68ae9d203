"""The ledger, the mirror and the trail for auditors. Nothing can be changed here, and each read is recorded."""

from django.contrib import admin
from django.contrib.auth.models import Group

from refunds.admin import job_runs, ledger, mirror, trail

__all__ = ["job_runs", "ledger", "mirror", "trail"]

# Procrastinate's own pages would let jobs be cancelled, and exist on PostgreSQL only. JobRun shows the jobs on both
# databases. `_registry` is private, but Django has no public way to list the registered models.
for model in [*admin.site._registry]:
    if model._meta.app_label == "procrastinate":
        admin.site.unregister(model)
admin.site.unregister(Group)  # the roles are a table in roles.py, not rows to be edited

"""The jobs of the worker: their schedule and their runs."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext_lazy as _

from refunds import clock, jobs
from refunds.admin.base import AuditorAdmin, WordsFilter
from refunds.models import JobRun


class JobFilter(WordsFilter):
    title = _("処理")
    parameter_name = "job"
    words = [(job.name, job.label) for job in jobs.JOBS]


@admin.register(JobRun)
class JobRunAdmin(AuditorAdmin):
    """The runs of the jobs, below their schedule with the next time and the last run of each."""

    list_display = ("label", "started_at", "ended_at", "outcome", "error")
    list_filter = (JobFilter, "outcome")

    @admin.display(description=_("処理"), ordering="job")
    def label(self, run: JobRun) -> str:
        job = jobs.BY_NAME.get(run.job)
        return str(job.label) if job else run.job

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        now = clock.now()
        schedule = [
            {
                "job": job,
                "next_at": job.next_at(now),
                "last": JobRun.objects.filter(job=job.name).order_by("-started_at").first(),
            }
            for job in jobs.JOBS
        ]
        return super().changelist_view(request, {"schedule": schedule} | (extra_context or {}))

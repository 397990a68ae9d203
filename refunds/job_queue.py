"""Run the jobs of jobs.py on PostgreSQL with Procrastinate, each on one machine at a time.

See docs/decisions/0013. Every worker puts each job into the queue at its time; the database accepts the first and
refuses the others. A running job holds its lock until it ends. If its worker sends no heartbeat for STALLED_SECONDS,
another worker aborts the job, and the job can run again at its next time.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable

import procrastinate
import structlog
from procrastinate.contrib.django import connector_params
from procrastinate.jobs import DeleteJobCondition, Status

from refunds import jobs

log = structlog.get_logger(__name__)

HEARTBEAT_SECONDS = 5.0
STALLED_SECONDS = 20.0
POLL_SECONDS = 1.0
GOODBYE_SECONDS = 5.0  # left to the running job at the end; a longer one ends with the process
STOP_SECONDS = 0.2  # between two checks whether the worker was told to stop
AGAIN_SECONDS = 5.0  # until the queue is tried again after an error, such as a lost database
EVERY_TEN_SECONDS = "* * * * * */10"


def register(app: procrastinate.App) -> None:
    """Tell Procrastinate the table of jobs. Called once, when Django is ready: PROCRASTINATE_ON_APP_READY."""
    for job in jobs.JOBS:
        task = app.task(name=job.name, lock=job.alone, queueing_lock=job.name)(_task(job))
        app.periodic(cron=job.schedule)(task)
    app.periodic(cron=EVERY_TEN_SECONDS)(
        app.task(name="strike_out_stalled", pass_context=True, queueing_lock="strike_out_stalled")(
            _strike_out_stalled
        )
    )


def _task(job: jobs.Job) -> Callable[[int], Awaitable[None]]:
    async def run(timestamp: int) -> None:
        """Run the job in a thread that ends with the process: another worker continues a long scan at its page."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def work() -> None:
            jobs.run(job)
            if not loop.is_closed():
                loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=work, daemon=True).start()
        await ended.wait()

    return run


async def _strike_out_stalled(context: procrastinate.JobContext, timestamp: int) -> None:
    manager = context.app.job_manager
    for job in await manager.get_stalled_jobs(seconds_since_heartbeat=STALLED_SECONDS):
        log.warning("job.died", job=job.task_name)
        await manager.finish_job(job, status=Status.ABORTED, delete_job=True)


def work(stop: threading.Event) -> None:
    """Take jobs from the queue until told to stop; start again if the database went away."""
    while not stop.is_set():
        try:
            asyncio.run(_work(stop))
        except Exception:
            log.exception("job.queue_failed", alarm=True)
        stop.wait(AGAIN_SECONDS)


async def _work(stop: threading.Event) -> None:
    from procrastinate.contrib.django import app

    connector = procrastinate.PsycopgConnector(kwargs=connector_params(), min_size=1, max_size=4)
    with app.replace_connector(connector):
        async with app.open_async():
            worker = asyncio.create_task(
                app.run_worker_async(
                    concurrency=len(jobs.JOBS) + 1,
                    fetch_job_polling_interval=POLL_SECONDS,
                    listen_notify=False,  # it would need a connection of its own, which PgBouncer could not share
                    delete_jobs=DeleteJobCondition.ALWAYS.value,  # JobRun remembers
                    install_signal_handlers=False,
                    update_heartbeat_interval=HEARTBEAT_SECONDS,
                    stalled_worker_timeout=STALLED_SECONDS,
                    shutdown_graceful_timeout=GOODBYE_SECONDS,
                )
            )
            while not (stop.is_set() or worker.done()):
                await asyncio.sleep(STOP_SECONDS)
            if worker.done():
                await worker  # raises the error that ended it, if there was one
                raise RuntimeError("Procrastinate's worker ended by itself.")
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)

"""Telling workers that a job waits. A message is only a wake-up: it may be lost or doubled, the job's row decides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from jobs.errors import QueueUnavailableError
from jobs.models import JobId
from jobs.settings import Settings

if TYPE_CHECKING:
    from celery import Celery

RUN_JOB = "medic.run_job"
QUEUE = "medic"

_SOCKETS = {"socket_keepalive": True, "health_check_interval": 25}
_PATIENT = {"socket_timeout": 10, "socket_connect_timeout": 5, **_SOCKETS}
_IMPATIENT = {"socket_timeout": 0.5, "socket_connect_timeout": 0.5, "max_retries": 0}


class Queue(Protocol):
    """How workers hear of a job."""

    def announce(self, job_id: JobId) -> None:
        """Wake a worker for a job.

        Raises:
            QueueUnavailableError: The broker took no message; to be logged, since the sweeper announces the job again.
        """

    def waiting(self) -> int:
        """Count the messages that no worker has taken yet.

        Raises:
            QueueUnavailableError: The broker does not answer.
        """


class NoQueue:
    """For workers that poll the job table."""

    def announce(self, job_id: JobId) -> None:
        """Do nothing: the poller looks for itself."""

    def waiting(self) -> int:
        """There are no messages."""
        return 0


class CeleryQueue:
    """Sends the task ``RUN_JOB`` through a Celery broker; answers within seconds also when the broker does not."""

    def __init__(self, broker_url: str) -> None:
        self._app = celery_app(broker_url)

    def announce(self, job_id: JobId) -> None:
        """Send the id of a job over a connection of its own: none that went stale while idle can swallow the message.

        Raises:
            QueueUnavailableError: The broker took no message.
        """
        with self._connected("the broker took no message") as connection:
            self._app.send_task(RUN_JOB, args=[job_id], connection=connection, retry=False)

    def waiting(self) -> int:
        """Count the messages that no worker has taken yet; so the broker is asked for an answer, too.

        Raises:
            QueueUnavailableError: There was none.
        """
        with self._connected("the broker does not answer") as connection:
            return int(connection.default_channel.queue_declare(QUEUE).message_count)

    @contextmanager
    def _connected(self, failed: str) -> Iterator[Any]:
        from kombu.exceptions import KombuError

        connection = self._app.connection_for_write(transport_options=_IMPATIENT)  # connects when it is used
        try:
            with connection:
                yield connection
        except (KombuError, *connection.connection_errors, *connection.channel_errors) as error:
            raise QueueUnavailableError(f"{failed}: {error}") from error


def open_queue(settings: Settings) -> Queue:
    """Open the queue that the settings ask for: Celery where a broker is named, else none."""
    if settings.broker_url is None:
        return NoQueue()
    return CeleryQueue(settings.broker_url.get_secret_value())


def celery_app(broker_url: str) -> Celery:
    """Make the Celery application that API and worker share. Only the worker gives it tasks."""
    from celery import Celery  # an API without a broker needs none of it

    app = Celery("medic", broker=broker_url, set_as_current=False)
    app.conf.update(
        broker_connection_max_retries=None,  # a worker waits for its broker as long as it takes
        task_default_queue=QUEUE,
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        worker_concurrency=1,
        worker_disable_prefetch=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options=_PATIENT,
    )
    return app

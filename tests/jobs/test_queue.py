"""Announcing jobs through a real Redis, also when it is dead or hangs."""

from __future__ import annotations

import base64
import json
import socket
import time

import pytest
import redis
from pydantic import SecretStr

from benchmarks.servers import RunningRedis, free_port
from jobs.errors import QueueUnavailableError
from jobs.models import JobId
from jobs.queue import RUN_JOB, CeleryQueue, NoQueue, celery_app, open_queue
from jobs.settings import Settings
from tests.servers import redis_server

PATIENCE_SECONDS = 1.5
JOB = JobId("job_1")


def messages(url: str) -> list[tuple[str, list[str]]]:
    """What waits in the broker: the task's name and its arguments."""
    with redis.Redis.from_url(url) as client:
        waiting = [json.loads(message) for message in client.lrange("medic", 0, -1)]
    bodies = [json.loads(base64.b64decode(message["body"])) for message in waiting]
    return [(message["headers"]["task"], body[0]) for message, body in zip(waiting, bodies, strict=True)]


def refused_in_time(queue: CeleryQueue) -> bool:
    began = time.monotonic()
    with pytest.raises(QueueUnavailableError):
        queue.announce(JOB)
    return time.monotonic() - began < PATIENCE_SECONDS


def test_an_announced_job_waits_in_the_broker_as_a_task_with_its_id(running_redis: RunningRedis) -> None:
    CeleryQueue(running_redis.url).announce(JOB)
    assert messages(running_redis.url) == [(RUN_JOB, [JOB])]


def test_a_closed_port_is_said_in_time() -> None:
    assert refused_in_time(CeleryQueue(f"redis://127.0.0.1:{free_port()}/0"))


def test_a_broker_that_hangs_or_dies_is_said_in_time_and_used_again_when_it_is_back(
    running_redis: RunningRedis,
) -> None:
    queue = CeleryQueue(running_redis.url)
    queue.announce(JOB)
    running_redis.hang()
    assert refused_in_time(queue)
    running_redis.go_on()
    queue.announce(JOB)
    running_redis.kill()
    assert refused_in_time(queue)
    port = int(running_redis.url.split(":")[-1].split("/")[0])
    with redis_server(port) as again:
        queue.announce(JOB)
        assert messages(again.url) == [(RUN_JOB, [JOB])]


def test_a_broker_that_lost_everything_takes_the_next_message(running_redis: RunningRedis) -> None:
    queue = CeleryQueue(running_redis.url)
    queue.announce(JOB)
    with redis.Redis.from_url(running_redis.url) as client:
        client.flushall()
    queue.announce(JOB)
    assert messages(running_redis.url) == [(RUN_JOB, [JOB])]


def test_something_that_is_no_redis_is_said_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections, never says a word
        assert refused_in_time(CeleryQueue(f"redis://127.0.0.1:{mute.getsockname()[1]}/0"))


def test_the_settings_choose_the_queue() -> None:
    assert isinstance(open_queue(Settings()), NoQueue)
    assert isinstance(open_queue(Settings(broker_url=SecretStr("redis://127.0.0.1:1/0"))), CeleryQueue)
    NoQueue().announce(JOB)


def test_celery_takes_json_only_acknowledges_early_and_keeps_no_results() -> None:
    conf = celery_app("redis://127.0.0.1:1/0").conf
    assert (conf.task_serializer, conf.accept_content, conf.result_backend) == ("json", ["json"], None)
    assert (conf.task_ignore_result, conf.task_acks_late, conf.task_reject_on_worker_lost) == (True, False, False)
    assert (conf.worker_disable_prefetch, conf.worker_cancel_long_running_tasks_on_connection_loss) == (True, False)
    assert (conf.task_default_queue, conf.broker_connection_retry_on_startup) == ("medic", True)
    assert conf.broker_transport_options["socket_timeout"] == 10

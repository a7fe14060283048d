# The Celery worker, with torch for CUDA, which also runs on a CPU. Built from the root: docker build --file docker/worker.Dockerfile .
FROM python:3.11.14-slim-bookworm AS build
RUN python -m venv /opt/medic
ENV PATH=/opt/medic/bin:$PATH
WORKDIR /build
COPY constraints.txt pyproject.toml ./
# Without the code, only what it needs: this layer lasts until a version changes. The README is metadata.
RUN touch README.md && pip install --no-cache-dir --constraint constraints.txt ".[worker]"
COPY jobs jobs
COPY medic_client medic_client
COPY medic_core medic_core
COPY worker worker
RUN pip install --no-cache-dir --no-deps --force-reinstall .

FROM python:3.11.14-slim-bookworm
# Both images use this number, because they share the data folder.
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/medic --shell /usr/sbin/nologin medic \
    && install --directory --owner medic --group medic /var/lib/medic
COPY --from=build /opt/medic /opt/medic
ENV PATH=/opt/medic/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MEDIC_LOG_FORMAT=json \
    MEDIC_DATA_DIR=/var/lib/medic
USER 10001:10001
WORKDIR /var/lib/medic
VOLUME /var/lib/medic
# One job at a time, each in its own child process. A worker that dies needs no health check: its lease ends and another takes the job.
CMD ["celery", "--quiet", "-A", "worker.tasks", "worker", "-c", "1", "--pool", "prefork", "--loglevel", "INFO", \
    "--without-gossip", "--without-mingle", "--without-heartbeat"]

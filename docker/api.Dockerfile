# The HTTP API, without torch. Built from the root: docker build --file docker/api.Dockerfile .
FROM python:3.11.14-slim-bookworm AS build
RUN python -m venv /opt/medic
ENV PATH=/opt/medic/bin:$PATH
WORKDIR /build
COPY constraints.txt pyproject.toml ./
# Without the code, only what it needs: this layer lasts until a version changes. The README is metadata.
RUN touch README.md && pip install --no-cache-dir --constraint constraints.txt ".[api]"
COPY api api
COPY jobs jobs
COPY medic_client medic_client
COPY medic_core medic_core
RUN pip install --no-cache-dir --no-deps --force-reinstall .

FROM python:3.11.14-slim-bookworm
# Both images use this number, because they share the data folder.
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/medic --shell /usr/sbin/nologin medic \
    && install --directory --owner medic --group medic /var/lib/medic
COPY --from=build /opt/medic /opt/medic
ENV PATH=/opt/medic/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MEDIC_LOG_FORMAT=json \
    MEDIC_DATA_DIR=/var/lib/medic \
    MEDIC_HOST=0.0.0.0
USER 10001:10001
WORKDIR /var/lib/medic
VOLUME /var/lib/medic
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
CMD ["python", "-m", "api"]

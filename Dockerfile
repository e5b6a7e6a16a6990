# syntax=docker/dockerfile:1
# One image for every process of the sender: worker, beat, Flower, migrate and the command line. On glibc, because the
# wheels of libnghttp2 and cryptography are built for it; without the embedded servers, which are for development.

FROM python:3.12-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
RUN python -m venv /opt/sender
COPY pyproject.toml README.md LICENSE ./
COPY sender ./sender
COPY tasks ./tasks
COPY config ./config
RUN /opt/sender/bin/pip install '.[worker,flower]' && /opt/sender/bin/pip uninstall --yes pip

FROM python:3.12-slim-bookworm
RUN groupadd --system --gid 10001 sender \
    && useradd --system --uid 10001 --gid sender --home-dir /var/lib/sender --create-home --shell /usr/sbin/nologin sender
COPY --from=build /opt/sender /opt/sender
COPY --chmod=0555 deploy/entrypoint.py /opt/sender/entrypoint.py
ENV PATH=/opt/sender/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    SENDER_DATA_DIR=/var/lib/sender \
    SENDER_FLOWER_ADDRESS=0.0.0.0 \
    SENDER_LOG_FORMAT=json
USER 10001:10001
WORKDIR /var/lib/sender
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "/opt/sender/entrypoint.py", "sender"]
CMD ["--help"]

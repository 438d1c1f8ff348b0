# syntax=docker/dockerfile:1

# One image; the command says whether it is the API, the worker or a migration.
ARG PYTHON_VERSION=3.13

FROM python:${PYTHON_VERSION}-slim AS packages
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements/production.txt /build/production.txt
# Wheels only, each checked against its hash: nothing is compiled and nothing runs at installation.
RUN python -m venv /opt/onehop \
    && /opt/onehop/bin/python -m pip install --require-hashes --only-binary=:all: --no-deps -r /build/production.txt \
    && /opt/onehop/bin/python -m pip uninstall --yes pip

FROM python:${PYTHON_VERSION}-slim
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Onehop" \
      org.opencontainers.image.description="API and background worker of Onehop" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/opt/onehop/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    PORT=8000 \
    APP_DATA_DIR=/var/lib/onehop \
    APP_COMMIT=${REVISION}
RUN groupadd --system --gid 10001 onehop \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin onehop \
    && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/onehop
COPY --from=packages /opt/onehop /opt/onehop
WORKDIR /srv/onehop
COPY alembic.ini pyproject.toml LICENSE ./
COPY alembic ./alembic
COPY app ./app
# Compiled once here, because the user below may not write into the code.
RUN python -m compileall -q app alembic
USER 10001:10001
VOLUME ["/var/lib/onehop"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client as h, os; c = h.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=2); c.request('GET', '/livez'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["python", "-m", "app", "serve"]

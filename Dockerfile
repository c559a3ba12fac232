# One image for every process of Adiuva; the command says which. See docs/operations.md.
FROM python:3.13-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
RUN python -m venv /opt/adiuva
COPY requirements.txt requirements-traces.txt /tmp/
# Wheels alone, so that no compiler is needed and nothing of a package runs while it is installed.
RUN /opt/adiuva/bin/pip install --require-hashes --only-binary=:all: \
    -r /tmp/requirements.txt -r /tmp/requirements-traces.txt
RUN /opt/adiuva/bin/python -m compileall -q /opt/adiuva/lib || true

FROM python:3.13-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin adiuva
COPY --from=build /opt/adiuva /opt/adiuva
COPY . /app
RUN python -m compileall -q /app
WORKDIR /app
ENV PATH=/opt/adiuva/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    ADIUVA_ENV=production ADIUVA_HOST=0.0.0.0 ADIUVA_PORT=8000
USER 10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Of web processes. Workers and beat are heard by /api/v1/health/ready of any of them, so compose turns it off there.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['ADIUVA_PORT'] + '/api/v1/health', timeout=4)"]
CMD ["python", "-m", "adiuva.server"]

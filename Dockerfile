# The first stage compiles; the second has what runs.
FROM python:3.13-slim AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements-build.lock requirements.lock ./
# No build isolation: isolated builds would fetch their setuptools without a hash.
RUN python -m venv /build \
    && /build/bin/pip install --no-cache-dir --require-hashes -r requirements-build.lock \
    && /build/bin/pip wheel --no-cache-dir --no-deps --require-hashes --no-build-isolation --use-pep517 \
        -w /wheels -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY migrations migrations
RUN /build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation -w /wheels . \
    && python -m venv --without-pip /opt/bridgehead \
    && /build/bin/pip --python /opt/bridgehead/bin/python install --no-cache-dir --no-index --no-deps /wheels/*.whl

FROM python:3.13-slim
LABEL org.opencontainers.image.title="Bridgehead" \
      org.opencontainers.image.description="REST daemon for container networks: bridges, veth endpoints, NAT, published ports" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="The Bridgehead authors"
# iptables for its libraries and extensions, which python-iptables loads; libnftables is loaded by us.
RUN apt-get update \
    && apt-get install -y --no-install-recommends iptables libnftables1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/bridgehead /opt/bridgehead
ENV PATH=/opt/bridgehead/bin:$PATH \
    PYTHONUNBUFFERED=1
VOLUME /var/lib/bridgehead
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 CMD ["bridgehead", "health"]
# Exec form: the daemon is PID 1 and gets the signals.
ENTRYPOINT ["bridgehead"]
CMD ["serve"]

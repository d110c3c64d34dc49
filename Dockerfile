# The gateway. Dependencies are compiled in a layer of their own, so that a change of the source does not repeat it.
FROM rust:1.95.0-bookworm AS build
LABEL texto.stage=build
WORKDIR /texto
# An arm64 kernel may have pages of 4, 16 or 64 KiB, and jemalloc must be built for the largest that it will meet
# (2^16); elsewhere they are 4 KiB.
RUN echo "export JEMALLOC_SYS_WITH_LG_PAGE=$([ "$(uname -m)" = aarch64 ] && echo 16 || echo 12)" > /etc/texto-build
COPY Cargo.toml Cargo.lock ./
COPY lab/Cargo.toml lab/
RUN mkdir -p src lab/src \
    && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs lab/src/lib.rs \
    && . /etc/texto-build && cargo build --release --locked \
    && rm -r src lab/src
COPY src src
COPY web web
COPY lab/src lab/src
# What cargo compiled above must look older than what it has to compile now. The program itself says for which pages it
# was built.
RUN find src lab/src -name '*.rs' -exec touch {} + \
    && . /etc/texto-build && cargo build --release --locked \
    && _RJEM_MALLOC_CONF=stats_print:true target/release/texto --version 2>&1 \
      | grep -x "Page size: $((1 << JEMALLOC_SYS_WITH_LG_PAGE))" \
    && cp target/release/texto /usr/local/bin/texto

FROM debian:bookworm-slim
COPY --from=build /usr/local/bin/texto /usr/local/bin/texto
# A volume that is mounted here belongs to the gateway, and to nobody else.
RUN install -d -o 10001 -g 10001 -m 0700 /var/lib/texto
USER 10001:10001
EXPOSE 8398 9398
STOPSIGNAL SIGTERM
# Liveness: whoever restarts unhealthy containers must not do so while Redis is away, or while this one drains.
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s --retries=3 CMD ["texto", "healthcheck", "--path", "/livez"]
ENTRYPOINT ["texto"]

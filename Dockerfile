# The gateway, and nothing beside it: no shell, no package manager. Dependencies are compiled in a layer of their own, so
# that a change of the source does not repeat it.
FROM rust:1.95.0-bookworm AS build
LABEL texto.stage=build
# It writes into the program what that is made of, for scanners to read (`trivy image`, `cargo audit bin`, `syft`).
RUN cargo install --locked --root /usr/local cargo-auditable@0.7.7
WORKDIR /texto
# An arm64 kernel may have pages of 4, 16 or 64 KiB, and jemalloc must be built for the largest that it will meet
# (2^16); elsewhere they are 4 KiB.
RUN echo "export JEMALLOC_SYS_WITH_LG_PAGE=$([ "$(uname -m)" = aarch64 ] && echo 16 || echo 12)" > /etc/texto-build
COPY Cargo.toml Cargo.lock ./
COPY clients/rust/Cargo.toml clients/rust/
COPY lab/Cargo.toml lab/
RUN mkdir -p src clients/rust/src lab/src \
    && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs clients/rust/src/lib.rs lab/src/lib.rs \
    && . /etc/texto-build && cargo auditable build --release --locked --no-default-features \
    && rm -r src
COPY src src
COPY web web
COPY clients/js/texto.js clients/js/
# What cargo compiled above must look older than what it has to compile now. The program itself says for which pages it
# was built.
RUN find src -name '*.rs' -exec touch {} + \
    && . /etc/texto-build && cargo auditable build --release --locked --no-default-features \
    && _RJEM_MALLOC_CONF=stats_print:true target/release/texto --version 2>&1 \
      | grep -x "Page size: $((1 << JEMALLOC_SYS_WITH_LG_PAGE))"
# The program, the libraries that it is linked with, how names are looked up, whom TLS trusts, and a folder for a volume,
# which belongs to the gateway and to nobody else. It must run with no more than that.
RUN install -D target/release/texto /image/usr/local/bin/texto \
    && cp -L --parents $(ldd target/release/texto | grep -o '/[^ ]*') /image \
    && install -D -m 0644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
    && echo 'hosts: files dns' > /image/etc/nsswitch.conf \
    && install -d -o 10001 -g 10001 -m 0700 /volumes/texto \
    && chroot /image /usr/local/bin/texto --version

FROM scratch
COPY --from=build /image/ /
COPY --from=build --chown=10001:10001 /volumes/ /var/lib/
ENV PATH=/usr/local/bin
USER 10001:10001
EXPOSE 8398 9398
STOPSIGNAL SIGTERM
# Liveness: whoever restarts unhealthy containers must not do so while Redis is away, or while this one drains.
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s --retries=3 CMD ["texto", "healthcheck", "--path", "/livez"]
ENTRYPOINT ["texto"]

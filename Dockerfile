# The gateway. Dependencies are compiled in a layer of their own, so that a change of the source does not repeat it.
FROM rust:1.95.0-bookworm AS build
LABEL texto.stage=build
WORKDIR /texto
COPY Cargo.toml Cargo.lock ./
COPY lab/Cargo.toml lab/
RUN mkdir -p src lab/src \
    && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs lab/src/lib.rs \
    && cargo build --release --locked \
    && rm -r src lab/src
COPY src src
COPY web web
COPY lab/src lab/src
# What cargo compiled above must look older than what it has to compile now.
RUN find src lab/src -name '*.rs' -exec touch {} + \
    && cargo build --release --locked \
    && cp target/release/texto /usr/local/bin/texto

FROM debian:bookworm-slim
COPY --from=build /usr/local/bin/texto /usr/local/bin/texto
USER 10001:10001
EXPOSE 8398 9398
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s --retries=3 CMD ["texto", "healthcheck"]
ENTRYPOINT ["texto"]

# An image that contains only the server binary, which also performs the health check.
#   docker build -t serverd . && docker run --rm -p 8888:8888 serverd

FROM rust:1-alpine AS build
RUN apk add --no-cache musl-dev
WORKDIR /src
COPY . .
RUN cargo build --release --locked

FROM scratch
COPY --from=build /src/target/release/serverd /serverd
ENV SERVERD_HOST=0.0.0.0
USER 65534
EXPOSE 8888
HEALTHCHECK --interval=10s --timeout=6s CMD ["/serverd", "check", "http://127.0.0.1:8888/"]
ENTRYPOINT ["/serverd"]

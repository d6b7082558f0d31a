#!/usr/bin/env bash
# Runs all fuzz targets in parallel for SECONDS, starting from the corpus in fuzz/corpus: fuzz.sh SECONDS
# Installs nightly Rust and cargo-fuzz if they are missing. If that fails, skips, or fails if CI_REQUIRE_FUZZ is set.
# Inputs that cause a crash are saved in fuzz/artifacts, and the log of the target is printed.
set -euo pipefail
seconds=$1
cd "$(dirname "$0")/../.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

skip() {
    echo "SKIPPED: fuzzing: $*"
    [ -z "${CI_REQUIRE_FUZZ:-}" ] || exit 1
    exit 0
}

cargo +nightly --version 2>/dev/null || rustup toolchain install nightly --profile minimal ||
    skip "nightly Rust is not installed and cannot be downloaded"
cargo fuzz --version 2>/dev/null || cargo install cargo-fuzz --locked --quiet ||
    skip "cargo-fuzz is not installed and cannot be downloaded"

cargo +nightly fuzz build
jobs=() failed=0
targets=(head chunked connection response multipart)
# A handshake takes so long under the sanitizer that a short run tries few.
[ "$seconds" -lt 300 ] || targets+=(tls)
for target in "${targets[@]}"; do
    mkdir -p "$scratch/$target" "fuzz/corpus/$target"
    # A handshake may take 64 KiB.
    len=4096 && [ "$target" != tls ] || len=66000
    cargo +nightly fuzz run "$target" "$scratch/$target" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -max_len=$len -timeout=20 -rss_limit_mb=2048 >"$scratch/$target.log" 2>&1 &
    jobs+=("$target:$!")
done
for job in "${jobs[@]}"; do
    target=${job%:*}
    if wait "${job#*:}"; then
        echo "ok $target: $(grep '^Done ' "$scratch/$target.log")"
    else
        cat "$scratch/$target.log"
        failed=1
    fi
done
exit $failed

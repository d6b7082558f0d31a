#!/usr/bin/env bash
# Builds the test suite for another platform and runs it: Windows under Wine, aarch64 in an emulator, musl natively.
#
#   suite.sh TARGET [ARGUMENTS OF THE TEST PROGRAMS]
#   suite.sh TARGET --build                             build it only
#
# Prints the number of passed tests, and which tests were skipped and why.
set -euo pipefail
target=$1
shift
cd "$(dirname "$0")/../.."
. tests/platforms/env.sh
programs=(--locked --target "$target" --lib --bins --tests)
# The tests run the examples as separate processes.
build() { cargo build --locked --target "$target" --examples && cargo test "${programs[@]}" --no-run; }
if [ "${1:-}" = --build ]; then
    build
    exit
fi
ulimit -n "$(ulimit -Hn)" || true
threads=()
case $target in
# Wine serves all processes with one thread.
x86_64-pc-windows-gnu) export RUST_TEST_THREADS=6 ;;
# The emulator's select call crashes on file descriptors above 1,023.
aarch64-*)
    threads=(--test-threads 3 --skip every_request_is_answered --skip floods_are_slowed --skip a_huge_directory
        --skip a_thousand_concurrent_downloads --skip cached_files_are_closed)
    ulimit -n 1024
    echo "skipped in the emulator: the simulations and a huge directory, which are CPU-bound and take minutes there"
    echo "skipped in the emulator: a thousand downloads, and running out of descriptors," \
        "which need descriptors above 1,023"
    ;;
esac
output=$(mktemp)
trap 'rm -f "$output"; [ "$target" != x86_64-pc-windows-gnu ] || wineserver -k 2>/dev/null || true' EXIT
run() { build && cargo test "${programs[@]}" --no-fail-fast -- --show-output "${threads[@]}" "$@"; }
failed=0
run "$@" >"$output" 2>&1 || failed=1
grep -aE '^(test result|test .*FAILED|error)' "$output" || true
sed -n 's/\r$//; s/^\(skipped.*\)/\1/p' "$output" | sort | uniq -c
# In the emulator, a test may fail only because other tests load the machine, so up to five failed tests are run again
# on their own.
mapfile -t retries < <(sed -n 's/\r$//; s/^test \([^ ]*\) .*FAILED$/\1/p' "$output")
if [ $failed = 1 ] && [[ $target = aarch64-* ]] && [ ${#retries[@]} -gt 0 ] && [ ${#retries[@]} -le 5 ]; then
    echo "running again on their own: ${retries[*]}"
    failed=0
    cargo test "${programs[@]}" -- --exact --test-threads 1 "${retries[@]}" \
        >"$output" 2>&1 || failed=1
fi
[ $failed = 0 ] || grep -aE -A3 '^thread .* panicked|^error' "$output" | head -200
exit $failed

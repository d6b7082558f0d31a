#!/usr/bin/env bash
# The test suite, built for another platform and run there: Windows under Wine, aarch64 in an emulator, musl as it is.
#
#   suite.sh TARGET [ARGUMENTS OF THE TEST PROGRAMS]
#
# Says how many tests passed, and of what the platform cannot do, what was skipped and why.
set -euo pipefail
target=$1
shift
cd "$(dirname "$0")/../.."
. tests/platforms/env.sh
ulimit -n "$(ulimit -Hn)" || true
threads=()
case $target in
# Most of what a test takes there is waiting, for Wine or for time limits: several wait together.
x86_64-pc-windows-gnu) threads=(--test-threads 6) ;;
# The emulator's select call dies of a descriptor above 1,023.
aarch64-*)
    threads=(--test-threads 3 --skip sim:: --skip a_huge_directory --skip a_thousand_downloads_at_once
        --skip descriptors_that_are_used_up)
    ulimit -n 1024
    echo "skipped in the emulator: sim:: and a huge directory, which are all computing and take minutes there"
    echo "skipped in the emulator: a thousand downloads, and descriptors used up, which need more of them than it can take"
    ;;
esac
output=$(mktemp)
trap 'rm -f "$output"; [ "$target" != x86_64-pc-windows-gnu ] || wineserver -k 2>/dev/null || true' EXIT
# The tests start the examples as programs.
run() {
    cargo build --locked --target "$target" --examples
    cargo test --locked --no-fail-fast --target "$target" --lib --bins --tests -- --show-output "${threads[@]}" "$@"
}
failed=0
run "$@" >"$output" 2>&1 || failed=1
grep -aE '^(test result|test .*FAILED|error)' "$output" || true
sed -n 's/\r$//; s/^\(skipped.*\)/\1/p' "$output" | sort | uniq -c
# In the emulator a test may fail only because so much runs beside it: that is tried once more, alone, and said.
mapfile -t again < <(sed -n 's/\r$//; s/^test \([^ ]*\) .*FAILED$/\1/p' "$output")
if [ $failed = 1 ] && [[ $target = aarch64-* ]] && [ ${#again[@]} -gt 0 ] && [ ${#again[@]} -le 5 ]; then
    echo "again, alone: ${again[*]}"
    failed=0
    cargo test --locked --target "$target" --lib --bins --tests -- --exact --test-threads 1 "${again[@]}" \
        >"$output" 2>&1 || failed=1
fi
[ $failed = 0 ] || grep -aE -A3 '^thread .* panicked|^error' "$output" | head -200
exit $failed

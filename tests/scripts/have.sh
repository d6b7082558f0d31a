# Helper functions for scripts that run real clients. Sourced by them.

fail() { echo "FAILED: $*"; exit 1; }

have() { # PROGRAM
    command -v "$1" >/dev/null && return
    [ -z "${CI_REQUIRE_CLIENTS:-}" ] || fail "$1 is not installed"
    echo "skipped: $1 is not installed"
    return 1
}

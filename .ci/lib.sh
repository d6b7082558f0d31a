# Helper functions to run stages, and to start and stop the server under test. Sourced by .ci/run.

passed=0
summary=""
missing=""
servers=()
trap 'for pid in "${servers[@]}"; do kill -9 "$pid" 2>/dev/null || true; done' EXIT

# Runs a command as a stage, unless --only excludes it. The first stage that fails ends the run.
stage() { # NAME COMMAND...
    local name=$1 start=$SECONDS
    shift
    # shellcheck disable=SC2053
    [[ $name == $only ]] || return 0
    echo "== $name"
    if "$@"; then
        passed=$((passed + 1))
        summary+=$(printf '%5ss  %s' $((SECONDS - start)) "$name")$'\n'
    else
        echo "$summary"
        echo "failed: $name"
        echo "$passed passed, 1 failed"
        exit 1
    fi
}

finish_run() {
    echo "$summary"
    echo -n "$missing"
    echo "$passed passed, 0 failed"
}

# Starts the release binary on a free port, and sets `pid` and `port`.
start() {
    local out
    out=$(mktemp)
    target/release/serverd --port 0 "$@" >"$out" &
    pid=$!
    servers+=("$pid")
    for _ in $(seq 100); do
        port=$(sed -n 's/^serverd: listening on https*:\/\/127\.0\.0\.1:\([0-9]*\) .*/\1/p' "$out")
        [ -n "$port" ] && break
        sleep 0.05
    done
    rm -f "$out"
    [ -n "$port" ]
}

finish() { # sends SIGTERM, after which the server must exit with 0
    kill -TERM "$pid"
    wait "$pid"
}

# Runs a command for a target. If the target cannot be installed on this machine, prints a warning, and fails only if
# REQUIRED is not empty.
platform() { # REQUIRED TARGET COMMAND...
    local required=$1 target=$2
    shift 2
    if ! bash tests/platforms/setup.sh "$target"; then
        echo "WARNING: $target cannot be installed here: it was NOT tested ($*)"
        missing+="NOT TESTED: $target"$'\n'
        [ -z "$required" ]
        return
    fi
    "$@"
}

# Helper functions to run stages, and to start and stop the server under test. Sourced by .ci/run.

passed=0
summary=""
missing=$(mktemp)
servers=()
declare -A background_jobs background_logs background_starts
trap 'stop_servers; stop_background; rm -f "$missing"' EXIT

stop_servers() { for pid in "${servers[@]}"; do kill -9 "$pid" 2>/dev/null || true; done; }

stop_background() { for pid in "${background_jobs[@]}"; do kill -- "-$pid" 2>/dev/null || true; done; }

# Runs a command in a shell of its own, in which the first command that fails ends it. Not to be used in a condition,
# where the shell would ignore `set -e`.
isolated() { (
    servers=()
    trap stop_servers EXIT
    set -e
    "$@"
); }

# Runs a command as a stage, unless --only excludes it. The first stage that fails ends the run.
stage() { # NAME COMMAND...
    local name=$1 start=$SECONDS code
    shift
    # shellcheck disable=SC2053
    [[ $name == $only ]] || return 0
    echo "== $name"
    set +e
    isolated "$@"
    code=$?
    set -e
    end_stage "$name" $code $((SECONDS - start))
}

# Starts a command as a stage that uses the time that the following stages leave, until `await`.
background() { # NAME COMMAND...
    local name=$1
    shift
    # shellcheck disable=SC2053
    [[ $name == $only ]] || return 0
    echo "== $name: started in the background"
    background_logs[$name]=$(mktemp)
    background_starts[$name]=$SECONDS
    # A process group of its own, so that all of it can be stopped.
    set -m
    { renice -n 19 -p $BASHPID && isolated "$@"; } >"${background_logs[$name]}" 2>&1 </dev/null &
    set +m
    background_jobs[$name]=$!
}

# Waits for stages in the background.
await() { # NAME...
    local name code
    for name in "$@"; do
        [ -n "${background_jobs[$name]:-}" ] || continue
        echo "== $name"
        code=0
        wait "${background_jobs[$name]}" || code=$?
        cat "${background_logs[$name]}"
        rm -f "${background_logs[$name]}"
        unset "background_jobs[$name]"
        end_stage "$name" $code $((SECONDS - background_starts[$name]))
    done
}

end_stage() { # NAME CODE SECONDS
    if [ "$2" = 0 ]; then
        passed=$((passed + 1))
        summary+=$(printf '%5ss  %s' "$3" "$1")$'\n'
    else
        echo "$summary"
        echo "failed: $1"
        echo "$passed passed, 1 failed"
        exit 1
    fi
}

finish_run() {
    echo "$summary"
    cat "$missing"
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
        echo "NOT TESTED: $target" >>"$missing"
        [ -z "$required" ]
        return
    fi
    "$@"
}

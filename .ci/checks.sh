# The checks that .ci/run runs as stages, one function each. Sourced by .ci/run.

install() {
    local missing=() sudo=""
    declare -A packages=([curl]=curl [nc]=netcat-openbsd [ncat]=ncat [telnet]=telnet [strace]=strace [valgrind]=valgrind [python3]=python3
        [haproxy]=haproxy [nginx]=nginx-light [caddy]=caddy [promtool]=prometheus [wget]=wget [wrk]=wrk
        [h2load]=nghttp2-client [node]=nodejs [chromium]=chromium [chromedriver]=chromium-driver
        [rclone]=rclone [lftp]=lftp [aria2c]=aria2 [openssl]=openssl [javac]=default-jdk-headless)
    for program in "${!packages[@]}"; do
        command -v "$program" >/dev/null || missing+=("${packages[$program]}")
    done
    python3 -c 'import requests' 2>/dev/null || missing+=(python3-requests)
    [ ${#missing[@]} -eq 0 ] && return
    [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo apt-get -o DPkg::Lock::Timeout=300 update -qq
    DEBIAN_FRONTEND=noninteractive $sudo apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "${missing[@]}"
}

# Commit subjects must fit on one line of `git log`. Commits older than this rule are not checked.
commit_subjects() {
    local first=0f0787834f28 range=HEAD long
    git cat-file -e "$first^{commit}" 2>/dev/null && range=$first..HEAD
    long=$(git log --format=%s "$range" | awk 'length > 72')
    [ -z "$long" ] || { echo "longer than 72 characters:"; echo "$long"; return 1; }
}

docs() { RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --all-features --locked; }

features() { # the library without features, and with each alone; `cargo test` has all of them
    local feature crates crates_max=23
    cargo clippy --locked --no-default-features --lib -- -D warnings
    for feature in files chat compress basic-auth json tls system-roots http-types testing; do
        cargo clippy --locked --no-default-features --features $feature --lib -- -D warnings
    done
    cargo test --locked --no-default-features --features files --lib --test allocations
    crates=$(cargo tree --locked -e normal --no-default-features --prefix none --format '{p}' | sed 's/ (.*//' | sort -u | wc -l)
    [ "$crates" -le $crates_max ] || { echo "the library without features needs $crates crates, maximum $crates_max"; return 1; }
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --no-default-features --target-dir target/library
    [ ! -e target/library/doc/serverd/cli ] || { echo "the documentation of the library contains the command line"; return 1; }
}

# The tests that run in the emulator for every change: the parts that depend on the architecture most. The others take
# more than 20 minutes there, and are run by hand.
emulated=(loop:: http1:: tls:: readiness:: streams:: file_bodies:: files::serving:: process::)

cross=(x86_64-pc-windows-gnu x86_64-pc-windows-msvc aarch64-apple-darwin x86_64-unknown-freebsd x86_64-unknown-netbsd)

suite() { timeout 5400 nice -n 5 bash tests/platforms/suite.sh "$@"; } # TARGET [TESTS]

build_for_other_platforms() { # the programs that the stages of these platforms run later
    local target
    for target in x86_64-pc-windows-gnu x86_64-unknown-linux-musl aarch64-unknown-linux-gnu; do
        # The stage of the target reports that it cannot be installed.
        bash tests/platforms/setup.sh $target || continue
        bash tests/platforms/suite.sh $target --build
    done
}

windows_server() { # black-box tests of serverd.exe
    (. tests/platforms/env.sh; cargo build --locked --target x86_64-pc-windows-gnu --bin serverd)
    bash tests/platforms/windows.sh target/x86_64-pc-windows-gnu/debug/serverd.exe
}

# Tests src/loop/kqueue.rs on Linux, where mio uses epoll. docs/PLATFORMS.md describes what this covers.
kqueue_by_epoll() {
    RUSTC_WORKSPACE_WRAPPER=$PWD/tests/platforms/kqueue-by-epoll cargo test --locked --lib --test it -- kqueue process::
}

many_clients() { # BACKEND: 5,000 clients at once, each served within 2 s
    local failed=0
    start --backend "$1"
    python3 tests/platforms/many_clients.py "127.0.0.1:$port" 5000 2 || failed=1
    finish && [ $failed = 0 ]
}

# Clippy does not link, so `true` can replace the C compiler of the target, except for msvc. There, the library that it
# would create must exist, and the tests, which are the same as for windows-gnu, are not checked.
cross_clippy() { # TARGET
    local name=${1//-/_} crates=(--all-targets)
    case $1 in
    *-msvc)
        crates=(--lib --bins)
        export "CC_$name=true" "AR_$name=$PWD/tests/platforms/empty_library.sh"
        ;;
    *-windows-gnu) ;;
    *) export "CC_$name=true" "AR_$name=true" ;;
    esac
    cargo clippy --locked "${crates[@]}" --target "$1" -- -D warnings
}

clients() { # BACKEND WORKERS
    local response text="this is response from server"
    start --backend "$1" --workers "$2"
    target/release/serverd check "http://127.0.0.1:$port/" --print body | grep -qxF "$text" || return 1
    response=$(curl -sSi -m 10 "http://127.0.0.1:$port/")
    grep -q '^Content-Length: 28' <<<"$response" && [[ $response == "HTTP/1.1 200 OK"* && $response == *"$text" ]] || return 1
    [[ $(printf 'GET / HTTP/1.1\r\nHost: x\r\n\r\n' | nc -N 127.0.0.1 "$port") == *"$text" ]] || return 1
    [[ $(printf 'GET / HTTP/1.1\nHost: x\n\n' | nc -q 1 127.0.0.1 "$port") == *"$text" ]] || return 1
    finish
}

real_clients() { # BACKEND: widely used HTTP clients
    local failed=0
    start --backend "$1"
    bash tests/scripts/clients_http.sh "127.0.0.1:$port" || failed=1
    finish && [ $failed = 0 ]
}

tls_clients() { # BACKEND
    local clients
    for clients in tls java; do bash tests/scripts/clients_$clients.sh target/release/serverd "$1"; done
}

conformance() { # RUNNER BACKEND WORKERS [OPTIONS]
    local runner=$1 failed=0 tls=
    [ "${*: -1}" != --tls ] || tls=--tls
    start --backend "$2" --workers "$3" $tls
    shift 3
    python3 "$runner" "127.0.0.1:$port" "$@" | grep -v '^ok ' || failed=1
    finish && [ $failed = 0 ]
}

slow_conformance() { # cases that wait for timeouts, with all servers in parallel
    local jobs=() failed=0
    for setup in "epoll 1" "select 1" "epoll 2"; do
        # shellcheck disable=SC2086
        (servers=(); conformance tests/conformance/run.py $setup --slow --only 'to-*') &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job" || failed=1; done
    [ $failed = 0 ]
}

simulation() { # SEEDS
    SERVERD_SIM_SEEDS=$1 cargo test --locked --profile sim --test sim -- --nocapture
}

drains() { SERVERD_DRAINS=$1 cargo test --locked --test it drain_load; } # RUNS

#!/usr/bin/env bash
# Prepares a Debian or Ubuntu machine to build for other targets, and to run what was built.
#
#   setup.sh TARGET...
#
# x86_64-pc-windows-gnu, x86_64-unknown-linux-musl and aarch64-unknown-linux-gnu get what linking and running takes
# (mingw and Wine, musl's C library, an emulator); every other target only the standard library, for cargo check and
# clippy. What is there already is left alone: the second time takes a second. Exit 1: this machine cannot have it.
set -euo pipefail
cd "$(dirname "$0")"
. ./env.sh

packages() {
    case $1 in
    x86_64-pc-windows-gnu) echo gcc-mingw-w64-x86-64-win32 wine64 wine ;;
    x86_64-unknown-linux-musl) echo musl-tools ;;
    aarch64-unknown-linux-gnu) echo gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user ;;
    esac
}

# The programs that show that a target's packages are there, from wherever.
programs() {
    case $1 in
    x86_64-pc-windows-gnu) echo x86_64-w64-mingw32-gcc wine wineserver ;;
    x86_64-unknown-linux-musl) echo musl-gcc ;;
    aarch64-unknown-linux-gnu) echo aarch64-linux-gnu-gcc qemu-aarch64 ;;
    esac
}

install() { # TARGET
    local missing=0 sudo="" program
    for program in $(programs "$1"); do command -v "$program" >/dev/null || missing=1; done
    [ $missing = 1 ] || return 0
    command -v apt-get >/dev/null || { echo "setup: $1 needs $(programs "$1")" >&2; return 1; }
    [ "$(id -u)" = 0 ] || sudo=sudo
    # shellcheck disable=SC2046
    apt() { DEBIAN_FRONTEND=noninteractive $sudo apt-get -o DPkg::Lock::Timeout=600 -qq "$@" >/dev/null; }
    apt install -y --no-install-recommends $(packages "$1") ||
        { apt update && apt install -y --no-install-recommends $(packages "$1"); }
}

standard_library() { # TARGET
    [ -d "$(rustc --print sysroot)/lib/rustlib/$1/lib" ] || rustup target add "$1"
}

# Rust's standard library (since 1.78) takes random numbers from a library that Wine has since 8.13; Debian 12 has 8.0.
random_numbers() {
    local library=$WINEPREFIX/drive_c/windows/system32/bcryptprimitives.dll
    [ ! -e "$library" ] || return 0
    cat >"$WINEPREFIX/prng.c" <<'C'
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID buffer, ULONG length); /* RtlGenRandom */
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE bytes, SIZE_T count)
{
    while (count > 0) {
        ULONG some = count > 65536 ? 65536 : (ULONG)count;
        if (!SystemFunction036(bytes, some)) return FALSE;
        bytes += some;
        count -= some;
    }
    return TRUE;
}
C
    x86_64-w64-mingw32-gcc -O2 -shared -s -o "$library" "$WINEPREFIX/prng.c" -ladvapi32
}

# Wine's own drive C, which says it is Windows 10 and needs neither .NET nor a browser. Wine's server has descriptors
# for all programs together, as many as the first command of a prefix may have.
prefix() {
    [ ! -e "$WINEPREFIX/ready" ] || return 0
    rm -rf "$WINEPREFIX"
    mkdir -p "$WINEPREFIX"
    ulimit -n "$(ulimit -Hn)" || true
    WINEDLLOVERRIDES='mscoree,mshtml=' wine wineboot --init >/dev/null 2>&1
    wineserver -w
    random_numbers
    wine reg add 'HKEY_CURRENT_USER\Software\Wine' /v Version /d win10 /f >/dev/null 2>&1
    wineserver -k || true
    wineserver -w || true
    touch "$WINEPREFIX/ready"
}

[ $# -gt 0 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }
for target in "$@"; do
    install "$target"
    standard_library "$target"
    [ "$target" != x86_64-pc-windows-gnu ] || prefix
done

#!/usr/bin/env bash
# Prepares a Debian or Ubuntu machine to build and run programs for other targets.
#
#   setup.sh TARGET...
#
# For x86_64-pc-windows-gnu, x86_64-unknown-linux-musl and aarch64-unknown-linux-gnu, installs what is needed to link
# and run programs (mingw and Wine, the musl C library, an emulator). For all other targets, installs only the standard
# library, for cargo check and clippy. Packages that are already installed are not touched, so repeated runs are fast.
# Exits with 1 if a target cannot be installed on this machine.
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

# Programs that a target needs. If they are present, no packages are installed.
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

# Since 1.78, Rust's standard library gets random numbers from a DLL that Wine has provided since 8.13. Debian 12 has
# Wine 8.0, so build the DLL if it is missing.
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

# Creates a Wine prefix that reports Windows 10, without .NET and a browser. wineserver holds the file descriptors of
# all programs and inherits its limit from the first command that runs in the prefix, so raise the limit first.
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

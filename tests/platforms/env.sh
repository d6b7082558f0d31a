# Sourced by the scripts here, and by who works on another platform by hand: how cargo links programs for it and runs them.
#   . tests/platforms/env.sh && cargo test --target x86_64-pc-windows-gnu
platforms=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Wine keeps what it takes for drive C there; it can be deleted at any time.
export WINEPREFIX=${SERVERD_WINE:-$(dirname "$(dirname "$platforms")")/target/wine}
export WINEDEBUG=-all WINEARCH=win64 DISPLAY='' WAYLAND_DISPLAY=''
export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER=x86_64-w64-mingw32-gcc
export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER=$platforms/wine-run
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$platforms/qemu-aarch64-run

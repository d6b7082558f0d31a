# Configures cargo to link and run programs for other platforms. Sourced by the scripts here; can also be used by hand:
#   . tests/platforms/env.sh && cargo test --target x86_64-pc-windows-gnu
platforms=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Wine's prefix, which contains its drive C; can be deleted at any time.
export WINEPREFIX=${SERVERD_WINE:-$(dirname "$(dirname "$platforms")")/target/wine}
export WINEDEBUG=-all WINEARCH=win64 DISPLAY='' WAYLAND_DISPLAY=''
export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER=x86_64-w64-mingw32-gcc
export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER=$platforms/wine-run
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$platforms/qemu-aarch64-run

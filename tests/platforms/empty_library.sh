#!/bin/sh
# Takes the place of lib.exe when nothing is linked: creates an empty library.
#
#   empty_library.sh -out:FILE ...
for argument in "$@"; do
    case $argument in
    -out:* | /out:*) : >"${argument#?out:}" ;;
    esac
done

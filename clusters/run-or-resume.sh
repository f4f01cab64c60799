#!/usr/bin/env bash
# Start a sweep, or go on with it where an earlier job has left it, so that the same job can be submitted again.
#
#     run-or-resume.sh EXPERIMENT STORAGE NAME [OPTION]...
#
# STORAGE is a folder that all machines see; the sweep is STORAGE/NAME. Options go to both commands: `--address auto`.
set -euo pipefail

if (($# < 3)); then
    echo "expected: run-or-resume.sh EXPERIMENT STORAGE NAME [OPTION]..., got $# arguments" >&2
    exit 2
fi
experiment=$1 storage=$2 name=$3
shift 3

if [[ -e $storage/$name ]]; then
    exec prunesearch resume "$storage/$name" --plain "$@"
fi
exec prunesearch run "$experiment" --set "storage=$storage" --set "name=$name" --plain "$@"

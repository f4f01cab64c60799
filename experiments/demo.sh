#!/usr/bin/env bash
# From images to a smaller network: baseline, sweep, front, policy, pruned network. Keeps earlier runs.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"

number=1
while [ -e "demo/digits-$number" ]; do number=$((number + 1)); done
sweep="demo/digits-$number"
policy="demo/policy-$number.json"
pruned="demo/pruned-$number"

step() {
  printf '\n$'
  printf ' %s' "$@"
  printf '\n'
  ".venv/bin/$@"
}

step prunesearch run experiments/digits.yaml --set storage=demo --set "name=digits-$number"
step prunesearch best "$sweep" --max-macs 50% --output "$policy"
step prunesearch apply "$policy" "$sweep" --output "$pruned"
printf '\nLook at the runs in MLflow:  .venv/bin/prunesearch ui %s\n' "$sweep"
printf 'Look at the front:           %s/report.html\n' "$sweep"

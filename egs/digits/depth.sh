#!/usr/bin/env bash
# Bidirectional LSTMs of 1 to 8 layers, layer by layer, and in pieces: the table "Depth" of README.md.
# egs/digits/depth.sh DATA [NAME ...]      DATA is what run.sh prepared (.../data); default: all names
set -euo pipefail
data=$1 here=$(dirname "${BASH_SOURCE[0]}") e=network.encoder
names=("${@:2}")
((${#names[@]})) || names=(1 2 4 6 8 6-by-layer 8-by-layer 4-pieces 4-pieces-context)
declare -A settings=(
  [6-by-layer]="$e.layers=6 $e.layer_steps=100" [8-by-layer]="$e.layers=8 $e.layer_steps=100"
  [4-pieces]="$e.layers=4 $e.piece=25" [4-pieces-context]="$e.layers=4 $e.piece=25 $e.piece_context=12"
)
for name in "${names[@]}"; do
  OMP_NUM_THREADS=1 "$here/run.sh" --data "$data" --exp "exp/depth/$name" --recipe bidirectional --epochs 24 \
    --set "$e.hidden=128 ${settings[$name]:-$e.layers=$name}" --stage 2 --stop-stage 3
done

#!/usr/bin/env bash
# The recurrent recipe with every mixer at about 3 million parameters: the table "Mixers" of README.md.
# egs/digits/mixers.sh DATA [NAME ...]      DATA is what run.sh prepared (.../data); default: all names
set -euo pipefail
data=$1 here=$(dirname "${BASH_SOURCE[0]}") e=network.encoder
declare -A widths=(
  [aaren]=208
  [delta_product]=168
  [gateloop]=176
  [gru]=176
  [hgrn]=176
  [hgrn2]=192
  [local_attention]=200
  [lru]=176
  [lstm]=160
  [mamba2]=176
  [min_gru]=200
  [min_lstm]=192
  [retention]=184
  [rg_lru]=168
  [rwkv]=176
  [slstm]=176
)
names=("${@:2}")
((${#names[@]})) || mapfile -t names < <(printf '%s\n' "${!widths[@]}" griffin | sort)
for name in "${names[@]}"; do
  recipe=recurrent set="$e.mixer.kind=$name $e.dim=${widths[$name]}"
  if [[ $name == griffin ]]; then recipe=griffin set=""; fi
  export OMP_NUM_THREADS=1
  "$here/run.sh" --data "$data" --exp "exp/mixers/$name" --recipe $recipe --set "$set" --stage 2 --stop-stage 4
  asr decode "exp/mixers/$name" --data long --stream --threads 1
done

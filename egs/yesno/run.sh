#!/usr/bin/env bash
# Hebrew yes and no: prepare, train, decode, measure live.
# egs/yesno/run.sh [--data-dir DIR] [--recipe streaming|bidirectional|ctc] [--exp DIR] [--epochs N]
#                   [--stage N] [--stop-stage N]
set -euo pipefail
stage=1 stop_stage=4 data_dir="" recipe=streaming exp="" data="" epochs=""
here=$(dirname "${BASH_SOURCE[0]}")
source "$here/../options.sh"
exp=${exp:-exp/yesno-$recipe}
data=${data:-$exp/data}
run() { ((stage <= $1 && $1 <= stop_stage)); }
live() { run "$1" && [[ $recipe != bidirectional ]]; }

if run 1; then python "$here/prepare.py" "$data" ${data_dir:+--data-dir "$data_dir"}; fi
if run 2 && [[ -f $exp/recipe.yaml ]]; then asr train --resume --exp "$exp" --profile
elif run 2; then
  asr train "$here/lstm.py:$recipe" --data "$data" --exp "$exp" --profile ${epochs:+--set training.epochs="$epochs"}
fi
if run 3; then asr decode "$exp" --data test; fi
if live 4; then asr decode "$exp" --data test --stream --threads 1; fi

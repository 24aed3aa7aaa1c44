#!/usr/bin/env bash
# Digit strings: prepare, train, decode, measure live, transcribe one recording live.
# egs/digits/run.sh [--data-dir DIR] [--split official|speakers] [--recipe NAME]
#                   [--exp DIR] [--epochs N] [--set "KEY=VALUE ..."] [--stage N] [--stop-stage N]
# NAME is a function of lstm.py (streaming, bidirectional, ctc), of attention.py (conformer, transformer, funnel, ...)
# or of recurrent.py (recurrent)
set -euo pipefail
stage=1 stop_stage=5 data_dir="" split=official recipe=streaming exp="" data="" epochs="" set=""
here=$(dirname "${BASH_SOURCE[0]}")
source "$here/../options.sh"
exp=${exp:-exp/digits-$split-$recipe}
data=${data:-$exp/data}
run() { ((stage <= $1 && $1 <= stop_stage)); }
live() { run "$1" && [[ $recipe != bidirectional && $recipe != funnel* ]]; }

file=$(grep -l "^def $recipe()" "$here"/{lstm,attention,recurrent}.py) || { echo "run.sh: no recipe $recipe in lstm.py, attention.py or recurrent.py" >&2; exit 2; }

if run 1; then python "$here/prepare.py" "$data" ${data_dir:+--data-dir "$data_dir"} --split "$split"; fi
if run 2 && [[ -f $exp/recipe.yaml ]]; then asr train --resume --exp "$exp" --profile
elif run 2; then
  asr train "$file:$recipe" --data "$data" --exp "$exp" --profile ${epochs:+--set training.epochs="$epochs"} \
    ${set:+$(printf -- '--set %s ' $set)}
fi
if run 3; then asr decode "$exp" --data test; fi
if live 4; then asr decode "$exp" --data test --stream --threads 1; fi
if live 5; then
  recording=$(find "$data/strings/test" -type f -size +36k | sort | sed -n 1p)
  asr transcribe "$recording" --model "$exp" --stream --realtime --picture "$exp/live.png"
fi

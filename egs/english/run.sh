#!/usr/bin/env bash
# English: prepare, read sentences synthetically, train on both, go on with people alone, decode, make it small.
# egs/english/run.sh [--data-dir DIR] [--exp DIR] [--data DIR] [--hours H] [--epochs N] [--people-epochs N]
#                    [--processes N] [--set "KEY=VALUE ..."] [--stage N] [--stop-stage N]
# --hours of synthetic speech, 0 for none (flite, piper-tts, WordNet's files: see synthesise.py and --wordnet DIR)
set -euo pipefail
stage=1 stop_stage=6 data_dir="" exp=exp/english data="" hours=4.4 epochs=12 people_epochs=10 processes=2 set=""
wordnet=/usr/share/wordnet
here=$(dirname "${BASH_SOURCE[0]}")
source "$here/../options.sh"
data=${data:-$exp/data}
synthetic=$exp/synthetic
run() { ((stage <= $1 && $1 <= stop_stage)); }
# One thread for each process: two processes are faster than one with two threads.
train() { OMP_NUM_THREADS=1 torchrun --nproc-per-node "$processes" -m asr "$@"; }

if run 1; then python "$here/prepare.py" "$data" ${data_dir:+--data-dir "$data_dir"}; fi
corpora=(--data "$data") mixing=()
if [[ $hours != 0 ]]; then
  if run 2; then
    python "$here/synthesise.py" "$synthetic" --text "$data/text/lm.txt" --wordnet "$wordnet" --keep-out "$data" --hours "$hours"
  fi
  corpora+=(--data "$synthetic") mixing=(--set "batches.mixing.weights=[65,35]")
fi
if run 3 && [[ -f $exp/mixed/recipe.yaml ]]; then train train --resume --exp "$exp/mixed" --profile
elif run 3; then
  train train "$here/conformer.py:streaming" "${corpora[@]}" --exp "$exp/mixed" --profile "${mixing[@]}" \
    --set "augment.noise.source=$data/noise.jsonl.gz" --set training.epochs="$epochs" ${set:+$(printf -- '--set %s ' $set)}
fi
if run 4 && [[ -f $exp/people/recipe.yaml ]]; then train train --resume --exp "$exp/people" --profile
elif run 4; then
  train finetune "$exp/mixed" --data "$data" --exp "$exp/people" --set training.epochs="$people_epochs"
fi
if run 5; then asr export "$exp/people" "$exp/small" --weights int8; fi
if run 6; then
  for part in test-so762-adults test-so762-children test-kathleen; do
    asr decode "$exp/small" --data "$data/$part.jsonl.gz" --stream --threads 1
  done
fi

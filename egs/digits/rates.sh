#!/usr/bin/env bash
# Frame rates of 40 to 320 ms, transducer and CTC: the table "Frame rates" of README.md.
# egs/digits/rates.sh DATA [EPOCHS]      DATA is what run.sh prepared (.../data)
set -euo pipefail
data=$1 epochs=${2:-15} here=$(dirname "${BASH_SOURCE[0]}")
for pool_after in 2,3,4 2,3 2 ""; do
  for recipe in funnel_ctc funnel; do
    for kind in word char; do
      # With letters CTC has too few frames beyond 40 ms.
      if [[ $recipe$kind == funnel_ctcchar && $pool_after ]]; then continue; fi
      OMP_NUM_THREADS=1 "$here/run.sh" --data "$data" --exp "exp/rates/$recipe-$kind-$pool_after" --recipe $recipe \
        --epochs "$epochs" --set "tokenizer.kind=$kind network.encoder.pool_after=[$pool_after]" --stage 2 --stop-stage 3
    done
  done
done

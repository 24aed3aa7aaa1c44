#!/usr/bin/env bash
# The streaming recipe with every criterion and way to train it: the table "Criteria" of README.md.
# egs/digits/losses.sh DATA [NAME ...]      DATA is what run.sh prepared (.../data); default: all names
set -euo pipefail
data=$1 here=$(dirname "${BASH_SOURCE[0]}") t=network.loss.transducer
# Where every label takes a frame the shortest "three" has too few; silence around strings gives them.
edges="batches.concatenate.edge_s=[0.05,0.3]"
# Two views that differ: masks of up to 0.12 s and 8 of 40 bins, over 2.5 times the usual share of the time.
masks="specaugment.probability=0.9 specaugment.time_masks=5 specaugment.max_time_width=12 specaugment.max_time_fraction=0.375 specaugment.max_freq_width=8"
# A predictor that remembers all labels, for its twin.
lstm='network.predictor={"kind":"lstm","dim":128}'
names=("${@:2}")
((${#names[@]})) || names=(full fused pruned max max-after-sum monotonic ctc-topology tdt multi-blank without-ctc fastemit delay-penalty ctc-warm-start cr-ctc ema lstm-predictor twin)
declare -A settings=(
  [full]="$t.kind=full" [fused]="" [pruned]="$t.kind=pruned" [max]="$t.criterion=max" [max-after-sum]="$t.criterion=max $t.max_after_steps=900"
  [monotonic]="$t.topology.name=monotonic $edges" [ctc-topology]="$t.topology.name=ctc $edges" [tdt]="$t.topology.name=tdt"
  [multi-blank]="$t.topology.name=multi_blank" [without-ctc]="network.loss.ctc.weight=0"
  [fastemit]="$t.fastemit=0.01" [delay-penalty]="$t.delay_penalty=0.001"
  [ctc-warm-start]="$t.after_steps=300" [cr-ctc]="network.loss.ctc.consistency=0.1 $masks" [ema]="training.ema=0.999"
  [lstm-predictor]="$lstm" [twin]="$lstm network.loss.twin.weight=0.1"
)
for name in "${names[@]}"; do
  OMP_NUM_THREADS=1 "$here/run.sh" --data "$data" --exp "exp/losses/$name" --set "${settings[$name]}" --stage 2 --stop-stage 4
done

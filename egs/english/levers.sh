#!/usr/bin/env bash
# What each way to train is worth: short trainings from one beginning, the table "Levers" of README.md.
# egs/english/levers.sh EXP [NAME ...]     EXP is that of run.sh --whisper, with data, synthetic and head; default: all names
# pruned has weights of its own, so it begins with EXP/head-pruned: as head, from whisper.py --set network.loss.transducer.kind=pruned
set -euo pipefail
exp=$1
names=("${@:2}")
((${#names[@]})) || names=(base twice synthetic views no-specaugment no-speed room pruned without-ctc curriculum)
# twice, synthetic: two epochs of people, and as many steps of people and synthetic speech. without-ctc: fine-tuning keeps heads,
# but this one counts for nothing.
declare -A settings=(
  [base]="" [twice]="training.epochs=2" [synthetic]="batches.mixing.weights=[65,35]" [views]="network.loss.ctc.consistency=0.2"
  [no-specaugment]="specaugment.probability=0" [no-speed]="augment.speed.factors=[1.0] augment.speed.spread=0"
  [room]="augment.noise.probability=0.5 augment.reverb.probability=0.3 augment.equalizer.probability=0.3"
  [pruned]="network.loss.transducer.kind=pruned" [without-ctc]="network.loss.ctc.weight=1e-9" [curriculum]="batches.curriculum_epochs=1"
)
for name in "${names[@]}"; do
  if [[ ! -v settings[$name] ]]; then echo "levers.sh: unknown name $name, expected ${!settings[*]}" >&2; exit 2; fi
  corpora=(--data "$exp/data")
  if [[ $name == synthetic ]]; then corpora+=(--data "$exp/synthetic"); fi
  head=$exp/head
  if [[ $name == pruned ]]; then head+=-pruned; fi
  own=(${settings[$name]:+$(printf -- '--set %s ' ${settings[$name]})})
  OMP_NUM_THREADS=1 asr finetune "$head" "${corpora[@]}" --exp "$exp/levers/$name" --set training.epochs=1 \
    --set optimizer.lr=1e-3 --set "optimizer.rates={encoder: 0.15}" --set optimizer.warmup_steps=100 --set training.ema=0.998 \
    --set augment.noise.source="$exp/data/noise.jsonl.gz" "${own[@]}"
done

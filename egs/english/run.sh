#!/usr/bin/env bash
# English: prepare, read sentences synthetically, train on both, go part of the way back to Whisper and on again, or on
# with people alone, add a language model, decode.
# egs/english/run.sh [--data-dir DIR] [--exp DIR] [--data DIR] [--whisper DIR] [--hours H] [--epochs N]
#                    [--views-epochs N] [--rounds N] [--people-epochs N] [--processes N] [--set "KEY=VALUE ..."]
#                    [--stage N] [--stop-stage N]
# --whisper: weights of Whisper tiny.en to begin with (whisper.py); without, a Conformer from nothing (conformer.py)
# --views-epochs: in two views (--whisper); --rounds: part of the way back, then an epoch (--whisper);
# --people-epochs: with people alone at the end, by default 10 without --whisper; 0 for none
# --hours of synthetic speech, 0 for none (flite, piper-tts, WordNet's files: see synthesise.py and --wordnet DIR)
# --chitchat FILE: more text for the language model (lm.py)
set -euo pipefail
stage=1 stop_stage=7 data_dir="" exp=exp/english data="" hours=4.4 epochs=12 views_epochs=5 rounds=1 people_epochs="" processes=2 set=""
wordnet=/usr/share/wordnet chitchat="" whisper=""
here=$(dirname "${BASH_SOURCE[0]}")
source "$here/../options.sh"
data=${data:-$exp/data}
people_epochs=${people_epochs:-$([[ -n $whisper || -d $exp/begin ]] && echo 0 || echo 10)}
returned=$( ((rounds == 0)) || echo "back-$((rounds + 1))" )
synthetic=$exp/synthetic
run() { ((stage <= $1 && $1 <= stop_stage)); }
# One thread for each process: two processes are faster than one with two threads.
train() { OMP_NUM_THREADS=1 torchrun --nproc-per-node "$processes" -m asr "$@" --profile; }
# step EXP ARGUMENTS...: a training, or what is left of it.
step() {
  if [[ -f $1/recipe.yaml ]]; then train train --resume --exp "$1"; else train "${@:2}" --exp "$1"; fi
}

if run 1; then python "$here/prepare.py" "$data" ${data_dir:+--data-dir "$data_dir"}; fi
corpora=(--data "$data") noise=(--set "augment.noise.source=$data/noise.jsonl.gz")
if [[ $hours != 0 ]]; then
  if run 2; then
    python "$here/synthesise.py" "$synthetic" --text "$data/text/lm.txt" --wordnet "$wordnet" --keep-out "$data" --hours "$hours"
  fi
  corpora+=(--data "$synthetic" --set "batches.mixing.weights=[65,35]")
fi
own=(${set:+$(printf -- '--set %s ' $set)})
# Every utterance twice, each time in a context of its own (CR-CTC): what hears less learns from what hears more.
views=(--set augment.equalizer.probability=0.3 --set augment.reverb.probability=0.1 --set network.loss.ctc.consistency=0.2
  --set "network.encoder.contexts=[{chunk: 16, left_chunks: 16}, {chunk: 16, left_chunks: 16}, {chunk: 24, left_chunks: 11}, {chunk: null, left_chunks: null}]")
# newest NAME...: the first of these models that is there.
newest() { for name; do [[ ! -f $exp/$name/model.safetensors ]] || { echo "$exp/$name"; return; }; done; }
# back MODEL SHARE NAME: the model, its encoder SHARE % of the way back to Whisper's.
back() {
  [[ -f $exp/$3/model.safetensors ]] || asr average "$1:$((100 - $2))" "$exp/begin:$2" --part encoder --out "$exp/$3"
}
if run 3 && [[ -n $whisper ]]; then
  [[ -d $exp/begin ]] || python "$here/whisper.py" "$whisper" "$exp/begin"
  # First the new parts, almost alone: what they ask for before they know anything is of no use to the encoder.
  step "$exp/head" finetune "$exp/begin" --data "$data" "${noise[@]}" --set training.epochs=2 \
    --set optimizer.lr=2e-3 --set "optimizer.rates={encoder: 0.02}" "${own[@]}"
  step "$exp/mixed" finetune "$exp/head" "${corpora[@]}" "${noise[@]}" --set training.epochs="$epochs" \
    --set optimizer.lr=1e-3 --set "optimizer.rates={encoder: 0.15}" --set optimizer.warmup_steps=200 "${own[@]}"
  ((views_epochs == 0)) || step "$exp/views" finetune "$exp/mixed" "${corpora[@]}" "${noise[@]}" --set training.epochs="$views_epochs" \
    --set optimizer.lr=8e-4 --set "optimizer.rates={encoder: 0.2}" --set optimizer.warmup_steps=200 "${views[@]}" "${own[@]}"
  # What Whisper's encoder knew of other voices is forgotten on the way, and most of it comes back part of the way back.
  last=$(newest views mixed) share=40
  for ((round = 1; round <= rounds; round++)); do
    back "$last" "$share" "back-$round"
    step "$exp/round-$round" finetune "$exp/back-$round" "${corpora[@]}" "${noise[@]}" --set training.epochs=1 \
      --set optimizer.lr=5e-4 --set "optimizer.rates={encoder: 0.1}" --set optimizer.warmup_steps=50 "${views[@]}" "${own[@]}"
    last=$exp/round-$round share=20
  done
  ((rounds == 0)) || back "$last" "$share" "$returned"
elif run 3; then
  step "$exp/mixed" train "$here/conformer.py:streaming" "${corpora[@]}" "${noise[@]}" --set training.epochs="$epochs" "${own[@]}"
fi
if run 4 && ((people_epochs)); then
  step "$exp/people" finetune "$(newest $returned views mixed)" --data "$data" "${noise[@]}" --set training.epochs="$people_epochs"
fi
if run 5; then
  python "$here/lm.py" "$data" "$exp/lm" $([[ -d $wordnet ]] && echo --wordnet "$wordnet") ${chitchat:+--chitchat "$chitchat"}
  asr lm train "$exp/lm/lm-text.txt" --out "$exp/lm/small.arpa" --order 3 --prune 0,1,2 --max-words 30000
fi
if run 6; then
  # Both networks were trained to hear whole utterances as well: their final results are those.
  trained=$(newest $( ((people_epochs == 0)) || echo people ) $returned views mixed)
  asr export "$trained" "$exp/small" --weights int8 --beam 12 --search finals=whole --search margin=6 --lm "$exp/lm/small.arpa" \
    --search fusion.lm_weight=0.7 --search fusion.internal_lm_weight=0.2 --search fusion.reward=0.5 \
    --search fusion.words.unknown=-12 --search fusion.words.penalty=-2
fi
if run 7; then
  for part in test-so762-adults test-so762-children test-kathleen; do
    asr decode "$exp/small" --data "$data/$part.jsonl.gz" --stream --threads 1
  done
fi

#!/usr/bin/env bash
# The training runs behind docs/evidence.md, one after another, each in OUTPUT/ROW-seedN:
#
#   bash tools/evidence.sh DATA OUTPUT [EPOCHS]
#   ROWS="resnet20 dynamic" SEEDS=0 bash tools/evidence.sh cifar10 work_dirs/evidence 10
#
# DATA has train/ and val/, each with a folder of CIFAR-10's images per class. EPOCHS is 10 unless
# given, SEEDS "0 1", ROWS all of the table. Runs that are complete are skipped, others go on where
# they stopped. tools/plot_runs.py draws them.
set -euo pipefail

# Row, model, the model's arguments.
table="
resnet20               dgnet_cifar_r20                edges=chain
dynamic                dgnet_cifar_r20                edges=dynamic
static                 dgnet_cifar_r20                edges=static
er                     dgnet_cifar_r20                edges=er
ba                     dgnet_cifar_r20                edges=ba
ws                     dgnet_cifar_r20                edges=ws
dynamic_open           dgnet_cifar_r20                router_bias=3 side_bias=3
dynamic_neutral        dgnet_cifar_r20                router_bias=0 side_bias=0
dynamic_closed         dgnet_cifar_r20                router_bias=-3 side_bias=-3
aognet_full            aognet_cifar_s_full
aognet_pruned          aognet_cifar_s_pruned
aognet_pruned_lateral  aognet_cifar_s_pruned_lateral
"

if (($# < 2 || $# > 3)); then
    echo "evidence.sh: it takes DATA OUTPUT [EPOCHS], not $# arguments" >&2
    exit 2
fi
data=$1 output=$2 epochs=${3:-10}
for split in train val; do
    if [[ ! -d $data/$split ]]; then
        echo "evidence.sh: there is no folder $data/$split" >&2
        exit 2
    fi
done
root=$(cd "$(dirname "$0")/.." && pwd)
python=${VENV:-$root/.venv}/bin/python
names=$(awk 'NF { print $1 }' <<<"$table")
for row in ${ROWS:-}; do
    if ! grep -qxF -- "$row" <<<"$names"; then
        echo "evidence.sh: there is no row $row; allowed are" $names >&2
        exit 2
    fi
done

failed=()
for seed in ${SEEDS:-0 1}; do
    # Read by another descriptor: a run must not take the table as its input.
    while read -r row model kwargs <&3; do
        [[ -n $row && " ${ROWS:-$row} " == *" $row "* ]] || continue
        run=$output/$row-seed$seed
        [[ ! -f $run/metrics.jsonl || $(wc -l <"$run/metrics.jsonl") -lt $epochs ]] || continue
        options=(--model "$model" --data "$data" --output "$run" --epochs "$epochs" --seed "$seed")
        options+=(--amp bf16 --workers 0 --cache --resume)
        [[ -z $kwargs ]] || options+=(--model-kwargs $kwargs)
        echo "== $row, seed $seed"
        "$python" "$root/tools/train_classifier.py" "${options[@]}" || failed+=("$row-seed$seed")
    done 3<<<"$table"
done
if ((${#failed[@]})); then
    echo "evidence.sh: these runs failed: ${failed[*]}" >&2
    exit 1
fi

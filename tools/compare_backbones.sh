#!/usr/bin/env bash
# The training runs behind docs/comparison.md, one after another, each in OUTPUT/ROW-seedN:
#
#   bash tools/compare_backbones.sh OUTPUT [KEY VALUE ...]
#   ROWS="resnet18 aognet_4m" SEEDS=3 bash tools/compare_backbones.sh work_dirs/compare
#
# One small Mask R-CNN on the demo's drawn images, from scratch, with different backbones. Runs that
# are complete are skipped, others go on from their last checkpoint. After every run,
# OUTPUT/comparison.md, comparison.json and curves.png describe what is there. SEEDS is "0 1 2" unless
# given, ROWS all of the table. LAUNCH is put before each command that computes, as in
# LAUNCH="nice -n 19". KEY VALUE change the config of every run: all runs in OUTPUT must have the
# same schedule.
set -euo pipefail

# Row, config, changes to it. The rows of DG-Net are those of the paper's Table 6.
table="
resnet18          demo_mask_rcnn_r18_fpn        MODEL.RESNETS.DEPTH 18
resnet50          demo_mask_rcnn_r18_fpn        MODEL.RESNETS.DEPTH 50 MODEL.RESNETS.RES2_OUT_CHANNELS 256
aognet_4m         demo_mask_rcnn_aognet4m_fpn   MODEL.AOGNET.VARIANT aognet_4m
dgnet_r18_chain   demo_mask_rcnn_dgnet_r18_fpn  MODEL.DGNET.EDGES chain
dgnet_r18_static  demo_mask_rcnn_dgnet_r18_fpn  MODEL.DGNET.EDGES static
dgnet_r18_dynamic demo_mask_rcnn_dgnet_r18_fpn  MODEL.DGNET.EDGES dynamic
"
schedule=(
    SOLVER.IMS_PER_BATCH 4 SOLVER.BASE_LR 0.02 SOLVER.MAX_ITER 200 SOLVER.STEPS "(150, 180)"
    SOLVER.CHECKPOINT_PERIOD 50 TEST.EVAL_PERIOD 50 TEST.PICTURES.NUM 0
)

if (($# < 1 || $# % 2 == 0)); then
    echo "compare_backbones.sh: it takes OUTPUT [KEY VALUE ...], not $# arguments" >&2
    exit 2
fi
output=$1
shift
root=$(cd "$(dirname "$0")/.." && pwd)
python=${VENV:-$root/.venv}/bin/python
names=$(awk 'NF { print $1 }' <<<"$table")
for row in ${ROWS:-}; do
    if ! grep -qxF -- "$row" <<<"$names"; then
        echo "compare_backbones.sh: there is no row $row; allowed are" $names >&2
        exit 2
    fi
done
for seed in ${SEEDS:-}; do
    if [[ ! $seed =~ ^[0-9]+$ ]]; then
        echo "compare_backbones.sh: a seed is $seed; allowed are whole numbers from 0" >&2
        exit 2
    fi
done
mkdir -p "$output"
export DETECTRON2_DATASETS=$output/datasets
# The annotations of val are written last.
[[ -f $DETECTRON2_DATASETS/gram_demo/val.json ]] ||
    "$python" "$root/tools/make_demo_dataset.py" "$DETECTRON2_DATASETS/gram_demo"

failed=()
for seed in ${SEEDS:-0 1 2}; do
    # Read by another descriptor: a run must not take the table as its input.
    while read -r row config changes <&3; do
        [[ -n $row && " ${ROWS:-$row} " == *" $row "* ]] || continue
        run=$output/$row-seed$seed
        [[ ! -f $run/complete ]] || continue
        echo "== $row, seed $seed"
        if ${LAUNCH:-} "$python" "$root/tools/train_net.py" --config "$config" --resume \
            OUTPUT_DIR "$run" SEED "$seed" $changes "${schedule[@]}" "$@"; then
            touch "$run/complete"
            rm -f "$run"/model_0*.pth  # model_final.pth is enough
            ${LAUNCH:-} "$python" "$root/tools/summarize_comparison.py" "$output"
        else
            failed+=("$row-seed$seed")
        fi
    done 3<<<"$table"
done
if ((${#failed[@]})); then
    echo "compare_backbones.sh: these runs failed: ${failed[*]}" >&2
    exit 1
fi

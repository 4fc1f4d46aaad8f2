"""Fine-tunes any timm model on a folder of images: the same as `vis-accel finetune`, as a script that accelerate can launch.

    python vit_models/finetune.py --model timm/levit_128s --data DIR --size 64 --random-weights --epochs 3 --output runs/levit
    accelerate launch --num_processes 2 vit_models/finetune.py --model ...

`--help` lists what there is; finetune_edge.py runs it on six edge networks.
"""

from __future__ import annotations

import sys

from vis_accel.cli import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])

"""Fills the store of generated images (`vis_accel.gallery`) ahead of time, in as many processes as there are cores.

python eval/images.py --model cifar10-dit --to 5000                                       the stock pipeline's own sampler
python eval/images.py --model cifar10-dit --recipe 'dpm(steps=10)' --from 5000 --to 10000
"""

from __future__ import annotations

import argparse

from vis_accel.gallery import Gallery

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--recipe", action="append", default=[])
    parser.add_argument("--stock", type=int, help="which stock row, from 0; default: 0 if there is no recipe")
    parser.add_argument("--from", dest="start", type=int, default=0)
    parser.add_argument("--to", type=int, required=True)
    given = parser.parse_args()
    gallery = Gallery(given.model, tuple(given.recipe))
    wanted = gallery.stage.candidates
    if given.stock is not None or not given.recipe:
        wanted = (gallery.stage.baselines[given.stock or 0], *wanted)
    for one in wanted:
        gallery.images(one, given.to, given.start)

"""Measuring what a speed-up cost: image quality, classifier accuracy, speed and work, each number with its interval.

    interval.py         what a measured number is: value, low, high, n
    features.py         images -> features of a named network
    fid.py              Frechet distance, its jackknife interval, the paired difference of two candidates
    reference.py        the statistics of the real images, in a file that knows which network made them
    kid.py              kernel distance: unbiased, so it also speaks for a few hundred images
    coverage.py         precision and recall, density and coverage
    paired.py           PSNR, SSIM, mean difference (and LPIPS) between two images of the same seed
    noninferiority.py   "same quality": the one rule that may say so
    accuracy.py         top-1, agreement of two classifiers, agreement of generated images with their class
    speed.py            interleaved timing with paired ratios
    counters.py         calls, rows, multiply-accumulates, peak memory

The modules are imported one by one (`from vis_accel.eval.fid import Statistics`); this package itself imports nothing.
"""

"""The phi functions of exponential integrators.

phi_k(z) = sum_{j>=0} z^j / (j + k)!:  phi_0 = e^z, phi_1 = (e^z - 1) / z, phi_2 = (e^z - 1 - z) / z^2, ...
(Hochbruck and Ostermann 2010, Exponential integrators, Acta Numerica 19, eq. 2.10.) With lambda = -log sigma and h = lambda_t - lambda_s,
one step of the probability-flow equation s -> t is, for the denoised image D and for the noise e = (x - D) / sigma as functions of lambda,
    x_t = (t/s) x_s + h sum_{k>=1} phi_k(-h) h^(k-1) D^(k-1)(lambda_s)        data prediction
    x_t = x_s - t h sum_{k>=1} phi_k(h) h^(k-1) e^(k-1)(lambda_s)             noise prediction
(Lu et al. 2022, arXiv:2211.01095, eq. 8 and 9, and arXiv:2206.00927, eq. 3.4, with data scale 1).
"""

from __future__ import annotations

import math


def phi(k: int, z: float) -> float:
    """phi_k(z), to rounding for every z: the closed form loses all digits near 0, the series converges slowly far from it."""
    if abs(z) < 1:
        term = total = 1 / math.factorial(k)
        for j in range(1, 20):  # 1 / 20! < 1e-18
            term *= z / (j + k)
            total += term
        return total
    value = math.exp(z)
    for j in range(k):
        value = (value - 1 / math.factorial(j)) / z
    return value

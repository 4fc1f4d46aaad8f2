"""Progressive distillation: a student whose one step is two of its teacher's, again and again.

Paper    Salimans and Ho 2022, arXiv:2202.00512, Algorithm 2, sec. 4 and appendix G.
Target   with two DDIM steps of the teacher from x at sigma over the middle to x'' at sigma'', the D that takes x to x'' in one:
             x'' = D + (sigma'' / sigma) (x - D)      so      D = (x'' - (sigma'' / sigma) x) / (1 - sigma'' / sigma),
         which the paper has in z = alpha x. At sigma'' = 0 it is x'' itself.
Loss     max(1, 1 / sigma^2) |D_student - D|^2, the paper's truncated signal-to-noise weight; D from v or from the image, not from the
         noise, which says nothing of the image where there is no signal. A teacher that predicts noise is converted first: its student
         learns v at the teacher's own steps.
Guided   Li et al. 2023, arXiv:2306.00980 (SnapFusion), sec. 4.2: with some probability both sides are guided with one random w, so that a
         student that is guided later was trained for it.
Steps    N of the student are the trailing times T, T - T/N, ...; those between are the teacher's.
"""

from __future__ import annotations

from torch import Tensor

from vis_accel.distillation.space import along
from vis_accel.errors import UsageError

__all__ = ["halvings", "snr_weight", "trailing_times", "two_steps"]


def halvings(teacher: int, student: int) -> tuple[int, ...]:
    """Steps of the students on the way from `teacher` steps to `student`: (8, 4) from 16 to 4.

    Raises:
        UsageError: steps that no halving leads to.
    """
    found, steps = [], teacher
    while steps > student and steps % 2 == 0:
        steps //= 2
        found.append(steps)
    if steps != student or not found:
        near = [student * 2**k for k in range(1, 5)]
        raise UsageError(
            f"Halving {teacher} steps of the teacher never gives a student of {student}.",
            hint=f"--teacher-steps {' or '.join(map(str, near))}",
        )
    return tuple(found)


def trailing_times(steps: int, times: int) -> tuple[int, ...]:
    """The network times of a run, falling: round(T - i T / steps) - 1.

    Raises:
        UsageError: more steps than times.
    """
    if not 1 <= steps <= times:
        raise UsageError(f"A run has 1 .. {times} steps on this network; got {steps}.")
    return tuple(round(times - i * (times / steps)) - 1 for i in range(steps))


def two_steps(x: Tensor, reached: Tensor, sigma: Tensor, lower: Tensor) -> Tensor:
    """The D of one DDIM step from `sigma` (B) to `lower` (B, may be 0) that takes x to `reached`."""
    ratio = along(lower / sigma, x)
    return (reached - ratio * x) / (1 - ratio)


def snr_weight(sigma: Tensor) -> Tensor:
    """max(1, 1 / sigma^2) of each row."""
    return sigma.pow(-2).clamp(min=1.0)

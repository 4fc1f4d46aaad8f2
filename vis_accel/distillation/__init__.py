"""The mathematics of step distillation: targets and losses as functions of tensors, one file for each method.

space.py         what a network's output means, a row at a time     consistency.py   one step to the end of the path
guidance.py      both halves of a guided call in one                progressive.py   two steps in one

Who trains with them is `vis_accel.students`.
"""

"""How the same computation is run: compiled, by which kernels."""

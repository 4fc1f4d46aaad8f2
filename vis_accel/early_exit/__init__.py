"""Early exit: easy images leave a vision transformer after a few blocks. Heads, criteria, thresholds; then the surgery."""

"""Methods that drop or merge tokens of a vision transformer: one file each, the mathematics first, then the surgery."""

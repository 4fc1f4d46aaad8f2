"""Precision: the same network in fewer bits."""

"""Guidance: methods that leave out the unconditional half of a guided pipeline's calls where it is not needed."""

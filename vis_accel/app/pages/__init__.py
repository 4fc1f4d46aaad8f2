"""The tabs of the demo, a file each."""

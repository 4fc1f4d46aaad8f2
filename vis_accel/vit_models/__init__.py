"""Vision transformers: what is known of timm's (view.py, attention.py), how methods run
their blocks (stream.py), and architectures timm lacks.
"""

"""Weights out: export, generate, model card."""

"""Measurements at Stable Diffusion 1.5's size with random weights: speed, agreement, operations."""

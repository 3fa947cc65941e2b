"""TFDS builders of paired skull X-rays and faces, and the rendering they share."""

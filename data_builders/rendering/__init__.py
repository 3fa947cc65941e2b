"""Rendering volumes in Hounsfield units as X-rays and as pictures of the skin."""

"""The notice on every page and picture of a reconstructed face."""

NOTICE = "A reconstructed face is a plausible hypothesis, not an identification."

"""What every page and picture says of a reconstructed face."""

NOTICE = "A reconstructed face is a plausible hypothesis, not an identification."

"""The values of a face's conditions that all data sets share."""

VIEWS = ("frontal", "lateral")
SEXES = ("female", "male")

# Minimum and maximum: years, and percent of the person's usual body mass index.
AGES = (0.0, 120.0)
BMI_CHANGES = (-60.0, 200.0)

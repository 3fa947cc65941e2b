"""The values of a face's conditions that all data sets share."""

VIEWS = ("frontal", "lateral")
SEXES = ("female", "male")

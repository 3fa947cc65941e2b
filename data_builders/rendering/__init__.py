"""From a volume in Hounsfield units to an X-ray and to a picture of its skin."""

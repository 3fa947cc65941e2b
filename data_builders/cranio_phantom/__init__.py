"""The procedural cohort: heads whose skull, tissue and traits are known exactly."""

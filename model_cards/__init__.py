"""Cards and tables written from a run's own files: a number without a JSON cannot appear."""

"""Trackers: each hands a run's metrics to one library, which is imported when the run starts."""

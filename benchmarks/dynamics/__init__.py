"""What `entropy_dynamics.py` is made of: studies, runs, measurements, statistics, page."""

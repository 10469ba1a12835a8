"""What ``gpu_day.py`` is made of: one card, everything that the goals ask for, in minutes."""

"""The parts of ``autoscaling.py``: a simulation of replicas under an autoscaler."""

"""Snapshot folders: what is on disk, whether it is whole, and how it gets into memory."""

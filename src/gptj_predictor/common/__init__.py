"""Small helpers that several rooms share; they import nothing of this package."""

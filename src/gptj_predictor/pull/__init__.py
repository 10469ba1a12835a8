"""Making a snapshot: download from the hub, convert, describe, publish."""

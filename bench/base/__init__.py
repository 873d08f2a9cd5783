"""What everything stands on: types, text, files, hashes."""

"""One file a study; `studying.py` holds what they share. Each writes a JSON and a plot."""

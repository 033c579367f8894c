"""Texts -> vectors -> a catalogue -> answers. Nothing here imports another room, so it travels with any model."""

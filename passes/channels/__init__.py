"""Removal of whole channels: which go together, which matter least, taking them out, and refitting what stays."""

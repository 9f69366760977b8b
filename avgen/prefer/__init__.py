"""Preferences: pairs of clips of one prompt of which one is better, mined from scores or said by people."""

"""Comparing ways of pre-training: paired runs of equal budget, their differences, and a report of what they show."""

"""Plots of the figures that are kept, for documentation."""

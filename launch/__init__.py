"""Sweeps: many trials of one experiment file, here or on a cluster. See docs/launch.md."""

"""Doubles that ship with the package: a virtual clock, and a file system that loses what wasn't synced."""

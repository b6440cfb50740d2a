"""Suites, preflight, and the order of the stages: what one command does."""

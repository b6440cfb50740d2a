"""The command line: one file a verb group, no logic of its own, no heavy import at start-up."""

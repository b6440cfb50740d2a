"""Labels of the 14 findings, read off report text by rules."""

"""From CSV files to tables: prompts with labels, and a user's own images."""

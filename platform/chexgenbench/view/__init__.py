"""The local explorer: runs, images, questions in SQL and progress, in the user's own browser."""

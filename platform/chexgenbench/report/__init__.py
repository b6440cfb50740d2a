"""What a person looks at when a run ends: the leaderboard as text, and one HTML page."""

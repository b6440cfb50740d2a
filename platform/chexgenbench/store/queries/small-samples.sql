-- Which numbers should not be quoted?
SELECT model, metric, encoder, subset, value, n_real, n_fake, warning
FROM leaderboard
WHERE warning_level >= 2
ORDER BY warning_level DESC, model, metric, subset

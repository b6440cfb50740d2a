-- What was not measured, and why?
SELECT metric, subset, status, reason, count(DISTINCT model) AS models
FROM leaderboard
WHERE status <> 'ok'
GROUP BY metric, subset, status, reason
ORDER BY metric, subset

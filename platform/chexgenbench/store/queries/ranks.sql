-- Which model is best on the whole?
-- The mean rank over the scores; a model that shares a rank everywhere has said nothing yet.
SELECT suite, model, avg(rank) AS mean_rank, count(*) FILTER (WHERE rank = 1) AS times_first,
       count(*) AS scores
FROM leaderboard
WHERE subset = 'overall' AND rank IS NOT NULL
GROUP BY suite, model
ORDER BY suite, mean_rank

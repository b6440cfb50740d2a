-- By what was each number of the leaderboard made?
SELECT l.suite, l.model, l.metric, l.encoder, l.value, r.created_at, r.seed, r.protocol, r.device,
       r.weights, json_extract_string(r.versions, '$.chexgenbench') AS chexgenbench,
       r."commit", l.basis
FROM leaderboard AS l
JOIN runs AS r USING (run_id)
WHERE l.subset = 'overall'
ORDER BY l.suite, l.metric, l.model

-- Which images of each model match their prompts worst?
SELECT r.model, i.prompt_id, s.value AS alignment, i.seed, i.path
FROM sample_scores AS s
JOIN images AS i USING (run_id, image_id)
JOIN runs AS r USING (run_id)
WHERE s.metric = 'alignment' AND s.run_id IN (SELECT run_id FROM leaderboard)
QUALIFY row_number() OVER (PARTITION BY s.run_id, s.encoder ORDER BY s.value) <= 5
ORDER BY r.model, alignment

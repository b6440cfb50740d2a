-- Which prompts fail in all models?
-- Those whose images match them worse than nine tenths of the images do, whoever made them.
WITH placed AS (
    SELECT s.prompt_id, r.model, s.value,
           percent_rank() OVER (PARTITION BY s.run_id, s.encoder ORDER BY s.value) AS place
    FROM sample_scores AS s
    JOIN runs AS r USING (run_id)
    WHERE s.metric = 'alignment' AND s.run_id IN (SELECT run_id FROM leaderboard)
)
SELECT prompt_id, count(*) AS images, max(place) AS highest_place, avg(value) AS alignment
FROM placed
GROUP BY prompt_id
HAVING max(place) < 0.1
ORDER BY alignment
LIMIT 20

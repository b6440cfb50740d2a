-- Do long prompts fare worse?
-- Quarters of the prompts by their number of words.
WITH counted AS (
    SELECT r.model, s.encoder, s.value, len(string_split(trim(p.prompt), ' ')) AS words
    FROM sample_scores AS s
    JOIN prompts AS p USING (run_id, prompt_id)
    JOIN runs AS r USING (run_id)
    WHERE s.metric = 'alignment' AND s.run_id IN (SELECT run_id FROM leaderboard)
), quartered AS (
    SELECT *, ntile(4) OVER (PARTITION BY model, encoder ORDER BY words) AS quarter FROM counted
)
SELECT model, encoder, quarter, min(words) AS shortest, max(words) AS longest,
       avg(value) AS alignment, count(*) AS images
FROM quartered
GROUP BY model, encoder, quarter
ORDER BY model, encoder, quarter

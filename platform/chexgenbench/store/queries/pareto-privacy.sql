-- Which models are the front of fidelity and privacy?
-- A model is on it where no other has both a lower KID and fewer images that repeat a training
-- image. Needs a suite with privacy, such as quick.
WITH both_sides AS (
    SELECT f.suite, f.model, f.encoder, f.value AS kid, p.value AS replicated_rate
    FROM leaderboard AS f
    JOIN leaderboard AS p USING (run_id)
    WHERE f.metric = 'kid' AND p.metric = 'replicated_rate'
      AND f.subset = 'overall' AND p.subset = 'overall'
)
SELECT a.*, NOT EXISTS (
           SELECT 1 FROM both_sides AS b
           WHERE b.suite = a.suite AND b.encoder = a.encoder
             AND b.kid <= a.kid AND b.replicated_rate <= a.replicated_rate
             AND (b.kid < a.kid OR b.replicated_rate < a.replicated_rate)
       ) AS on_the_front
FROM both_sides AS a
ORDER BY suite, on_the_front DESC, kid

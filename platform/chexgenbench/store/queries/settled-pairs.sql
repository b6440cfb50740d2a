-- Which two models are really apart, and how many images would settle the others?
SELECT metric, encoder, model_a, model_b, difference, ci_low, ci_high, p_holm, settled,
       images_needed
FROM compare
WHERE subset = 'overall' AND comparable AND run_a < run_b AND p_holm IS NOT NULL
  AND run_a IN (SELECT run_id FROM leaderboard) AND run_b IN (SELECT run_id FROM leaderboard)
ORDER BY metric, encoder, p_holm

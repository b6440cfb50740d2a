-- Which privacy scores speak against a model?
-- A score alone says little: its excess over the control must be beyond chance.
SELECT model, metric, value, floor AS control, excess, excess_low, excess_high
FROM leaderboard
WHERE subset = 'overall' AND plugin IN
      ('memorisation', 'membership', 'reidentification', 'pixel-distance', 'latent-distance')
  AND CASE WHEN higher_is_better THEN excess_high < 0 ELSE excess_low > 0 END
ORDER BY model, metric

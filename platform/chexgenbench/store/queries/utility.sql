-- What are a model's images worth as training material?
-- Macro AUROC on real test images of what was trained on each regime. Needs a suite with utility.
SELECT model, metric, value, ci_low, ci_high
FROM leaderboard
WHERE subset = 'macro' AND (metric LIKE 'auroc%' OR metric LIKE 'probe\_auroc%' ESCAPE '\')
ORDER BY metric, value DESC

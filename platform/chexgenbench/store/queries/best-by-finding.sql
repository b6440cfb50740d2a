-- Which model is best at each finding?
-- By KID here; any score will do. Models that share rank 1 are not told apart by these images.
SELECT finding, encoder, string_agg(model, ', ' ORDER BY value) AS best, min(value) AS value,
       any_value(n_fake) AS images
FROM by_finding
WHERE metric = 'kid' AND rank = 1 AND warning_level < 2
GROUP BY finding, encoder
ORDER BY finding

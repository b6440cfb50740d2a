-- What got worse between two versions of a model?
-- Versions are runs of one model name with other parameters, weights or code. Only differences
-- that are settled count, where the pair was compared.
SELECT c.model_a AS model, ra.created_at AS before, rb.created_at AS after, c.metric, c.encoder,
       c.subset, c.value_a, c.value_b, c.difference, c.ci_low, c.ci_high
FROM compare AS c
JOIN runs AS ra ON ra.run_id = c.run_a
JOIN runs AS rb ON rb.run_id = c.run_b
WHERE c.model_a = c.model_b AND ra.model_id <> rb.model_id AND ra.created_at < rb.created_at
  AND c.better = 'a' AND c.comparable AND coalesce(c.settled, true)
ORDER BY model, before, c.metric, c.subset

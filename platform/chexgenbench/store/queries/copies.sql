-- Which images repeat a training image?
-- The pairs that the metric `memorisation` flagged, the most telling first. Needs a suite with
-- privacy, such as quick.
SELECT r.model, n.kind, n.rank, n.value, n.path, n.other_id, n.other_path
FROM neighbours AS n
JOIN runs AS r USING (run_id)
WHERE n.flagged AND n.other_side = 'training'
ORDER BY r.model, n.kind, n.rank
LIMIT 50

-- Which images repeat a training image?
-- The pairs that the metric `memorisation` flagged, the most telling 20 of each run. Needs a suite with
-- privacy, such as quick.
SELECT r.model, n.kind, n.rank, n.value, n.path, n.other_id, n.other_path
FROM neighbours AS n
JOIN runs AS r USING (run_id)
WHERE n.flagged AND n.other_side = 'training'
QUALIFY row_number() OVER (PARTITION BY n.run_id ORDER BY n.rank, n.kind) <= 20
ORDER BY r.model, n.kind, n.rank

-- How many images of each model are suspect, and why?
SELECT r.suite, r.model, coalesce(f.flag, 'none') AS flag, coalesce(f.n, 0) AS images,
       r.n_images, round(100 * coalesce(f.n, 0) / r.n_images, 2) AS percent
FROM runs AS r
LEFT JOIN flagged AS f USING (run_id)
WHERE r.run_id IN (SELECT run_id FROM leaderboard) AND r.n_images > 0
ORDER BY r.suite, r.model, images DESC

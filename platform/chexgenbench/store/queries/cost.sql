-- What does a model cost, and how long would 18,575 prompts take?
SELECT model, device, dtype, workers, round(images_per_second, 2) AS images_per_second,
       round(peak_memory / 1e9, 2) AS peak_memory_gb,
       round(18575 / nullif(images_per_second * workers, 0) / 3600, 1) AS hours_for_18575
FROM runs
WHERE run_id IN (SELECT run_id FROM leaderboard) AND images_per_second IS NOT NULL
ORDER BY images_per_second DESC

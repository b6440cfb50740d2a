-- How many prompts has each finding, and how many are uncertain?
WITH labels AS (
    UNPIVOT (
        SELECT DISTINCT ON (split, prompt_id)
               * EXCLUDE (run_id, prompt, patient_id, "view", image_path, line)
        FROM prompts
    ) ON COLUMNS(* EXCLUDE (split, prompt_id)) INTO NAME finding VALUE label
)
SELECT split, finding, count(*) FILTER (WHERE label = 1) AS present,
       count(*) FILTER (WHERE label = -1) AS uncertain,
       count(*) FILTER (WHERE label = 0) AS absent
FROM labels
GROUP BY split, finding
ORDER BY split, present DESC

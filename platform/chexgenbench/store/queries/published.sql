-- How do our numbers stand beside the paper's?
-- The models that the paper ranks best, and ours on the same score. Only runs on the paper's split,
-- encoder and protocol compare; the note says what else differs.
SELECT p.metric, p.encoder, p.model AS published_model, p.value AS published_value,
       l.model AS our_model, l.value AS our_value, r.split AS our_split, p.split AS published_split,
       p.note
FROM published AS p
LEFT JOIN leaderboard AS l USING (metric, encoder, subset)
LEFT JOIN runs AS r USING (run_id)
WHERE p.subset = 'overall'
QUALIFY row_number() OVER (
    PARTITION BY p.metric, p.encoder, l.model
    ORDER BY CASE WHEN p.higher_is_better THEN -p.value ELSE p.value END
) = 1
ORDER BY p.metric, p.encoder

-- Where does each model fall behind real images most?
-- The excess compares with halves of the real images at the same size, so findings of different
-- frequency compare.
SELECT model, metric, encoder, finding, excess, excess_low, excess_high, n_fake AS images
FROM by_finding
WHERE metric IN ('fid', 'kid') AND excess_low > 0 AND warning_level < 3
QUALIFY row_number() OVER (PARTITION BY model, metric, encoder ORDER BY excess DESC) <= 3
ORDER BY metric, model, excess DESC

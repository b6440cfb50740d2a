-- Do findings whose images match their prompts also look more real?
-- The correlation over the findings, for each model; with 14 of them below 0.53 may be chance.
SELECT a.model, a.encoder, corr(a.value, p.value) AS correlation, count(*) AS findings
FROM by_finding AS a
JOIN by_finding AS p USING (run_id, encoder, finding)
WHERE a.metric = 'alignment' AND p.metric = 'precision'
  AND a.status = 'ok' AND p.status = 'ok'
GROUP BY a.model, a.encoder
ORDER BY a.model

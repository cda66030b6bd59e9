-- I17: a workflow's versions are counted without gaps, and it stands at the last
SELECT 'workflows' AS place, w.id::text AS what,
       format('%s versions, last %s, stands at %s', count(v.id), max(v.version), w.version) AS facts
  FROM workflows w
  LEFT JOIN workflow_versions v ON v.workflow_id = w.id
 GROUP BY w.id, w.version
HAVING count(v.id) <> coalesce(max(v.version), 0) OR max(v.version) IS DISTINCT FROM w.version

-- I15: a run has an author and a version's nodes are a list
SELECT 'workflow_executions' AS place, id::text AS what, 'created_by' AS facts
  FROM workflow_executions
 WHERE created_by IS NULL
UNION ALL
SELECT 'workflow_versions', id::text, jsonb_typeof(nodes)
  FROM workflow_versions
 WHERE jsonb_typeof(nodes) <> 'array'

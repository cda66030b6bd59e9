-- I4: no node goes on under a run that is over
SELECT 'node_executions' AS place, n.id::text AS what, n.status::text AS facts
  FROM node_executions n
  JOIN workflow_executions w ON w.id = n.workflow_execution_id
 WHERE w.completed_at IS NOT NULL AND n.completed_at IS NULL

-- I8: no node starts after its run is over
SELECT 'node_executions' AS place, n.id::text AS what,
       format('%s after %s', n.started_at, w.completed_at) AS facts
  FROM node_executions n
  JOIN workflow_executions w ON w.id = n.workflow_execution_id
 WHERE n.started_at > w.completed_at

-- I23: a failed attempt has its row among the errors, a failed run its message
SELECT 'node_executions' AS place, n.id::text AS what, n.error_type::text AS facts
  FROM node_executions n
 WHERE n.status = 'failed' AND n.copied_from IS NULL AND n.node_type = 'python'
   AND n.completed_at > now() - interval '1 day'
   AND NOT EXISTS (SELECT 1 FROM error_logs e WHERE e.node_execution_id = n.id)
   AND n.runner_incarnation IS NOT NULL -- else it is no attempt: a map or a loop as a whole, a condition
UNION ALL
SELECT 'workflow_executions', id::text, 'error_message'
  FROM workflow_executions
 WHERE status = 'failed' AND error_message IS NULL

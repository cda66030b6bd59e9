-- I5: a completed run has every node of its version
SELECT 'workflow_executions' AS place, w.id::text AS what, d.node ->> 'id' AS facts
  FROM workflow_executions w
  JOIN workflow_versions v ON v.workflow_id = w.workflow_id AND v.version = w.workflow_version
 CROSS JOIN LATERAL jsonb_array_elements(v.nodes) AS d(node)
 WHERE w.status = 'completed'
   AND w.purge_started_at IS NULL
   -- What undoes a place begins only where the run does not complete.
   AND COALESCE(d.node ->> 'compensates', '') = ''
   AND NOT EXISTS (SELECT 1 FROM node_executions n
                    WHERE n.workflow_execution_id = w.id
                      AND n.definition_node_id = d.node ->> 'id')

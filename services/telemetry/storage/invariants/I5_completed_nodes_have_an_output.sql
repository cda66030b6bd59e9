-- I5: a completed node has its output, or is a map whose elements have theirs
SELECT 'node_executions' AS place, n.id::text AS what, n.node_id::text AS facts
  FROM node_executions n
 WHERE n.status = 'completed' AND n.output_data IS NULL AND n.output_file_id IS NULL
   AND NOT EXISTS (SELECT 1 FROM node_executions element
                    WHERE element.workflow_execution_id = n.workflow_execution_id
                      AND starts_with(element.node_id, n.node_id || '['))

-- I5: a completed node has its output
SELECT 'node_executions' AS place, id::text AS what, node_id::text AS facts
  FROM node_executions
 WHERE status = 'completed' AND output_data IS NULL AND output_file_id IS NULL
